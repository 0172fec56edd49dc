"""What is told of a device that is full: what a step takes, and what generating answers does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine import loop
from aift_ray.engine.step_plan import longest_tokens
from aift_ray.errors import TrainingError
from aift_ray.models.model_stats import measured
from aift_ray.planning.memory_parts import GIB
from tests.conftest import write_rows
from tests.grpo.rollout_rows import prompts, write, write_rewards
from tests.helpers.runs import started
from tests.helpers.whole_runs import run

Configure = Callable[..., Any]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stands for a GPU that is too small for what it names."""

    def raised(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return lambda name: monkeypatch.setattr(name, raised)


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def test_answers_that_do_not_fit_are_counted_with_what_generates_fewer(
    configure: Configure, tmp_path: Path, full: Callable[[str], None]
) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", 6, 100)
    config = configure(
        data__eval_files=[str(held_out)],
        training__exact_match_rows=6,
        training__exact_match_batch_size=4,
        # keys and values of some tens of MiB
        training__exact_match_max_tokens=20_000,
    )
    full("aift_ray.engine.validate.greedy")
    with pytest.raises(TrainingError) as caught:
        run(config, tmp_path / "run")
    said = str(caught.value)
    done = started(config, tmp_path / "again")
    shape = measured(done.job.location, done.config).shape
    assert done.job.answered[0] == 6
    cache = 4 * (done.job.answered[1] + 20_000) * shape.cache_bytes(4)
    assert cache > GIB / 100
    step, answers = said.partition("computed while it evaluates: ")[::2]
    assert "gradients" in step
    assert "cache" not in step
    assert f"cache {gib(cache)}" in answers
    assert "try --training.exact_match_batch_size 2\n" in answers


def test_completions_that_do_not_fit_are_counted_with_what_generates_fewer(
    configure: Configure, tmp_path: Path, full: Callable[[str], None]
) -> None:
    config = configure(
        objective="grpo",
        method="lora",
        grpo__reward=[f"{write_rewards(tmp_path)}:digest"],
        grpo__num_generations=4,
        grpo__max_completion_length=8,
        grpo__rollout_batch_size=400,
        data__train_files=[str(write(tmp_path / "prompts.jsonl", prompts(12)))],
        training__batch_size=4,
        training__max_steps=1,
    )
    full("aift_ray.engine.grpo.completion_generation.CompletionGenerator.generate")
    with pytest.raises(TrainingError, match="step 1 does not fit") as caught:
        run(config, tmp_path / "run")
    said = str(caught.value)
    done = started(config, tmp_path / "again")
    shape = measured(done.job.location, done.config).shape
    tokens = longest_tokens(done.config, done.rows, done.plan, done.job.padded)
    asked = done.rows.lengths[done.plan.longest_micro_batch()]
    assert tokens == asked.sum() + 4 * 8, "with their completions"
    assert f"4 rows of {tokens} tokens" in said
    cache = 400 * done.config.data.sequence_length * shape.cache_bytes(4)
    assert cache > GIB / 100
    answers = said.partition("computed while it generates: ")[2]
    assert f"cache {gib(cache)}" in answers
    assert "try --grpo.rollout_batch_size 200\n" in answers


def test_padding_of_the_longest_micro_batch_is_counted(
    configure: Configure, tmp_path: Path, full: Callable[[str], None]
) -> None:
    run_ = started(configure(data__packing="false", training__batch_size=8), tmp_path)
    longest = run_.rows.lengths[run_.plan.longest_micro_batch()]
    assert longest.sum() < 8 * longest.max()
    full("aift_ray.engine.loss.LossModule.forward")
    with pytest.raises(TrainingError, match=f"8 rows of {8 * longest.max()} tokens"):
        loop.try_longest(run_)
