"""The prompt of a group is computed once: same loss, same gradients, fewer tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine import loop
from aift_ray.engine import loss as engine_loss
from aift_ray.engine.grpo import rollout_setup
from aift_ray.engine.precision import Precision
from aift_ray.engine.step_batches import step_batches
from tests.helpers.runs import started

Found = tuple[torch.Tensor, dict[str, torch.Tensor], int]


def of_a_step(run: Any) -> Found:
    """The loss of a step, the gradients of all weights, and the tokens that were computed."""
    run.rollouts.begin(run.module, 0)
    shares = run.plan.share(0, 0, 1)
    loss = loop.backward(run, step_batches(run, shares), 1)
    named = run.module.model.named_parameters()
    gradients = {name: w.grad for name, w in named if w.grad is not None}
    tokens = sum(run.rollouts.batch(rows).input_ids.numel() for rows in shares)
    run.rollouts.close()
    return loss, gradients, tokens


@pytest.mark.parametrize(
    "how",
    [
        {"method": "full"},
        pytest.param({"method": "lora", "grpo__beta": 0.1}, marks=pytest.mark.slow),
        pytest.param(
            {"method": "full", "grpo__loss_type": "gspo", "training__batch_size": 6},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"method": "full", "data__tokens_per_micro_batch": 150}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_shared_prompt_changes_no_gradient(
    how: dict[str, Any],
    generating: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> Any:
        return started(generating(training__gradient_accumulation_steps=2, **how), tmp_path)

    loss, gradients, tokens = of_a_step(run())
    monkeypatch.setattr(rollout_setup, "shares_prompts", lambda job: False)
    wanted, others, more = of_a_step(run())
    assert tokens < 0.75 * more
    assert float(loss) == pytest.approx(float(wanted), abs=1e-6)
    assert gradients.keys() == others.keys()
    assert len(gradients) > 0
    largest = max(float(each.abs().max()) for each in others.values())
    assert largest > 1e-4, "it learns"
    for name, each in gradients.items():
        torch.testing.assert_close(each, others[name], rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_of_round_lengths_change_nothing(
    precision: str,
    generating: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for rounds in (False, True):
        monkeypatch.setattr(Precision, "compiles_by_shape", lambda *given, told=rounds: told)
        monkeypatch.setattr(engine_loss, "ROUNDED", 32 if rounds else 1)
        run = started(generating(training__precision=precision), tmp_path)
        loss, gradients, tokens = of_a_step(run)
        assert not rounds or tokens % 32 == 0
        entropy = float(run.rollouts.sums[-1] / run.rollouts.sums[0])
        found.append((float(loss), gradients, tokens, entropy))
    (loss, gradients, tokens, entropy), (rounded, others, more, other) = found
    assert tokens < more
    exact = precision == "fp32"
    assert rounded == pytest.approx(loss, abs=1e-6 if exact else 1e-2)
    assert other == pytest.approx(entropy, rel=1e-6 if exact else 1e-3)
    largest = max(float(each.abs().max()) for each in gradients.values())
    for name, each in gradients.items():
        close = (1e-6 if exact else 2e-2) * largest
        torch.testing.assert_close(each, others[name], rtol=0, atol=close, msg=name)


def test_padded_rows_have_their_own_prompts(generating: Callable[..., Any], tmp_path: Path) -> None:
    run = started(generating(data__packing="false"), tmp_path)
    run.rollouts.begin(run.module, 0)
    batch = run.rollouts.batch(run.plan.share(0, 0, 1)[0])
    assert batch.places is None
    assert len(batch.input_ids) == 4
    run.rollouts.close()
