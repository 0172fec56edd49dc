"""Rounding to bf16 that is right in the mean, the same wherever a number lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from aift_ray.config import TrainingConfig
from aift_ray.engine import optimizer
from aift_ray.parallel import shard_adamw
from aift_ray.parallel.stochastic_rounding import key_of, rounded


def numbers(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def test_the_mean_of_many_roundings_is_the_number() -> None:
    x, times = numbers(1 << 16), 200
    found = torch.stack([rounded(x, key_of(0, "w", step), 0).double() for step in range(times)])
    step_of_bf16 = x.abs().log2().floor().exp2().double() / 128
    assert bool(((found - x).abs() < step_of_bf16).all()), "a neighbour"
    error = (found.mean(0) - x) / step_of_bf16
    # of a fair coin at probability p the deviation is sqrt(p(1-p)): 0.41 on average over p
    assert float(error.mean().abs()) < 4 * 0.41 / (times * len(x)) ** 0.5
    assert float(error.square().mean().sqrt()) == pytest.approx(0.41 / times**0.5, rel=0.05)
    assert float(error[x > 0].mean().abs()) < 1e-3, "not towards zero either"


def test_the_bits_are_a_function_of_key_and_place() -> None:
    x = numbers(10_000)
    whole = rounded(x, key_of(42, "layer.weight", 7), 0)
    parts = [
        rounded(x[a:b], key_of(42, "layer.weight", 7), a) for a, b in ((0, 3333), (3333, None))
    ]
    assert torch.equal(torch.cat(parts), whole), "as a shard, or in pieces"
    for other in ((43, "layer.weight", 7), (42, "layer.bias", 7), (42, "layer.weight", 8)):
        assert not torch.equal(rounded(x, key_of(*other), 0), whole)
    exact = x.bfloat16()
    assert torch.equal(rounded(exact.float(), 5, 0), exact), "what bf16 holds stays as it is"


def trained(bf16: bool, steps: int = 400, **settings: Any) -> tuple[float, torch.Tensor]:
    """The last loss, and the weight, of a regression whose updates bf16 can't hold."""
    x, wanted = numbers(256 * 64).view(256, 64), numbers(64 * 64).view(64, 64)
    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight.copy_(wanted + 0.03)
    layer = layer.bfloat16() if bf16 else layer
    config = TrainingConfig(
        learning_rate=1e-4, weight_decay=0.0, bf16_stochastic_round=bf16, **settings
    )
    adamw = optimizer.build(layer, config)
    for _ in range(steps):
        loss = (x @ (layer.weight.float() - wanted).T).square().mean()
        loss.backward()
        adamw.step()
        adamw.zero_grad()
    return float(loss.detach()), layer.weight.detach().float()


@pytest.mark.parametrize("moments", ["adamw", "adamw_8bit"])
def test_bf16_weights_train_as_those_of_fp32_where_rounding_to_the_nearest_stalls(
    moments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, _ = trained(bf16=False, optimizer=moments)
    small, close = trained(bf16=True, optimizer=moments)
    again, same = trained(bf16=True, optimizer=moments)
    assert torch.equal(close, same)
    assert small == again
    monkeypatch.setattr(shard_adamw, "rounded", lambda x, key, begin: x.bfloat16())
    nearest, _ = trained(bf16=True, optimizer=moments)
    begun, _ = trained(bf16=False, optimizer=moments, steps=1)
    assert wide < 0.05 * begun
    assert small < 0.1 * begun
    assert nearest > 0.9 * begun
