"""Adapters on a GPU: what their twins in tests/models show on CPUs."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models.lora.test_attach import adapted, as_peft_does, step


def test_under_autocast_no_bit_changes_and_casts_are_gone(tiny_model: Path) -> None:
    own, forward, _ = step(adapted(tiny_model, lora_dropout=0.0).cuda())
    model = as_peft_does(adapted(tiny_model, lora_dropout=0.0)).cuda()
    pefts, more, _ = step(model)
    assert forward < more
    for one, other in zip(own, pefts, strict=True):
        assert torch.equal(one, other)
