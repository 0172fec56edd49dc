"""Adapters of PEFT that are no LoRA: refused, with the command that makes a model of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftType,
    get_peft_model,
)
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig

from aift_ray.errors import ModelError, Problem
from aift_ray.models.japanese_model import JapaneseModel
from aift_ray.models.load import load_model
from aift_ray.models.lora.adapter_config import CONFIG, adapter_config

TARGETS = ["q_proj", "down_proj"]
BLOCKS = {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["down_proj"], "nblocks": 2}
MERGED = [
    LoraConfig(r=4, target_modules=TARGETS, monteclora_config=MontecloraConfig()),
    LoraConfig(r=4, target_modules=TARGETS, kasa_config=KasaConfig()),
    LoraConfig(r=4, target_modules=TARGETS, use_bdlora=BdLoraConfig(**BLOCKS)),
    LoHaConfig(r=4, target_modules=TARGETS),
    LoKrConfig(r=4, target_modules=TARGETS),
    OFTConfig(oft_block_size=4, target_modules=TARGETS),
    IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
]


def refused(folder: Path) -> Problem:
    with pytest.raises(ModelError) as found:
        adapter_config(folder, "adapter x")
    [problem] = found.value.problems
    assert problem.where == "adapter x"
    return problem


@pytest.mark.parametrize("kind", sorted({kind.value for kind in PeftType} - {"LORA"}))
def test_every_other_kind_is_told_what_is_supported_and_what_to_do(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": kind}), "utf-8")
    problem = refused(tmp_path)
    assert f"{kind!r}: of PEFT's adapters only 'LORA', with rsLoRA and DoRA, is" in problem.what
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(kind))
    # the layers of both compute from the input which adapters count
    if hasattr(tuner, "merge_and_unload") and kind not in ("POLY", "XLORA"):
        assert problem.remedy.startswith("merge it: python -c ")
        assert problem.remedy.endswith("give `--model merged`")
    else:
        assert problem.remedy == "train a LoRA adapter"
        assert "can't be merged" in problem.what


NAMES = ["monteclora", "kasa", "bdlora", "loha", "lokr", "oft", "ia3"]


@pytest.mark.parametrize("config", MERGED, ids=NAMES)
def test_the_command_of_the_message_makes_a_model_that_computes_the_same(
    config: PeftConfig, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.task_type = peft.TaskType.CAUSAL_LM
    torch.manual_seed(0)
    adapted: Any = get_peft_model(load_model(str(tiny_model), torch.float32, "eager"), config)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) / 20)
    adapted.save_pretrained(tmp_path / "it's mine")
    remedy = refused(tmp_path / "it's mine").remedy
    words = shlex.split(remedy.splitlines()[0].removeprefix("merge it: "))
    assert words[:2] == ["python", "-c"]
    monkeypatch.chdir(tmp_path)
    exec(words[2], {})
    merged, ids = JapaneseModel("merged"), torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted, found = adapted.eval()(ids).logits, merged.load_model()(ids).logits
        plain = load_model(str(tiny_model), torch.float32, "eager").eval()(ids).logits
    torch.testing.assert_close(found.float(), wanted, rtol=1e-4, atol=1e-4)
    assert (plain - wanted).abs().max() > 1e-3
