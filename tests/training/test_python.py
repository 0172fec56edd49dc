"""What Python adds to the command: callbacks, datasets, PEFT's settings, a process left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModelForCausalLM

import aift_ray
from aift_ray import (
    Callback,
    FullFinetuningTrainer,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
    MultiGPUTrainingConfig,
    TextDataset,
)
from aift_ray.errors import ConfigError, DataError, ModelError
from tests.conftest import ROOT, make_tiny_model
from tests.training.test_trainers import ROWS, TEXTS, logits, losses, settings

LORA = LoRAConfig(r=4, lora_dropout=0.0)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return found


class Recorder(Callback):
    """Keeps what it hears; stops at a step."""

    def __init__(self, stop_at: int = 0, fail_at: int = 0) -> None:
        self.steps: list[dict[str, Any]] = []
        self.evaluated: list[dict[str, Any]] = []
        self.saved: list[tuple[int, bool]] = []
        self.stop_at, self.fail_at = stop_at, fail_at

    def on_step(self, metrics: dict[str, Any]) -> bool | None:
        self.steps.append(metrics)
        if metrics["step"] == self.fail_at:
            raise KeyError("of the user's own")
        return metrics["step"] == self.stop_at

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        self.evaluated.append(metrics)

    def on_save(self, step: int, folder: Path) -> None:
        self.saved.append((step, (folder / "manifest.json").is_file()))


def train(model: Path, folder: Path, *, texts: Any = TEXTS, **options: Any) -> Any:
    values = options.pop("values", {})
    held_out = options.pop("eval_texts", None)
    trainer = FullFinetuningTrainer(
        JapaneseModel(str(model)), settings(folder, **values), **options
    )
    return trainer.train(texts, held_out)


def test_a_callback_hears_of_every_step_evaluation_and_checkpoint(
    tiny_model: Path, tmp_path: Path
) -> None:
    heard = Recorder()
    values = {"logging_steps": 10, "save_steps": 2, "eval_steps": 2}
    train(tiny_model, tmp_path / "run", callbacks=[heard], values=values, eval_texts=TEXTS[:2])
    assert [line["step"] for line in heard.steps] == [1, 2, 3]
    assert all(line["loss"] > 0 for line in heard.steps)
    assert [line["step"] for line in heard.evaluated] == [0, 2, 3]
    assert heard.saved == [(2, True), (3, True)]
    assert not list((tmp_path / "run").glob(".e*")), "nothing is left of it"


def test_a_callback_stops_a_run_with_its_model(tiny_model: Path, tmp_path: Path) -> None:
    heard = Recorder(stop_at=2)
    values = {"num_epochs": 5}
    trained = train(tiny_model, tmp_path / "run", callbacks=[heard], values=values)
    found = summary(tmp_path / "run")
    assert (found["status"], found["stopped_early"], found["steps"]) == ("done", True, 3)
    assert torch.equal(
        logits(trained), logits(JapaneseModel(str(tmp_path / "run" / "model")).load_model())
    )
    assert heard.saved[-1] == (3, True)


def test_an_error_of_a_callback_is_raised_after_a_checkpoint(
    tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyError, match="of the user's own"):
        train(tiny_model, tmp_path / "run", callbacks=[Recorder(fail_at=1)])
    assert summary(tmp_path / "run")["status"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()
    with pytest.raises(ConfigError, match=r"callbacks\[0\]: int has none of on_step"):
        train(tiny_model, tmp_path / "other", callbacks=[3])
    with pytest.raises(
        ConfigError, match=r"is a class, expected an object of it\n +give Recorder\(\)"
    ):
        train(tiny_model, tmp_path / "other", callbacks=[Recorder])


@pytest.mark.ray
def test_callbacks_are_called_here_while_ray_workers_train(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    heard = Recorder(stop_at=2)
    values = {"num_epochs": 400, "save_steps": 1000, "batch_size": 2}
    ray = {"num_workers": 2}
    trained = train(tiny_model, tmp_path / "run", callbacks=[heard], values=values, ray=ray)
    found = summary(tmp_path / "run")
    assert (found["status"], found["stopped_early"]) == ("done", True)
    assert 2 < found["steps"] < 1200
    assert [line["step"] for line in heard.steps] == list(range(1, found["steps"] + 1))
    assert heard.saved == [(found["steps"], True)]
    assert trained is not None


class Doubled(TextDataset):
    """Its items are not those of its texts."""

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        item = super().__getitem__(idx)
        half = item["input_ids"].shape[0] // 2
        item["labels"][:4] = -100
        return {name: value[:half] for name, value in item.items()}


class Few(Dataset[dict[str, str]]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, str]:
        return ROWS[index]


class Stream(IterableDataset[str]):
    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)


def test_a_dataset_is_read_through_its_items(tiny_model: Path, tmp_path: Path) -> None:
    model = JapaneseModel(str(tiny_model))
    tokenizer = model.load_tokenizer()
    dataset = Doubled(TEXTS, tokenizer, 64)
    FullFinetuningTrainer(model, settings(tmp_path / "a"), dataset).train()
    first = json.loads((tmp_path / "a" / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    sizes = [int((item["labels"] != -100).sum()) for item in (dataset[i] for i in range(12))]
    assert first["supervised_tokens"] < max(sizes) * 4 + 1
    total = sum(
        json.loads(line)["supervised_tokens"]
        for line in (tmp_path / "a" / "metrics.jsonl").read_text("utf-8").splitlines()
        if "loss" in line
    )
    assert total == sum(sizes)
    train(tiny_model, tmp_path / "b", texts=None, train_dataset=Stream())
    train(tiny_model, tmp_path / "c")
    assert losses(tmp_path / "b") == losses(tmp_path / "c")
    train(tiny_model, tmp_path / "d", texts=None, train_dataset=Few())
    train(tiny_model, tmp_path / "e", texts=ROWS[:3])
    assert losses(tmp_path / "d") == losses(tmp_path / "e")


def test_wrong_items_are_named_by_their_index(tiny_model: Path, tmp_path: Path) -> None:
    def refused(items: Any) -> str:
        with pytest.raises(DataError) as error:
            train(tiny_model, tmp_path / "run", texts=None, train_dataset=items)
        return str(error.value)

    one = {"input_ids": [5, 6, 7]}
    found = refused(
        [
            one,
            {"input_ids": [5, 99_999_999]},
            {"input_ids": [5, 6], "labels": [6, 7]},
            {"input_ids": [5, 6], "labels": [5]},
            {"input_ids": [[5, 6]]},
            {"input_ids": [5], "attention_mask": [0]},
            "text",
        ]
    )
    for index, why in enumerate(
        ("outside the vocabulary", "expected the same id", "as many", "one dimension", "no token")
    ):
        assert f"train_dataset[{index + 1}]: " in found
        assert why in found
    assert "train_dataset[6]: str is among token ids" in found
    assert "neither indexed nor iterated" in refused(5)
    with pytest.raises(DataError, match=r"train_texts\[2\]: message 1"):
        train(tiny_model, tmp_path / "run", texts=[*ROWS[:2], {"messages": ["x"]}])


def test_rows_of_python_are_not_written_down(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    secret = "秘密の合言葉は山と川です。"
    train(tiny_model, tmp_path / "run", texts=[*TEXTS, secret])
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any("tokens" in str(path) for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    written = (tmp_path / "run" / "config.yaml").read_text("utf-8")
    assert "python:train_texts.jsonl" in written


def test_settings_of_other_sections_and_overwrite(tiny_model: Path, tmp_path: Path) -> None:
    train(tiny_model, tmp_path / "run", data={"packing": "false"})
    assert "packing: 'false'" in (tmp_path / "run" / "config.yaml").read_text("utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        train(tiny_model, tmp_path / "run")
    train(tiny_model, tmp_path / "run", overwrite=True)
    file = tmp_path / "rows.txt"
    file.write_text("\n".join(TEXTS), "utf-8")
    data = aift_ray.DataConfig(train_files=[str(file)])
    train(tiny_model, tmp_path / "files", texts=None, data=data)
    assert losses(tmp_path / "files") == losses(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"conflicts with data\.train_files"):
        train(tiny_model, tmp_path / "x", data=data)
    with pytest.raises(ConfigError, match=r"ray\.resize_seconds: acts on Ray workers"):
        train(tiny_model, tmp_path / "x", ray={"resize_seconds": 5})
    with pytest.raises(ConfigError, match=r"data\.pakking"):
        train(tiny_model, tmp_path / "x", data={"pakking": "fill"})


def saved_by_peft(model: Path, folder: Path, **values: Any) -> Path:
    config = LoraConfig(**({"r": 3, "lora_alpha": 9, "task_type": "CAUSAL_LM"} | values))
    torch.manual_seed(1)
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder)
    return folder


# what PEFT warns of is merged exactly
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        pytest.param({"target_modules": "all-linear", "use_rslora": True}, marks=pytest.mark.slow),
        pytest.param(
            {"target_modules": ["q_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 5}},
            marks=pytest.mark.slow,
        ),
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "modules_to_save": ["norm"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
)
def test_an_adapter_of_peft_is_continued(
    values: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    adapter = saved_by_peft(tiny_model, tmp_path / "peft", **values)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        before = logits(PeftModel.from_pretrained(base, str(adapter)))
    config = LoRAConfig(init_from=str(adapter), lora_dropout=0.0)
    still = settings(tmp_path / "still", learning_rate=1e-10, max_steps=1)
    model = JapaneseModel(str(tiny_model))
    trained = LoRAFinetuningTrainer(model, config, still).train(ROWS)
    assert torch.allclose(logits(trained), before, atol=1e-5), "it starts as PEFT has it"
    run = settings(tmp_path / "run", save_steps=1)
    LoRAFinetuningTrainer(JapaneseModel(str(tiny_model)), config, run).train(ROWS)
    whole = losses(tmp_path / "run")
    assert len(whole) == 3
    again = LoRAFinetuningTrainer(JapaneseModel(str(tiny_model)), config, run)
    again.train(ROWS, resume_from_checkpoint=str(tmp_path / "run" / "checkpoints" / "step-1"))
    assert losses(tmp_path / "run") == whole
    saved = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text("utf-8"))
    assert (saved["r"], saved["lora_alpha"]) == (3, 9)
    assert saved.get("rank_pattern", {}) == values.get("rank_pattern", {})
    assert "r: 3" in (tmp_path / "run" / "config.yaml").read_text("utf-8")


def test_an_adapter_of_experts_is_continued(
    tiny_mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    values = {"target_modules": ["q_proj"], "target_parameters": stacks}
    adapter = saved_by_peft(tiny_mixture, tmp_path / "peft", **values)
    opened: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_mixture), str(adapter), is_trainable=True
    )
    with torch.no_grad():
        before = logits(opened)
    number = sum(p.numel() for p in opened.parameters() if p.requires_grad)
    config = LoRAConfig(init_from=str(adapter), lora_dropout=0.0)
    still = settings(tmp_path / "still", learning_rate=1e-10, max_steps=1)
    trained = LoRAFinetuningTrainer(JapaneseModel(str(tiny_mixture)), config, still).train(ROWS)
    assert torch.allclose(logits(trained), before, atol=1e-5)
    assert f"{number:,} trained parameters" in capsys.readouterr().out
    kept = (tmp_path / "still" / "config.yaml").read_text("utf-8")
    assert "experts: true" in kept
    assert "base_layer" not in kept


def test_an_adapter_that_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = saved_by_peft(tiny_model, tmp_path / "peft", target_modules=["q_proj"])
    run = settings(tmp_path / "run", max_steps=1)

    def start(model: Path | str, **values: Any) -> Any:
        config = LoRAConfig(init_from=str(adapter), **values)
        return LoRAFinetuningTrainer(JapaneseModel(str(model)), config, run).train(ROWS)

    with pytest.raises(
        ConfigError, match=r"lora\.r: 8 is not the adapter's 3(.|\n)*target_modules"
    ):
        start(tiny_model, r=8, target_modules=["v_proj"])
    with pytest.raises(ConfigError, match="both say where the adapters start"):
        start(tiny_model, init_lora_weights="pissa")
    with pytest.raises(ModelError, match="another base"):
        start(make_tiny_model(tmp_path / "other", hidden_size=32))
    with pytest.raises(ModelError, match="no such folder"):
        LoRAFinetuningTrainer(
            JapaneseModel(str(tiny_model)), LoRAConfig(init_from="nowhere"), run
        ).train(ROWS)


def test_pefts_own_settings_are_taken_or_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=5, lora_alpha=7, target_modules=["q_proj", "o_proj"], use_dora=True)
    run = settings(tmp_path / "run", max_steps=1)
    trained: Any = LoRAFinetuningTrainer(JapaneseModel(str(tiny_model)), config, run).train(ROWS)
    made = trained.peft_config["default"]
    assert (made.r, made.lora_alpha, made.lora_dropout, made.use_dora) == (5, 7, 0.0, True)
    assert set(made.target_modules) == {"q_proj", "o_proj"}
    usual = LoraConfig()
    run = settings(tmp_path / "usual", max_steps=1)
    trained = LoRAFinetuningTrainer(JapaneseModel(str(tiny_model)), usual, run).train(ROWS)
    chosen = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig())
    own = {n for n, p in trained.named_parameters() if p.requires_grad}
    assert own == {n for n, p in chosen.named_parameters() if p.requires_grad}
    wrong = LoraConfig(rank_pattern={"q_proj": 3}, init_lora_weights="olora", target_modules="a.*")
    with pytest.raises(ConfigError) as error:
        LoRAFinetuningTrainer(JapaneseModel(str(tiny_model)), wrong, run).train(ROWS)
    assert {problem.where for problem in error.value.problems} == {
        "rank_pattern",
        "init_lora_weights",
        "target_modules",
    }


SNAPSHOT = """
import hashlib, logging, os, random, signal, sys, warnings
import numpy, torch, transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
def digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()
def snapshot():
    return {
        "environment": dict(os.environ), "warnings": list(warnings.filters),
        "verbosity": transformers.logging.get_verbosity(),
        "bars": (transformers.logging.is_progress_bar_enabled(), are_progress_bars_disabled()),
        "levels": {n: logging.getLogger(n).level for n in ("", "ray", "transformers", "peft")},
        "torch": (digest(torch.get_rng_state().tolist()), torch.get_num_threads(),
                  torch.get_default_dtype(), torch.is_grad_enabled()),
        "random": (digest(random.getstate()), digest(numpy.random.get_state()[1].tolist())),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, os.getcwd(), sys.path[:]),
    }
if sys.argv[3] == "1":
    # puts a folder and a hook of its own into sys as it is imported
    import ray
before = snapshot()
"""
USE = """
import aift_ray
from aift_ray import *
model, folder, workers = sys.argv[1:4]
rows = [{"instruction": f"{i}を言って。", "output": f"はい、{i}です。"} for i in range(8)]
config = TrainingConfig(max_steps=1, output_dir=folder, learning_rate=1e-3)
more = {"ray": {"num_workers": 1}} if workers == "1" else {}
base = JapaneseModel(model)
LoRAFinetuningTrainer(base, LoRAConfig(r=2), config, **more).train(rows)
base.generate_japanese("こんにちは", max_new_tokens=2, do_sample=False)
try:
    FullFinetuningTrainer(base, config).train(rows)
except ConfigError:
    pass
after = snapshot()
changed = {name for name in before if before[name] != after[name]}
assert not changed, {n: (before[n], after[n]) for n in changed}
"""


@pytest.mark.parametrize(
    "workers", ["0", pytest.param("1", marks=[pytest.mark.ray, pytest.mark.slow])]
)
def test_nothing_global_is_changed_in_the_users_process(
    workers: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-c", SNAPSHOT + USE, str(tiny_model), str(tmp_path / "run")]
    ended = subprocess.run([*command, workers], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_any_trainer_takes_what_one_takes(tiny_model: Path, tmp_path: Path) -> None:
    config = MultiGPUTrainingConfig("ddp", output_dir=str(tmp_path / "run"))
    model, heard = JapaneseModel(str(tiny_model)), [Recorder()]
    trainer = aift_ray.AdvancedMultiGPUTrainer(
        model, config, lora_config=LORA, callbacks=heard, data={"packing": "fill"}, overwrite=True
    )
    assert trainer.options.data == {"packing": "fill"}
    assert LoRAFinetuningTrainer(model, LORA, config, overwrite=True).options.overwrite
