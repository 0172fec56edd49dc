"""An argument of another type than documented is a TypeError that says which, and what it got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import aift_ray
from aift_ray.errors import ConfigError

LORA, TRAINING = aift_ray.LoRAConfig(), aift_ray.TrainingConfig()
MODEL = aift_ray.JapaneseModel("hina-4m")

WRONG: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "LoRAFinetuningTrainer": (
        lambda: aift_ray.LoRAFinetuningTrainer(MODEL, TRAINING, LORA),  # type: ignore[arg-type]
        [
            "lora_config: a LoRAConfig or LoraConfig is expected, and a TrainingConfig",
            "it would fit training_",
        ],
    ),
    "FullFinetuningTrainer": (
        lambda: aift_ray.FullFinetuningTrainer(TRAINING, MODEL),  # type: ignore[arg-type]
        ["model: a BaseModel is expected, and a TrainingConfig", "config: a TrainingConfig is"],
    ),
    "AdvancedMultiGPUTrainer": (
        lambda: aift_ray.AdvancedMultiGPUTrainer(MODEL, TRAINING),  # type: ignore[arg-type]
        ["config: a MultiGPUTrainingConfig is expected, and a TrainingConfig was given"],
    ),
    "QuantizationOptimizer": (
        lambda: aift_ray.QuantizationOptimizer(torch.device("cpu")),  # type: ignore[arg-type]
        ["model_name_or_path: a str or Path is expected, and a device was given"],
    ),
    "TextDataset": (
        lambda: aift_ray.TextDataset(["a"], 512, MODEL.load_tokenizer()),  # type: ignore[arg-type]
        ["tokenizer: a PreTrainedTokenizerBase is expected, and a int", "max_length: a int is"],
    ),
    "JapaneseModel": (
        lambda: aift_ray.JapaneseModel(torch.device("cpu"), "hina-4m"),  # type: ignore[arg-type]
        ["model_name: device(type='cpu') is not allowed"],
    ),
}


@pytest.mark.parametrize("owner", WRONG)
def test_swapped_arguments_are_named(owner: str) -> None:
    call, said = WRONG[owner]
    with pytest.raises(TypeError) as refused:
        call()
    assert isinstance(refused.value, ConfigError)
    for words in said:
        assert words in str(refused.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: aift_ray.TrainingConfig("much"),
        lambda: aift_ray.LoRAConfig(LORA),
        lambda: aift_ray.MultiGPUTrainingConfig(strategy=3),
    ],
)
def test_a_configuration_names_the_field(call: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ConfigError), match=r"learning_rate|r\b|strategy"):
        call()
