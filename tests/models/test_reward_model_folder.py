"""A reward model, or its adapter, is refused by name wherever a language model is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from aift_ray import JapaneseModel, evaluate, export, quantize, serve, train
from aift_ray.commandline import validated
from aift_ray.errors import ConfigError, ModelError
from aift_ray.models.base_and_adapter import find_place
from aift_ray.runs.prepare import prepare
from aift_ray.utils.exit_status import guarded
from tests.conftest import ROOT, SHIPPED
from tests.helpers.preference_rows import pairs, write

KEITAI = ROOT / "aift_ray" / "data" / "assets" / "keitai"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a full run of objective reward leaves, with the shipped model's tied embeddings."""
    return made(tmp_path_factory.mktemp("scorer") / "model", 1)


def made(folder: Path, labels: int) -> Path:
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(SHIPPED)
    config.num_labels, config.num_hidden_layers = labels, 2
    # weights without a name of the output layer would load as those of a language model
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    return folder


# a verb, and what it is given beside the model; OUT stands for a folder with rows
VERBS: dict[str, tuple[Any, str]] = {
    "train": (train.run, "--train-file OUT/rows.jsonl --output-dir OUT/o --model"),
    "reference": (
        train.run,
        "--train-file OUT/rows.jsonl --output-dir OUT/o --objective dpo --reference",
    ),
    "serve": (serve.run, "--model"),
    "quantize": (quantize.run, "--output-dir OUT/o --model"),
    "export": (export.run, "--format gguf --output OUT/o --model"),
    "evaluate": (evaluate.run, f"--task {KEITAI}/eval.jsonl --output OUT/o --model"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_reward_model(
    verb: str, scorer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "rows.jsonl", pairs(4))
    run, given = VERBS[verb]
    argv = [*given.replace("OUT", str(tmp_path)).split(), str(scorer)]
    assert guarded(run, argv) == 2
    said = capsys.readouterr().err
    assert "LlamaForSequenceClassification" in said
    assert "no language model" in said
    assert not (tmp_path / "o").exists()


def test_python_refuses_a_reward_model(scorer: Path) -> None:
    with pytest.raises(ModelError, match="LlamaForSequenceClassification"):
        JapaneseModel(str(scorer)).load_model()


def test_an_adapter_of_a_reward_model_is_refused(tmp_path: Path) -> None:
    told = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "hina-4m"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told), "utf-8")
    with pytest.raises(ModelError, match="SEQ_CLS"):
        find_place(str(tmp_path))


def test_a_reward_model_is_trained_further_and_other_classifiers_are_not(
    scorer: Path, tmp_path: Path
) -> None:
    rows = str(write(tmp_path / "rows.jsonl", pairs(4)))

    def prepared(model: Path, **more: Any) -> Any:
        data = {"train_files": [rows]}
        config = validated({"model": str(model), "objective": "reward", "data": data} | more)
        return prepare(config, tmp_path / "out", 1, False, None)

    assert prepared(scorer).steps
    with pytest.raises(ConfigError, match="classifier of 3 labels"):
        prepared(made(tmp_path / "three", 3))
    with pytest.raises(ConfigError, match="lm_head is the output layer"):
        prepared(SHIPPED, lora={"modules_to_save": ["lm_head"]})
