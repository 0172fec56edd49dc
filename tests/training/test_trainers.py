"""The documented trainers, in this process and on Ray workers."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import aift_ray
from aift_ray import (
    AdvancedMultiGPUTrainer,
    FullFinetuningTrainer,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
    MultiGPUTrainingConfig,
    TextDataset,
    TrainingConfig,
)
from aift_ray.commandline import validated
from aift_ray.config import ParallelConfig, RunConfig
from aift_ray.errors import ConfigError, DataError, ModelError
from aift_ray.models.fingerprint import fingerprint
from aift_ray.models.provenance import remembered
from aift_ray.training import trainer_run
from tests.conftest import make_tiny_model

TEXTS = [f"{i}番目の日は晴れで、{'とても' * (i % 4)}暖かい一日だった。" for i in range(12)]
ROWS = [{"instruction": f"{i}を言って。", "output": f"はい、{i}です。"} for i in range(12)]


def settings(folder: Path | None, **values: Any) -> TrainingConfig:
    usual: dict[str, Any] = {
        "learning_rate": 1e-3,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_steps": 2,
    }
    named = {"output_dir": str(folder)} if folder else {}
    return TrainingConfig(**(usual | named | values))


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[5, 6, 7, 8]])).logits
        return found


def test_full_training_returns_the_model_that_its_folder_holds(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = JapaneseModel(str(tiny_model))
    trainer = FullFinetuningTrainer(model, settings(tmp_path / "run"))
    trained = trainer.train(train_texts=TEXTS, eval_texts=TEXTS[:3])
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["status"] == "done"
    assert summary["eval_loss"] < summary["eval_loss_before"]
    again = JapaneseModel(str(tmp_path / "run" / "model")).load_model()
    assert torch.equal(logits(trained), logits(again))
    assert model.load_model() is trained
    assert set(remembered(tmp_path / "run" / "model")) == {"tokenizer", "chat_template"}
    assert model.generate_japanese("こんにちは", max_new_tokens=3, do_sample=False) is not None


def test_rows_beyond_the_context_are_trained_with_scaled_positions(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "short", max_position_embeddings=48)
    long = {"sequence_length": 96}

    def trainer(scaling: str | None) -> LoRAFinetuningTrainer:
        config = settings(tmp_path / "run", max_steps=1)
        return LoRAFinetuningTrainer(
            JapaneseModel(str(folder)), LoRAConfig(r=4), config, data=long, rope_scaling=scaling
        )

    with pytest.raises(ConfigError, match="rope_scaling='yarn:2'"):
        trainer(None).train(TEXTS)
    with pytest.raises(ConfigError, match=r"rope_scaling: .*KIND:FACTOR"):
        trainer("ntk").train(TEXTS)
    trained: Any = trainer("yarn:2").train(TEXTS)
    assert trained.config.rope_parameters["rope_type"] == "yarn"
    assert trained.config.max_position_embeddings == 96
    assert remembered(tmp_path / "run" / "model")["base"]["rope_scaling"] == "yarn:2"


def test_workers_divide_the_tokens_of_rows_where_the_configuration_says_so(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunConfig] = []

    def started(config: RunConfig, **_: object) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_run.training_run, "run", started)
    config = MultiGPUTrainingConfig(
        strategy="fsdp", context_parallel_size=2, output_dir=str(tmp_path / "run")
    )
    trainer = AdvancedMultiGPUTrainer(
        JapaneseModel(str(tiny_model)), config, ray={"num_workers": 4}, rope_scaling="yarn:4"
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train(TEXTS)
    (found,) = seen
    assert found.parallel.context_parallel_size == 2
    assert found.rope_scaling == "yarn:4"
    lora = LoRAFinetuningTrainer(
        JapaneseModel(str(tiny_model)), LoRAConfig(r=4), config, ray={"num_workers": 2}
    )
    with pytest.raises(KeyboardInterrupt):
        lora.train(TEXTS)
    assert seen[-1].parallel == found.parallel


def test_lora_on_instruction_rows_and_its_adapter_loaded_again(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = JapaneseModel(str(tiny_model))
    config = LoRAConfig(r=4, lora_dropout=0.0)
    trainer = LoRAFinetuningTrainer(model, config, settings(tmp_path / "run"))
    trained = trainer.train(train_texts=ROWS)
    adapter = str(tmp_path / "run" / "model")
    numbers = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        again, tokenizer = LoRAFinetuningTrainer.load_lora_model(str(tiny_model), adapter)
        JapaneseModel(adapter).load_model()
    assert torch.equal(torch.get_rng_state(), numbers)
    assert torch.equal(logits(trained), logits(again))
    assert tokenizer.chat_template
    with pytest.raises(ModelError, match="made for another base"):
        LoRAFinetuningTrainer.load_lora_model("hina-4m", adapter)
    recorded = remembered(Path(adapter))
    assert recorded["base"].pop("settings")["hidden_size"] == 64
    assert recorded["base"] == {"name": str(tiny_model), "weights": fingerprint(str(tiny_model))}


def test_layers_trained_as_a_whole_answer_in_16_bits(tiny_model: Path, tmp_path: Path) -> None:
    model = JapaneseModel(str(tiny_model), torch_dtype=torch.bfloat16)
    config = LoRAConfig(r=4, lora_dropout=0.0, modules_to_save=["embed_tokens", "norm"])
    values = settings(tmp_path / "run", precision="bf16", max_steps=2)
    trained = LoRAFinetuningTrainer(model, config, values).train(train_texts=ROWS)
    again = JapaneseModel(str(tmp_path / "run" / "model"), torch_dtype=torch.bfloat16)
    assert torch.allclose(logits(trained), logits(again.load_model()), atol=1e-2)
    assert isinstance(model.generate_japanese("こんにちは", max_new_tokens=3), str)


def test_a_dataset_gives_the_losses_of_its_texts(tiny_model: Path, tmp_path: Path) -> None:
    model = JapaneseModel(str(tiny_model))
    dataset = TextDataset(TEXTS, model.load_tokenizer(), 64)
    FullFinetuningTrainer(model, settings(tmp_path / "a"), dataset).train()
    fresh = JapaneseModel(str(tiny_model))
    FullFinetuningTrainer(fresh, settings(tmp_path / "b"), use_accelerate=False).train(TEXTS)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_the_items_of_a_dataset_have_one_length_and_no_padding_is_trained(
    tiny_model: Path,
) -> None:
    tokenizer = JapaneseModel(str(tiny_model)).load_tokenizer()
    items = [TextDataset(TEXTS, tokenizer, 24)[i] for i in range(len(TEXTS))]
    for item in items:
        assert {name: tuple(value.shape) for name, value in item.items()} == {
            "input_ids": (24,),
            "attention_mask": (24,),
            "labels": (24,),
        }
        seen = item["attention_mask"] == 1
        assert torch.equal(item["labels"][seen], item["input_ids"][seen])
        assert (item["labels"][~seen] == -100).all()
    ended = [item for item in items if not item["attention_mask"].all()]
    assert ended
    assert all(tokenizer.eos_token_id in item["labels"] for item in ended)


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    tiny_model: Path, tmp_path: Path
) -> None:
    FullFinetuningTrainer(JapaneseModel(str(tiny_model)), settings(tmp_path / "whole")).train(TEXTS)
    trainer = FullFinetuningTrainer(JapaneseModel(str(tiny_model)), settings(tmp_path / "run"))
    trainer.train(TEXTS)
    before = losses(tmp_path / "run")
    resumed = FullFinetuningTrainer(JapaneseModel(str(tiny_model)), settings(tmp_path / "run"))
    resumed.train(TEXTS, resume_from_checkpoint=str(tmp_path / "run" / "checkpoints" / "step-2"))
    assert losses(tmp_path / "run") == before == losses(tmp_path / "whole")
    resumed = FullFinetuningTrainer(JapaneseModel(str(tiny_model)), settings(tmp_path / "run"))
    assert resumed.train(TEXTS, resume_from_checkpoint="latest") is not None


def test_runs_in_the_default_folder_are_numbered(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        model = JapaneseModel(str(tiny_model))
        FullFinetuningTrainer(model, settings(None, max_steps=1)).train(TEXTS)
        assert (tmp_path / "outputs" / f"run-{number}" / "model" / "config.json").is_file()


def test_training_works_in_a_thread(tiny_model: Path, tmp_path: Path) -> None:
    model = JapaneseModel(str(tiny_model))
    trainer = FullFinetuningTrainer(model, settings(tmp_path / "run", max_steps=1))
    thread = threading.Thread(target=trainer.train, args=(TEXTS,))
    thread.start()
    thread.join()
    assert losses(tmp_path / "run")


def test_what_can_not_be_trained_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = JapaneseModel(str(tiny_model))
    trainer = FullFinetuningTrainer(model, settings(tmp_path / "run"))
    dataset = TextDataset(TEXTS, model.load_tokenizer())
    with pytest.raises(ConfigError, match="neither texts nor a dataset"):
        trainer.train()
    with pytest.raises(ConfigError, match="train_texts: conflicts with train_dataset"):
        FullFinetuningTrainer(model, settings(tmp_path / "run"), dataset).train(TEXTS)
    with pytest.raises(DataError, match=r"train_texts\[1\]: int is not allowed.*\n.*\[2\]: None"):
        trainer.train(["a", 3, None])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"texts\[0\]: bytes is not allowed: give str"):
        TextDataset([b"x"], model.load_tokenizer())  # type: ignore[list-item]
    with pytest.raises(DataError, match="is empty"):
        trainer.train([])
    with pytest.raises(ConfigError, match="4 bits, which can't be trained"):
        FullFinetuningTrainer(JapaneseModel(str(tiny_model), load_in_4bit=True), TrainingConfig())
    config = LoRAConfig(target_modules=["nothing"])
    adapting = LoRAFinetuningTrainer(model, config, settings(tmp_path / "run"))
    with pytest.raises(ConfigError, match="no layer is called 'nothing'"):
        adapting.train(TEXTS)
    with pytest.raises(ConfigError, match=r"r: 0 is not allowed"):
        LoRAConfig(r=0)
    with pytest.raises(ConfigError, match="strategy: 'magic' is not allowed"):
        MultiGPUTrainingConfig("magic")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("", "utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        FullFinetuningTrainer(model, settings(tmp_path / "full")).train(TEXTS)
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_ray_workers_train_the_model_that_one_process_trains(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = JapaneseModel(str(tiny_model))
    config = MultiGPUTrainingConfig(
        "ddp", **settings(tmp_path / "two").model_dump(exclude_unset=True)
    )
    config.world_size, config.batch_size = 2, 2
    trained = aift_ray.AdvancedMultiGPUTrainer(model, config).train(TEXTS)
    alone = JapaneseModel(str(tiny_model))
    one = FullFinetuningTrainer(alone, settings(tmp_path / "one", batch_size=4)).train(TEXTS)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert torch.allclose(logits(trained), logits(one), atol=1e-4)


@pytest.mark.parametrize(("strategy", "workers"), [("pipeline", 2), ("tensor", 2), ("fsdp", 3)])
def test_the_world_of_a_strategy_is_its_number_of_workers(
    strategy: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, int]] = []

    def run(
        model: Any, config: Any, _rows: Any, sections: dict[str, Any], *_: Any, **__: Any
    ) -> Any:
        training = trainer_run.parts_of(config, aift_ray.TrainingConfig)
        parallel = trainer_run.parts_of(config, ParallelConfig)
        given = {"training": training, "parallel": parallel} | sections
        found.append(validated(given).worker_range(0))

    monkeypatch.setattr(trainer_run, "run", run)
    config = aift_ray.MultiGPUTrainingConfig(strategy, world_size=workers)
    aift_ray.AdvancedMultiGPUTrainer(aift_ray.JapaneseModel("hina-4m"), config).train(["山。"])
    assert found == [(workers, workers)]
