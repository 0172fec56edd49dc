"""An adapter that trains rows of the embeddings, served by its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from aift_ray.config import ServeConfig
from aift_ray.errors import ConfigError
from aift_ray.serving import served_models, startup
from tests.conftest import SHIPPED, make_tiny_model

TEXT = "明日は花鳥風月を見る。"


def make(base: Path, folder: Path, tables: list[str], whole: bool = False) -> Path:
    """An adapter with one new token whose rows, or all rows, are random."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.add_tokens(["花鳥風月"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = {key: [len(tokenizer) - 1] for key in tables}
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
    settings |= {"init_lora_weights": False}
    settings |= {"modules_to_save": tables} if whole else {"trainable_token_indices": rows}
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "token_adapter" in name or "modules_to_save" in name:
            nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("tied", "whole"), [(True, False), (False, False), (False, True)])
def test_it_is_merged_and_gives_pefts_logits(tied: bool, whole: bool, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    tables = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    adapter = make(base, tmp_path / "tuned", tables, whole)
    config = served_models.on_base(ServeConfig(model=str(adapter)))
    assert (config.name(), config.engine) == ("tuned", "transformers")
    checked = startup.check(config, gpu=False)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = tokenizer(TEXT).input_ids
    assert checked.encoder.tokenizer(TEXT).input_ids == ids
    assert len(tokenizer) - 1 in ids
    engine: Any = startup._transformers(checked)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    wanted = PeftModel.from_pretrained(plain, adapter).eval()
    with torch.no_grad():
        found = engine._model(torch.tensor([ids])).logits
        torch.testing.assert_close(found, wanted(torch.tensor([ids])).logits, rtol=1e-4, atol=1e-5)


def test_what_does_not_go_with_it_is_named(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    adapter = str(make(base, tmp_path / "tuned", ["embed_tokens"]))
    config = ServeConfig(model=adapter, adapters=["a=b"], load_in="4bit", engine="vllm")
    with pytest.raises(ConfigError) as caught:
        served_models.on_base(config)
    assert [each.where for each in caught.value.problems] == ["adapters", "load_in", "engine"]
