"""Families whose layers need more than a Llama's, through the documented API, against transformers.

The loss of a run's first step is that of transformers' eager forward of each text alone, and the
trained model answers as transformers' `generate()` does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from aift_ray import FullFinetuningTrainer, JapaneseModel, TextDataset, TrainingConfig
from aift_ray.errors import ModelError
from aift_ray.models.families.family_support import table
from aift_ray.models.families.tiny_model import random_model, shrunk
from tests.families import configuration
from tests.helpers.tiny_families import companions

TEXTS = [
    "富士山は日本でいちばん高い山で、静岡県と山梨県にまたがっています。",
    "雨が降る。",
    "明日は学校に行って、先生に会ってから、図書館で本を読んで、夕方に家へ帰ります。",
]
PROMPT = "次の文を敬体に書き換えてください。"
# each needs something of its own: sinks, caps, scales, windows that no layer hands on, state,
# positions that can't restart, ALiBi, attention that nobody else computes, experts, no keywords
FAMILIES = [
    "gpt_oss",
    "gemma2",
    "granite",
    "stablelm",
    "qwen3_next",
    "mamba2",
    "falcon_h1",
    "lfm2",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "llama4_text",
    "gemma4_text",
]


def made(family: str, folder: Path) -> Path:
    """A folder with a tiny random model of `family` and the shipped tokenizer."""
    config = configuration(family)
    assert config is not None
    tiny: PreTrainedConfig = shrunk(config)
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if hasattr(tiny, name):
            setattr(tiny, name, 5056)
    random_model(tiny, "eager").save_pretrained(folder)
    return companions(folder)


def eager(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


def loss_of_each_text_alone(folder: Path) -> float:
    model, total, count = eager(folder), 0.0, 0
    rows = TextDataset(TEXTS, AutoTokenizer.from_pretrained(folder), max_length=128)
    for row in (rows[i] for i in range(len(rows))):
        ids = row["input_ids"][row["attention_mask"].bool()]
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        total += torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()
        count += len(ids) - 1
    return total / count


def trained(folder: Path, output: Path) -> JapaneseModel:
    config = TrainingConfig(
        learning_rate=1e-5,
        batch_size=3,
        gradient_accumulation_steps=1,
        num_epochs=1,
        warmup_steps=0,
        output_dir=str(output),
        fp16=False,
    )
    model = JapaneseModel(str(folder))
    FullFinetuningTrainer(model, config).train(train_texts=TEXTS)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_and_answers_as_transformers_computes_it(
    family: str, tmp_path: Path
) -> None:
    folder = made(family, tmp_path / "model")
    model = trained(folder, tmp_path / "run")
    (line, *_) = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["loss"] == pytest.approx(loss_of_each_text_alone(folder), rel=1e-5)
    answered = model.generate_japanese(PROMPT, do_sample=False, max_new_tokens=8)
    # the saved folder, by transformers alone
    saved = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(saved)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    asked.pop("token_type_ids", None)
    with torch.no_grad():
        output = eager(saved).generate(**asked, do_sample=False, max_new_tokens=8)
    new = output[0, asked["input_ids"].shape[1] :]
    wanted = tokenizer.decode(new, skip_special_tokens=True)
    assert answered.rstrip("\ufffd").strip() == wanted.rstrip("\ufffd").strip()


def test_a_family_of_the_table_that_is_refused_is_one_message_before_the_start(
    tmp_path: Path,
) -> None:
    assert "phimoe" in table()
    folder = made("phimoe", tmp_path / "model")
    with pytest.raises(ModelError, match="family phimoe"):
        trained(folder, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
