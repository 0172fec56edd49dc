"""Models and adapters to serve."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from aift_ray.serving.engine import TransformersEngine
from tests.conftest import SHIPPED


def load(folder: Path = SHIPPED) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # so that generate() goes on to the length that is asked for
    model.generation_config.eos_token_id = None
    return model


def write_adapter(folder: Path, seed: int, base: Path = SHIPPED, **options: Any) -> Path:
    """A LoRA adapter that changes what the model says, with the base's tokenizer beside it."""
    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **(settings | options)))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the shipped model."""
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(folder / name, seed) for seed, name in enumerate(("大阪弁", "b"))}


@pytest.fixture(scope="module")
def plain() -> Any:
    """The shipped model in fp32."""
    return load()


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    """An engine on the shipped model."""
    made = TransformersEngine(load(), slots=4, max_queue=8)
    yield made
    made.close()
