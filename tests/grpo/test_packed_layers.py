"""A model that generates on a CPU computes what it does otherwise, by faster products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from aift_ray.engine.grpo.packed_layers import FasterLayer, packed


def model_of(folder: Path, how: dict[str, Any] | None, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if how is not None:
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **how)
        model = get_peft_model(model, config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def faster(model: Any) -> list[Any]:
    return [each for each in model.modules() if isinstance(each, FasterLayer)]


@pytest.mark.parametrize("how", [None, {}, {"use_dora": True}, {"use_rslora": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_logits_are_the_same(
    how: dict[str, Any] | None, dtype: torch.dtype, tiny_model: Path
) -> None:
    model = model_of(tiny_model, how, dtype)
    for rows in (1, 5):
        ids = torch.arange(rows * 7).view(rows, 7) + 3
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            wanted = model(ids).logits.float()
            with packed(model):
                changed = faster(model)
                found = model(ids).logits.float()
        # others by what the processor has
        assert changed or how is None or "use_dora" in how
        bound = 1e-5 if dtype is torch.float32 else 0.03
        torch.testing.assert_close(found, wanted, rtol=0, atol=bound * float(wanted.abs().max()))
    assert not faster(model), "as it was"


@torch.no_grad()
def test_weights_are_those_of_the_moment(tiny_model: Path) -> None:
    model = model_of(tiny_model, {}, torch.float32)
    ids = torch.arange(5)[None]
    with packed(model):
        before = model(ids).logits
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.mul_(2)
    with packed(model):
        after = model(ids).logits
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_an_error_leaves_the_model_as_it_was(tiny_model: Path) -> None:
    model = model_of(tiny_model, {}, torch.float32)
    with pytest.raises(ZeroDivisionError), packed(model):
        raise ZeroDivisionError
    assert not faster(model)
