"""What PEFT's clone of each 4-bit layer's output moves; docs/a5000.md says it of an 8B model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aift_ray.config import LoRAConfig
from aift_ray.models import load
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.linear_layers import features
from aift_ray.models.lora.attach import add_adapters
from tests.helpers.a5000 import MODELS

TOKENS = 24


class Clones(TorchDispatchMode):
    """Bytes that clones write."""

    written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default:
            self.written += result.nbytes
        return result


def cloned(folder: Path, quantization: Quantization | None) -> tuple[int, int]:
    """Bytes that clones write in a forward pass, and numbers that adapted layers put out."""
    base = load.load_model(str(folder), torch.float32, None, quantization)
    model = add_adapters(base, LoRAConfig(r=4), str(folder)).train()
    outputs = sum(
        sizes[1]
        for name, layer in model.named_modules()
        if name.endswith("base_layer") and (sizes := features(layer))
    )
    with Clones() as clones:
        model(input_ids=torch.arange(1, 1 + TOKENS)[None], use_cache=False)
    return clones.written, outputs


def test_each_4_bit_layer_s_output_is_cloned_once(tiny_model: Path) -> None:
    plain, outputs = cloned(tiny_model, None)
    found, same = cloned(tiny_model, Quantization(4, torch.float32))
    assert outputs == same > 0
    assert found - plain == TOKENS * outputs * 4


def test_what_an_8b_model_clones() -> None:
    numbers = sum(out for _, out in MODELS["8B"].linear_shapes)
    assert numbers == 43_008
    # read and written, in bf16, in the forward pass and its recomputation, of 32 blocks
    assert 2 * 2 * numbers * 2 * 32 * 2048 == 22_548_578_304
