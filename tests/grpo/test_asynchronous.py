"""Generations that are made while the one before them is trained."""

from __future__ import annotations

import json
import time
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
from tests.grpo.test_runs_of_rollouts import log_probabilities, rollout_of
from tests.helpers.runs import CPU, stepped
from tests.helpers.whole_runs import ALONE, Killed, losses

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


def run_whole(config: Any, folder: Path, kill_at: int | None = None) -> None:
    """A whole run in this process, or one that dies at a checkpoint."""

    def report(metrics: dict[str, Any]) -> None:
        if metrics["step"] == kill_at:
            raise Killed

    job = prepare(config, folder, 1, False, None).job
    if not folder.exists():
        run_dir.start(config, folder)
    work(job, ALONE, report, pool=lambda: InProcess(job))


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

    run_whole(config, tmp_path / "whole")
    for kill_at in (1, 2):
        folder = tmp_path / f"killed{kill_at}"
        with pytest.raises(Killed):
            run_whole(config, folder, kill_at)
        run_whole(config.model_copy(update={"resume": "latest"}), folder)
        assert losses(folder) == losses(tmp_path / "whole")
        assert rewards(folder) == rewards(tmp_path / "whole")


def test_a_run_that_is_extended_is_the_one_that_asked_for_all_steps(
    asynchronous: Generating, tmp_path: Path
) -> None:
    how = {"training__save_steps": 2, "training__lr_scheduler": "constant"}
    for name, ends in {"whole": [4], "extended": [2, 4]}.items():
        for steps in ends:
            config = asynchronous(**how, training__max_steps=steps)
            run_whole(config.model_copy(update={"resume": "latest"}), tmp_path / name)
    assert losses(tmp_path / "extended") == losses(tmp_path / "whole")
    assert rewards(tmp_path / "extended") == rewards(tmp_path / "whole")


def test_neither_a_checkpoint_nor_the_end_waits_for_a_reward_that_hangs(
    asynchronous: Generating, tmp_path: Path
) -> None:
    file = tmp_path / "later.py"
    # the first generation is scored in two calls; the second one, made ahead, hangs
    file.write_text(
        "import time\n"
        "calls = []\n"
        "def later(prompts, completions, **columns):\n"
        "    calls.append(1)\n"
        "    time.sleep(600 * (len(calls) > 2))\n"
        "    return [float(len(str(each)) % 7) for each in completions]\n",
        "utf-8",
    )
    run = built(asynchronous(grpo__reward=[f"{file}:later"]), tmp_path)
    stepped(run, 1)
    began = time.monotonic()
    kept = run.rollouts.saved(1)
    run.rollouts.close()
    assert time.monotonic() - began < 5, "and not grpo.reward_timeout, 60 s"
    assert kept["generation_ahead"]["number"] == 1


def rewards(folder: Path) -> list[float]:
    """The mean reward of each generation."""
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = [line["reward"] for line in lines if "reward" in line]
    assert len(np.unique(found)) > 1
    return found
