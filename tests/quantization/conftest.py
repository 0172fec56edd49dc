"""An adapter for the tiny model, and the command run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aift_ray import quantize
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED

Quantize = Callable[..., Path]


def make_adapter(base: Path, folder: Path, stores_tables: bool = False, **options: Any) -> Path:
    """A LoRA adapter whose weights are random, as PEFT saves it, with a tokenizer.

    Args:
        stores_tables: as PEFT does by default where embeddings or an output layer are adapted.
    """
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": ["q_proj", "o_proj"], "init_lora_weights": False}
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(**(settings | options), task_type="CAUSAL_LM"),
    )
    adapted.save_pretrained(folder, save_embedding_layers=stores_tables)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An adapter for the tiny model."""
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "tiny")


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Quantize:
    """Run the command on the tiny model; the output folder."""

    def call(*argv: str, model: Path = tiny_model, name: str = "out") -> Path:
        flags = ["--model", str(model), "--output-dir", str(tmp_path / name)]
        flags += ["--eval-rows", "4", "--num-runs", "2"] if "--eval-rows" not in argv else []
        assert guarded(quantize.run, [*flags, *argv]) == 0
        return tmp_path / name

    return call
