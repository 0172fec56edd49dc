"""What is wrong with a model's arguments is told before anything is loaded, all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aift_ray.errors import ConfigError
from aift_ray.models.base_model import BaseModel
from aift_ray.models.japanese_model import JapaneseModel


def test_a_base_model_can_not_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        BaseModel("hina-4m")  # type: ignore[abstract]


def test_arguments_are_taken_by_position_too() -> None:
    model = JapaneseModel("x/y", torch.device("cpu"), False, True, torch.bfloat16, False, True)
    assert (model.device, model.torch_dtype) == (torch.device("cpu"), torch.bfloat16)
    assert (model.load_in_8bit, model.load_in_4bit) == (False, True)
    assert (model.use_flash_attention, model.gradient_checkpointing) == (False, True)
    assert (model.model, model.tokenizer) == (None, None)


def test_the_default_model_is_the_documented_one() -> None:
    assert JapaneseModel().model_name == "stabilityai/japanese-stablelm-3b-4e1t-instruct"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, "contradicts load_in_4bit"),
        ({"device": torch.device("meta")}, "there is no device"),
        ({"device": "tpu"}, "there is no 'tpu' here"),
        ({"device": torch.device("cuda", 99)}, "index=99"),
        ({"torch_dtype": "float16"}, "torch_dtype: 'float16' is not allowed"),
        ({"torch_dtype": torch.int8}, "torch_dtype: torch.int8 is not allowed"),
        ({"load_in_8bit": "yes"}, "load_in_8bit: 'yes' is not allowed"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing: 1 is not allowed"),
        ({"use_flash_attention": None}, "use_flash_attention: None is not allowed"),
        ({"model_name": None}, "model_name: None is not allowed"),
        ({"model_name": " "}, "model_name: ' ' is not allowed"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JapaneseModel(**arguments)
    assert len(caught.value.problems) == 1
    assert said in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        JapaneseModel("", "tpu", True, True, 16, 1, 2)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 6


def test_weights_are_fp32_on_a_cpu_unless_told() -> None:
    assert JapaneseModel("x/y", torch.device("cpu")).torch_dtype is torch.float32
    kept = JapaneseModel("x/y", torch.device("cpu"), load_in_4bit=True)
    assert kept.quantization is not None
    assert (kept.quantization.bits, kept.quantization.compute_dtype) == (4, torch.float32)
