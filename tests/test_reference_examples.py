"""The usage examples of the toolkit's reference run here.

Each is kept as users have it; `src` becomes `aift_ray`, and the model the shipped one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import aift_ray
from aift_ray.models.bnb.bnb_layers import layers

MODEL = """
from src.models.japanese_model import JapaneseModel

model = JapaneseModel("stabilityai/japanese-stablelm-3b-4e1t-instruct")
"""

ANSWER = """
answer = model.generate_japanese(
    instruction="次の文を繰り返してください。",
    input_text="富士山は日本で一番高い山です。",
    max_new_tokens=64,
    temperature=0.7,
)
"""

FALLBACK = """
loaded = model.load_with_fallback()
supported = JapaneseModel.list_supported_models()
"""


def executed(*examples: str) -> dict[str, Any]:
    """The names that the examples leave, run one after the other."""
    text = "".join(examples).replace("src.", "aift_ray.")
    names: dict[str, Any] = {}
    exec(re.sub(r'"stabilityai/[^"]*"', '"hina-4m"', text), names)
    return names


def test_a_model_is_made_and_answers() -> None:
    names = executed(MODEL, ANSWER)
    assert isinstance(names["model"], aift_ray.JapaneseModel)
    assert isinstance(names["answer"], str)
    assert "繰り返してください" not in names["answer"]


def test_a_model_is_loaded_with_fallbacks() -> None:
    names = executed(MODEL, FALLBACK)
    assert names["loaded"] is True
    assert names["model"].model_name == "hina-4m"
    assert names["supported"]["elyza/Llama-3-ELYZA-JP-8B"]["min_gpu_memory_gb"] == 16


TRAINER = """
from src.models.japanese_model import JapaneseModel
from src.training.lora_finetuning import LoRAFinetuningTrainer, LoRAConfig
from src.training.training_utils import TrainingConfig

model = JapaneseModel("stabilityai/japanese-stablelm-3b-4e1t-instruct")
lora_config = LoRAConfig(r=16, lora_alpha=32)
training_config = TrainingConfig(learning_rate=3e-4, batch_size=4, num_epochs=5)
trainer = LoRAFinetuningTrainer(model, lora_config, training_config)
trained_model = trainer.train(train_texts=your_texts)
"""

MULTI_GPU = """
from src.training.multi_gpu_training import MultiGPUTrainingConfig

config = MultiGPUTrainingConfig(
    strategy="model_parallel",
    max_memory_per_gpu={0: "22GB", 1: "22GB"},
    fp16=True,
    gradient_checkpointing=True,
)
"""

QLORA = """
from src.training.lora_finetuning import LoRAConfig

qlora_config = LoRAConfig(r=8, use_qlora=True, qlora_4bit=True)
"""

TEXTS = """
your_texts = [f"{i}番目の日は晴れで、暖かい一日だった。" for i in range(8)]
"""


def test_a_lora_model_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = executed(TEXTS, TRAINER, ANSWER)
    assert (tmp_path / "outputs" / "run-1" / "model" / "adapter_config.json").is_file()
    assert {config.r for config in names["trained_model"].peft_config.values()} == {16}
    assert isinstance(names["answer"], str)


def test_a_large_model_is_trained_by_qlora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = TRAINER.replace("(model, lora_config,", "(model, qlora_config,")
    names = executed(TEXTS, QLORA, trainer)
    summary = json.loads((tmp_path / "outputs" / "run-1" / "summary.json").read_text("utf-8"))
    assert summary["method"] == "qlora"
    assert layers(names["trained_model"], 4)


def test_a_model_over_two_gpus_names_the_gpus_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    config = executed(MULTI_GPU)["config"]
    assert config.max_memory_per_gpu == {0: "22GB", 1: "22GB"}
    assert config.fp16
    assert config.gradient_checkpointing
    trainer = aift_ray.AdvancedMultiGPUTrainer(aift_ray.JapaneseModel("hina-4m"), config)
    with pytest.raises(aift_ray.ConfigError, match="names GPU 0, 1, and this machine has 0"):
        trainer.train(["富士山は高い。"])


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_over_the_devices_that_are_there_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # the reference's example, without the GPUs that it names
    example = re.sub(r"    max_memory_per_gpu=.*\n", "    max_steps=2,\n", MULTI_GPU)
    config = executed(example)["config"]
    trainer = aift_ray.AdvancedMultiGPUTrainer(aift_ray.JapaneseModel("hina-4m"), config)
    trained = trainer.train(["富士山は高い。", "琵琶湖は広い。"])
    assert trained.config.num_hidden_layers == 4
    summary = json.loads((tmp_path / "outputs" / "run-1" / "summary.json").read_text("utf-8"))
    assert summary["strategy"] == "model_parallel"
    assert summary["world_size"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_pipeline_of_two_workers_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = aift_ray.MultiGPUTrainingConfig(
        "pipeline", pipeline_parallel_size=2, max_steps=2, batch_size=1
    )
    trainer = aift_ray.AdvancedMultiGPUTrainer(aift_ray.JapaneseModel("hina-4m"), config)
    trained = trainer.train(["富士山は高い。", "琵琶湖は広い。"])
    assert trained.config.num_hidden_layers == 4
    summary = json.loads((tmp_path / "outputs" / "run-1" / "summary.json").read_text("utf-8"))
    assert (summary["strategy"], summary["world_size"]) == ("pipeline", 2)
