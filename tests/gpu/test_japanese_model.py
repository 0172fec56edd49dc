"""A model on a real GPU: its dtypes, its quantized forms, its answers."""

from __future__ import annotations

import pytest
import torch

from aift_ray.models.bnb.bnb_layers import layers
from aift_ray.models.japanese_model import JapaneseModel


def test_a_model_lies_on_the_gpu_in_16_bits_and_answers() -> None:
    model = JapaneseModel("hina-4m")
    loaded = model.load_model()
    assert loaded.device.type == "cuda"
    assert loaded.dtype in (torch.bfloat16, torch.float16)
    answers = {
        model.generate_japanese("はい。", max_new_tokens=8, do_sample=False) for _ in range(2)
    }
    assert len(answers) == 1


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_lies_on_the_gpu_and_answers(bits: int) -> None:
    model = JapaneseModel("hina-4m", load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    assert len(layers(model.load_model(), bits)) == 4 * 7
    assert isinstance(model.generate_japanese("はい。", max_new_tokens=8), str)
