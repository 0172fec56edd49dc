"""Generations that are made while the one before them is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aift_ray.engine.build import Run, build
from aift_ray.engine.grpo.completion_generation import Completion
from aift_ray.engine.grpo.rollout_engine import Asked, RolloutEngine, Weights
from aift_ray.engine.job import Job
from aift_ray.engine.worker import work
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests.engine.test_worker import ALONE, Killed, losses
from tests.grpo.test_runs_of_rollouts import log_probabilities, rollout_of
from tests.helpers.runs import CPU, stepped

Generating = Callable[..., Any]


class InProcess:
    """What a rollout actor does, in this process."""

    def __init__(self, job: Job) -> None:
        self._engine = RolloutEngine(job, CPU)

    def generate(
        self, weights: Weights, asked: Sequence[Asked]
    ) -> Iterator[tuple[int, list[list[Completion]], float]]:
        self._engine.load(weights)
        for at, each in enumerate(asked):
            yield at, self._engine.generate(each), 0.0

    def close(self) -> None:
        """Nothing is left to end."""


@pytest.fixture
def asynchronous(generating: Generating) -> Generating:
    """A configuration of a run whose generations are made ahead."""

    def make(**values: Any) -> Any:
        common = {"grpo__placement": "apart", "grpo__asynchronous": True, "training__max_steps": 3}
        return generating(**(common | values))

    return make


def built(config: Any, folder: Path) -> Run:
    job = prepare(config, folder, 1, False, None).job
    return build(job, ALONE, pool=lambda: InProcess(job))


def test_a_generation_is_of_the_weights_that_the_one_before_it_began_with(
    asynchronous: Generating, tmp_path: Path
) -> None:
    run = built(asynchronous(), tmp_path)
    stepped(run, 1)
    second = run.module.model
    # the weights that the second generation begins with, which the third is made by
    kept = {name: value.clone() for name, value in second.state_dict().items()}
    line = stepped(run, 1)[0]
    assert line["sampling/sampling_logp_difference/mean"] > 1e-4, "they are one step old"
    assert "time/waiting_s" in line
    made, first = rollout_of(run), built(asynchronous(), tmp_path)
    for index in (0, 7, 15):
        wanted = log_probabilities(
            first.module.model.eval(), made.ids[index], int(made.starts[index])
        )
        assert made.engine[index] == pytest.approx(wanted, abs=1e-5)
    stepped(run, 1)
    made = rollout_of(run)
    assert made.number == 2
    first.module.model.load_state_dict(kept)
    for index in (0, 7, 15):
        wanted = log_probabilities(
            first.module.model.eval(), made.ids[index], int(made.starts[index])
        )
        assert made.engine[index] == pytest.approx(wanted, abs=1e-5)
    for each in (run, first):
        each.rollouts.close()


def test_without_training_the_losses_are_those_of_a_run_that_waits(
    asynchronous: Generating, tmp_path: Path
) -> None:
    runs = [
        built(asynchronous(grpo__asynchronous=ahead, training__learning_rate=1e-30), tmp_path)
        for ahead in (True, False)
    ]
    ahead, waiting = (
        [(line["loss"], line["grad_norm"], line["reward"]) for line in stepped(run)] for run in runs
    )
    assert ahead == waiting
    for run in runs:
        run.rollouts.close()


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_run_goes_on_to_the_bit(
    steps: int, asynchronous: Generating, tmp_path: Path
) -> None:
    config = asynchronous(
        training__max_steps=4, training__save_steps=1, grpo__steps_per_generation=4 * steps
    )

    def whole(config: Any, folder: Path, kill_at: int | None = None) -> None:
        def report(metrics: dict[str, Any]) -> None:
            if metrics["step"] == kill_at:
                raise Killed

        job = prepare(config, folder, 1, False, None).job
        if not folder.exists():
            run_dir.start(config, folder)
        work(job, ALONE, report, pool=lambda: InProcess(job))

    whole(config, tmp_path / "whole")
    for kill_at in (1, 2):
        folder = tmp_path / f"killed{kill_at}"
        with pytest.raises(Killed):
            whole(config, folder, kill_at)
        whole(config.model_copy(update={"resume": "latest"}), folder)
        assert losses(folder) == losses(tmp_path / "whole")
        assert rewards(folder) == rewards(tmp_path / "whole")


def rewards(folder: Path) -> list[float]:
    """The mean reward of each generation."""
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = [line["reward"] for line in lines if "reward" in line]
    assert len(np.unique(found)) > 1
    return found
