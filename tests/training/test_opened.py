"""What was trained can be opened: whatever was adapted, and wherever there is room for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import aift_ray
from aift_ray import JapaneseModel, LoRAConfig, LoRAFinetuningTrainer, TrainingConfig
from aift_ray.errors import ConfigError, ModelError, Problem, TrainingError
from aift_ray.training import trainer_run
from tests.helpers import tiny_families

ROWS = [{"instruction": f"{i}を言って。", "output": f"はい、{i}です。"} for i in range(8)]
IDS = torch.arange(100, 116)[None]
ADAPTERS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "biases": {"bias": "all"},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole layers": {"modules_to_save": ["lm_head", "norm"]},
}


def trained(model: str, folder: Path, **lora: Any) -> nn.Module:
    config = TrainingConfig(
        output_dir=str(folder), max_steps=2, learning_rate=1e-2, batch_size=4, warmup_steps=0
    )
    adapters = LoRAConfig(r=4, lora_dropout=0.0, **lora)
    return LoRAFinetuningTrainer(JapaneseModel(model), adapters, config).train(train_texts=ROWS)


def answers_alike(one: Any, folder: Path) -> None:
    again = JapaneseModel(str(folder / "model"))
    with torch.no_grad():
        torch.testing.assert_close(
            one(IDS).logits, again.load_model()(IDS).logits, atol=1e-5, rtol=0
        )
    assert isinstance(again.generate_japanese("はい", max_new_tokens=2), str)


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_every_kind_of_adapter_is_taken_for_one_of_its_base(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    answers_alike(trained(str(tiny_model), tmp_path / "run", **ADAPTERS[kind]), tmp_path / "run")


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "mixtral"])
def test_every_kind_of_network_is(tmp_path: Path, family: str) -> None:
    config = (
        tiny_families.with_towers(family)
        if family == "gemma3"
        else tiny_families.configured(family)
    )
    model = tiny_families.save(config, tmp_path / "model")
    more = {"experts": True} if family == "mixtral" else {}
    answers_alike(trained(str(model), tmp_path / "run", **more), tmp_path / "run")


class Roomless(aift_ray.BaseModel):
    """A model for which its device, or every device, has no room."""

    def __init__(self, everywhere: bool) -> None:
        super().__init__("a model")
        self.device, self.everywhere = torch.device("cuda", 0), everywhere

    def load_model(self) -> Any:
        if self.everywhere or self.device.type == "cuda":
            raise ModelError([Problem("model a", "out of memory")])
        return nn.Identity()

    def load_tokenizer(self) -> Any:
        raise AssertionError("nobody asks for it")


def test_what_was_trained_elsewhere_is_opened_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer_run, "_PAUSE", 0.0)
    with caplog.at_level(logging.WARNING):
        assert isinstance(trainer_run._opened(Roomless(everywhere=False)), nn.Identity)
    assert "loaded on the CPU" in caplog.text
    with pytest.raises(TrainingError, match="the run is done, and its model is in a model"):
        trainer_run._opened(Roomless(everywhere=True))


def test_a_model_that_could_not_be_opened_afterwards_is_refused_before(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        total = 10**6

    monkeypatch.setattr(psutil, "virtual_memory", Small)
    config = TrainingConfig(output_dir=str(tmp_path / "run"), ddp=True, world_size=2)
    trainer = LoRAFinetuningTrainer(JapaneseModel(str(tiny_model)), LoRAConfig(), config)
    with pytest.raises(ConfigError, match=r"opens the trained model.*\n.*aift-ray train"):
        trainer.train(train_texts=ROWS)
    assert not (tmp_path / "run").exists()
