"""An adapter in a GGUF file, merged and alone, acts in llama.cpp as PEFT has it act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from aift_ray import export
from aift_ray.utils.exit_status import guarded
from tests.conversion.test_gguf_families import PROMPT, exported
from tests.helpers.llama_cpp import LlamaCpp
from tests.quantization.conftest import make_adapter

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def far(server: LlamaCpp, logits: torch.Tensor) -> list[int]:
    """Tokens whose probability is another."""
    ours = logits.double().log_softmax(-1)
    theirs = server.next_logprobs(PROMPT[:9], 20)
    assert theirs
    return [token for token, value in theirs.items() if abs(ours[token] - value) > 2e-3]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="lora"),
        pytest.param({"use_rslora": True}, id="rslora", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_acts_the_same_merged_and_alone(
    options: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    settings = {"target_modules": LAYERS, "lora_alpha": 12} | options
    adapter = make_adapter(tiny_model, tmp_path / "adapter", **settings)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    prompt = torch.tensor([PROMPT[:9]])
    with torch.no_grad():
        plain = base(prompt).logits[0, -1]
        logits = PeftModel.from_pretrained(base, adapter).eval()(prompt).logits[0, -1]
    flags = ("--outtype", "f32", "--adapter", str(adapter))
    merged = exported(tiny_model, tmp_path / "merged.gguf", *flags)
    assert far(LlamaCpp(merged), logits) == []
    alone = exported(tiny_model, tmp_path / "lora.gguf", *flags[2:], "--merge-adapter", "false")
    model = exported(tiny_model, tmp_path / "base.gguf", *flags[:2])
    assert far(LlamaCpp(model, lora=[alone]), logits) == []
    assert far(LlamaCpp(model), plain) == []
    assert far(LlamaCpp(model), logits) != []


def test_what_an_adapter_file_can_not_hold_is_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter", use_dora=True)
    flags = ["--model", str(tiny_model), "--adapter", str(adapter), "--merge-adapter", "false"]
    flags += ["--output", str(tmp_path / "out.gguf")]
    assert guarded(export.run, flags) == 2
    assert "use_dora has no place in a GGUF file" in capsys.readouterr().err
    assert not (tmp_path / "out.gguf").exists()
