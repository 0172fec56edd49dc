"""Operations of a step are those that torch counts; peaks go by the longest known name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from aift_ray.models.hub import load_config
from aift_ray.planning.flops import Flops, peak
from aift_ray.planning.model_shape import Shape


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_operations_of_a_document_are_those_that_torch_counts(tiny_model: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    shape = Shape.of(load_config(str(tiny_model)).to_dict())
    flops, length = Flops.of(shape, shape.parameters, full=True), 64
    ids = torch.randint(0, 500, (1, length))
    # without the checks of padding, whose operations are none of the model
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    counted = counter.get_total_flops()
    # eager attention computes all pairs, a model needs half of them and the diagonal
    needless = flops.pair * (length * length - length * (length + 1) / 2)
    # the first layer's input is an embedding, for which torch computes a gradient too
    own = flops.step(np.array([length], np.int32), length) + needless
    assert own == pytest.approx(counted, rel=0.02)


def test_adapters_need_two_thirds() -> None:
    shape = Shape(64, 2, 4, 2, 16, 96, 512, tied=True)
    full, lora = Flops.of(shape, 0, full=True), Flops.of(shape, 100, full=False)
    assert (lora.token - 600) / full.token == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA RTX A5000", 111.1),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA Something New", None),
    ],
)
def test_a_peak_goes_by_the_longest_known_name(name: str, tera: float | None) -> None:
    assert peak(name) == (tera * 1e12 if tera else None)
