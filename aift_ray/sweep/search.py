"""Which trial comes next: at random, by Optuna's TPE, or every combination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aift_ray.config import TuneConfig
from aift_ray.sweep.space import Choices, Dimension, Space

if TYPE_CHECKING:
    import optuna

_DEFAULT_TRIALS = 10
# draws of a random trial until it is none that there was
_ATTEMPTS = 50


class Search:
    """Draws at random; what a trial gets is a function of the seed and the trials before.

    Attributes:
        total: trials of the whole sweep.
    """

    def __init__(self, space: Space, config: TuneConfig) -> None:
        self.space, self.config = space, config
        self.total = config.num_samples or _DEFAULT_TRIALS
        self._seen: list[Choices] = []

    def ask(self, number: int, kept: Choices | None = None) -> Choices:
        """The choices of trial `number`; `kept` are those of a sweep that is gone on with."""
        choices = kept if kept is not None else self._next(number)
        self._seen.append(choices)
        return choices

    def tell(self, number: int, score: float | None, stopped_at: int | None = None) -> None:
        """How trial `number` ended: None is a failure; `stopped_at` the step of an early stop."""

    def _next(self, number: int) -> Choices:
        # not by Ray Tune, whose generator draws all trials from one stream
        random = np.random.default_rng([self.config.seed, number])
        for _ in range(_ATTEMPTS):
            choices: Choices = {}

            def ask(dimension: Dimension, into: Choices = choices) -> float:
                into[dimension.key] = _random(random, dimension)
                return into[dimension.key]

            self.space.draw(ask)
            if choices not in self._seen:
                break
        return choices


def _random(random: np.random.Generator, dimension: Dimension) -> float:
    least, most = dimension.extremes[0], dimension.extremes[-1]
    if dimension.is_list or dimension.kind == "randint":
        return int(random.integers(int(least), int(most), endpoint=True))
    if dimension.kind == "loguniform":
        return float(np.exp(random.uniform(np.log(least), np.log(most))))
    return float(random.uniform(least, most))


class GridSearch(Search):
    """Every combination of the options, in order."""

    def __init__(self, space: Space, config: TuneConfig) -> None:
        super().__init__(space, config)
        self._all = list(space.combinations())
        self.total = min(len(self._all), config.num_samples or len(self._all))

    def _next(self, number: int) -> Choices:
        return self._all[number]


class OptunaSearch(Search):
    """Optuna's tree-structured Parzen estimator, after a third of the trials drawn at random."""

    def __init__(self, space: Space, config: TuneConfig) -> None:
        import optuna

        super().__init__(space, config)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        first = max(3, self.total // 3)
        self._pruned, self._failed = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=first),
            direction="minimize" if config.better == "min" else "maximize",
        )
        self._trials: dict[int, Any] = {}

    def ask(self, number: int, kept: Choices | None = None) -> Choices:
        """The choices of trial `number`; `kept` are those of a sweep that is gone on with."""
        if kept is not None:
            self._study.enqueue_trial(kept)
        trial = self._trials[number] = self._study.ask()
        self.space.draw(lambda dimension: _suggested(trial, dimension))
        return dict(trial.params)

    def tell(self, number: int, score: float | None, stopped_at: int | None = None) -> None:
        """How trial `number` ended: None is a failure; `stopped_at` the step of an early stop."""
        trial = self._trials[number]
        if score is None:
            self._study.tell(trial, state=self._failed)
        elif stopped_at is None:
            self._study.tell(trial, score)
        else:
            trial.report(score, stopped_at)
            self._study.tell(trial, state=self._pruned)


def _suggested(trial: optuna.Trial, dimension: Dimension) -> float:
    if dimension.is_list:
        return int(trial.suggest_categorical(dimension.key, list(range(len(dimension.values)))))
    if dimension.kind == "randint":
        return int(trial.suggest_int(dimension.key, *dimension.values))
    log = dimension.kind == "loguniform"
    return float(trial.suggest_float(dimension.key, *dimension.values, log=log))


def search(space: Space, config: TuneConfig) -> Search:
    """The search that the configuration asks for."""
    kinds = {"random": Search, "grid": GridSearch, "optuna": OptunaSearch}
    return kinds[config.search](space, config)
