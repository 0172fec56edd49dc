"""Adapters on embeddings and an output layer that share a weight: merged, they compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests.conftest import SHIPPED
from tests.quantization.conftest import Quantize, make_adapter

# of PEFT itself, whose models are what is compared with
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IDS = torch.tensor([[5, 99, 1203, 42, 7, 3000]])
EMBED, HEAD = "embed_tokens", "lm_head"
# what is adapted, PEFT's further options, and whether the merged folder can hold one weight
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "embeddings": ({"target_modules": ["q_proj", EMBED]}, False),
    "output layer": ({"target_modules": ["q_proj", HEAD]}, False),
    "both apart": ({"target_modules": [EMBED, HEAD]}, False),
    "both tied": ({"target_modules": [EMBED, HEAD], "ensure_weight_tying": True}, True),
    "dora": ({"target_modules": ["q_proj", EMBED], "use_dora": True}, False),
    "whole": ({"target_modules": ["q_proj"], "modules_to_save": [EMBED]}, False),
    "whole and adapted": ({"target_modules": [EMBED], "modules_to_save": [HEAD]}, False),
    "whole tied": (
        {"target_modules": ["q_proj"], "modules_to_save": [EMBED], "ensure_weight_tying": True},
        True,
    ),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def moved(folder: Path) -> None:
    """As after training: what is trained as a whole is another, adapters are small."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    # random ones as large as PEFT's give logits of thousands, whose rounding would be compared
    save_file(
        {k: v / 4 if "lora_" in k else v + 0.01 * torch.randn_like(v) for k, v in weights.items()},
        file,
    )


@pytest.mark.parametrize("case", list(CASES))
def test_a_merged_model_is_base_and_adapter(run: Quantize, tmp_path: Path, case: str) -> None:
    options, tied = CASES[case]
    adapter = make_adapter(SHIPPED, tmp_path / "adapter", **options)
    moved(adapter)
    plain = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    assert plain.config.tie_word_embeddings
    before = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, adapter))
    assert (expected - before).abs().max() > 0.1
    flags = ["--adapter", str(adapter), "--compute-dtype", "fp32", "--eval-rows", "0"]
    folder = run(*flags, "--bits", "16", model=SHIPPED)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-5)
    assert merged.config.tie_word_embeddings is tied
    shared = merged.lm_head.weight is merged.get_input_embeddings().weight
    assert shared is tied


@pytest.mark.parametrize("targets", [[EMBED], [EMBED, HEAD]])
def test_an_adapter_that_peft_saves_with_the_tables_that_it_adapts_is_merged(
    run: Quantize, tmp_path: Path, targets: list[str]
) -> None:
    adapter = make_adapter(SHIPPED, tmp_path / "adapter", True, target_modules=targets)
    moved(adapter)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        assert "base_model.model.model.embed_tokens.base_layer.weight" in file.keys()  # noqa: SIM118
    plain = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(plain, adapter))
    flags = ["--adapter", str(adapter), "--compute-dtype", "fp32", "--eval-rows", "0"]
    folder = run(*flags, "--bits", "16", model=SHIPPED)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-5)


def test_what_was_untied_goes_into_fewer_bits(run: Quantize, tmp_path: Path) -> None:
    options, _ = CASES["embeddings"]
    adapter = make_adapter(SHIPPED, tmp_path / "adapter", **options)
    plain = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(plain, adapter))
    folder = run("--adapter", str(adapter), "--bits", "8", "--eval-rows", "0", model=SHIPPED)
    found = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert (found.float() - expected).abs().mean() < 0.1 * expected.std()
