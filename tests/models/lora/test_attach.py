"""Inputs of adapters stay in 16 bits where autocast brings them there anyway, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch.utils._python_dispatch import TorchDispatchMode

from aift_ray.config import LoRAConfig
from aift_ray.models import load
from aift_ray.models.lora.attach import add_adapters

IDS = torch.arange(1, 49).view(2, 24)


class Casts(TorchDispatchMode):
    """Bytes that are written to bring tensors from bf16 to fp32."""

    written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            before, after = args[0].dtype, result.dtype
            if (before, after) == (torch.bfloat16, torch.float32):
                self.written += result.nbytes
        return result


def adapted(folder: Path, **values: Any) -> Any:
    base = load.load_model(str(folder), torch.bfloat16, None)
    torch.manual_seed(0)
    model = add_adapters(base, LoRAConfig(r=4, **values), str(folder))
    for name, weight in model.named_parameters():
        # else the gradients of the other half are zeros
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def layers(model: Any) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


def as_peft_does(model: Any) -> Any:
    """The same model with PEFT's own cast."""
    for layer in layers(model):
        vars(layer).pop("_cast_input_dtype", None)
    return model


def step(model: Any) -> tuple[list[torch.Tensor], int, int]:
    """Logits and gradients of a step under autocast; bytes cast to fp32 forward, and in all."""
    ids = IDS.to(model.device)
    with Casts() as casts:
        with torch.autocast(ids.device.type, torch.bfloat16, cache_enabled=False):
            logits = model(input_ids=ids).logits
        forward = casts.written
        logits.float().square().mean().backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    return [logits, *trained], forward, casts.written


def test_under_autocast_no_bit_changes_and_the_casts_are_gone(tiny_model: Path) -> None:
    own, forward, both = step(adapted(tiny_model, lora_dropout=0.0))
    pefts, more, most = step(as_peft_does(adapted(tiny_model, lora_dropout=0.0)))
    assert len(own) > 1
    for one, other in zip(own, pefts, strict=True):
        assert torch.equal(one, other)
    assert any(grad.abs().sum() > 0 for grad in own[1:])
    # each adapter's input, and its gradient on the way back; all else is cast as before
    inputs = sum(IDS.numel() * layer.in_features * 4 for layer in layers(adapted(tiny_model)))
    assert more - forward == inputs
    assert most - both > 1.5 * inputs, "the first block's inputs have no gradients"


def test_without_autocast_the_inputs_are_cast_as_before(tiny_model: Path) -> None:
    own = adapted(tiny_model, lora_dropout=0.0)
    pefts = as_peft_does(adapted(tiny_model, lora_dropout=0.0))
    with torch.no_grad():
        assert torch.equal(own(input_ids=IDS).logits, pefts(input_ids=IDS).logits)


@pytest.mark.parametrize("values", [{"lora_dropout": 0.1}, {"use_dora": True, "lora_dropout": 0.0}])
def test_what_computes_with_the_cast_input_keeps_it(
    tiny_model: Path, values: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    own, *written = step(adapted(tiny_model, **values))
    torch.manual_seed(1)
    pefts, *same = step(as_peft_does(adapted(tiny_model, **values)))
    assert written == same
    for one, other in zip(own, pefts, strict=True):
        assert torch.equal(one, other)
