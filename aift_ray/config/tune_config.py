"""Every setting of a sweep: those of a training run, and how many trials are made of which."""

from __future__ import annotations

from typing import ClassVar, Literal

from aift_ray.config.run_config import RunConfig
from aift_ray.config.section import Fraction, NotNegative, Positive, Section, setting
from aift_ray.config.tasks_config import better_by
from aift_ray.errors import Problem


class TuneConfig(Section):
    """How the trials of a sweep are chosen, compared and stopped."""

    num_samples: Positive | None = setting(
        None, "maximum number of trials; default: 10, or every combination with search grid"
    )
    max_concurrent: Positive | None = setting(
        None, "maximum number of concurrent trials; default: as many as the cluster can run"
    )
    metric: str = setting(
        "eval_loss",
        "what trials are compared by: eval_loss or exact_match on the evaluation rows, where "
        "answers are compared eval_accuracy, or TASK/SCORE of evaluation.tasks, such as "
        "jcommonsenseqa/accuracy",
    )
    mode: Literal["min", "max"] | None = setting(
        None,
        "whether to minimize or maximize the metric; default: min for a loss, max for "
        "exact_match and scores",
    )
    scheduler: Literal["asha", "median", "none"] = setting(
        "asha",
        "early stopping: asha stops the lower two thirds of the trials at 1, 3, 9, ... "
        "grace_steps, and trials worse than the untrained model; median stops trials worse than"
        " the median; none",
    )
    tolerance: Fraction = setting(
        0.05,
        "asha: a trial that misses the upper third by at most this share of the metric continues",
    )
    grace_steps: Positive | None = setting(
        None, "steps that every trial may take; default: training.eval_steps"
    )
    search: Literal["random", "optuna", "grid"] = setting(
        "random", "at random, by Optuna's TPE, or every combination of choice and grid"
    )
    seed: NotNegative = setting(42, "seed of the search")

    @property
    def better(self) -> Literal["min", "max"]:
        """The mode, resolved."""
        if self.mode or self.metric == "eval_loss":
            return self.mode or "min"
        return better_by(self.metric.rpartition("/")[2])

    @property
    def by_task(self) -> bool:
        """Whether trials are compared by the score of a task."""
        return "/" in self.metric


class SweepConfig(RunConfig):
    """A sweep of training runs."""

    short_flags: ClassVar[dict[str, str | list[str]]] = RunConfig.short_flags | {
        "tune.num_samples": "num-samples",
        "tune.max_concurrent": "max-concurrent",
    }

    tune: TuneConfig = setting(TuneConfig(), "trials")

    def contradictions(self) -> list[Problem]:
        """Conflicting settings."""
        found, training = super().contradictions(), self.training
        if self.resume not in (None, "latest"):
            found.append(Problem("resume", "a sweep is resumed as a whole", "give --resume alone"))
        if training.local_rank >= 0:
            found.append(Problem("training.local_rank", "a sweep starts its workers itself"))
        if self.tune.by_task:
            return found + self._without_tasks()
        if self.tune.metric not in ("eval_loss", "exact_match", "eval_accuracy"):
            what = f"{self.tune.metric!r} is not allowed: eval_loss, exact_match, eval_accuracy or "
            return [*found, Problem("tune.metric", f"{what}TASK/SCORE")]
        if self.tune.metric == "eval_accuracy" and self.objective == "sft":
            what = "eval_accuracy is of objectives that compare answers, and sft does not"
            found.append(Problem("tune.metric", what, "use eval_loss"))
        if not self.data.eval_files and not self.data.validation_fraction:
            remedy = "give --eval-file or --data.validation_fraction"
            found.append(Problem("tune.metric", "needs evaluation data", remedy))
        if self.tune.metric == "exact_match":
            if not training.exact_match_rows:
                found.append(
                    Problem("training.exact_match_rows", "is 0, and tune.metric is exact_match")
                )
            if self.tune.scheduler != "none" and not training.exact_match_during:
                what = f"is off: scheduler {self.tune.scheduler} would have nothing to compare by"
                remedy = "set it to true, or tune.scheduler to none"
                found.append(Problem("training.exact_match_during", what, remedy))
        return found

    def _without_tasks(self) -> list[Problem]:
        """What is missing for trials to be compared by the score of a task."""
        if not self.evaluation.tasks:
            what = f"{self.tune.metric} is the score of a task, and none is given"
            return [Problem("tune.metric", what, "name it with --evaluation.tasks")]
        if self.tune.scheduler != "none" and not self.evaluation.steps:
            what = f"is 0: scheduler {self.tune.scheduler} would have nothing to compare by"
            remedy = "give steps between evaluations, or set tune.scheduler to none"
            return [Problem("evaluation.steps", what, remedy)]
        return []
