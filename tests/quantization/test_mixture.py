"""A mixture of experts: an adapter on its experts is merged, and its linear layers quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from aift_ray.models import load
from aift_ray.models.bnb.experts_4bit import Packed4bitExperts
from aift_ray.models.families.experts import expert_parameters
from aift_ray.quantization import merge_adapter
from tests.conftest import make_tiny_mixture
from tests.helpers.runs import started, stepped
from tests.quantization.conftest import Quantize, make_adapter

IDS = torch.tensor([[5, 99, 1203, 42, 7, 3000]])
KINDS = ("qwen3_moe", "mixtral", "gpt_oss")
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module", params=KINDS)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixture(tmp_path_factory.mktemp("mixture") / request.param, request.param)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def test_adapters_of_experts_are_merged(mixture: Path, tmp_path: Path) -> None:
    adapter = make_adapter(mixture, tmp_path / "adapter", target_parameters=EXPERTS)
    base = AutoModelForCausalLM.from_pretrained(mixture)
    plain = logits(base)
    wanted = logits(PeftModel.from_pretrained(base, adapter))
    cpu = torch.device("cpu")
    merge_adapter.merge(str(mixture), adapter, torch.float32, cpu, tmp_path / "merged")
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged, wanted, atol=2e-5, rtol=0)
    assert (plain - wanted).abs().max() > 0.01


@pytest.mark.parametrize("bits", ["4", "8"])
def test_a_quantized_mixture_is_read_by_plain_transformers(
    bits: str, mixture: Path, run: Quantize, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("--bits", bits, model=mixture)
    shown = " ".join(capsys.readouterr().out.split())
    assert "147,456 weights of experts too: transformers reads them so only" in shown
    read = AutoModelForCausalLM.from_pretrained(folder)
    experts = [p for name, p in read.named_parameters() if "experts" in name and p.ndim == 3]
    assert {p.dtype for p in experts} == {torch.float32}
    wanted = logits(AutoModelForCausalLM.from_pretrained(mixture))
    found = logits(read)
    # a token may be sent to other experts than before
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=-1).mean() > 0.95
    assert not torch.equal(found, wanted)


def test_qlora_on_a_quantized_folder_holds_the_experts_in_4_bits_too(
    tiny_mixture: Path, run: Quantize, configure: Callable[..., Any], tmp_path: Path
) -> None:
    folder = run("--bits", "4", "--eval-rows", "0", model=tiny_mixture)
    plain = load.load_model(str(folder), torch.float32, None)
    assert len(expert_parameters(plain)) == 2 * 2, "to answer it is what transformers reads"
    assert load.weight_bytes(str(folder), torch.float32) == pytest.approx(
        sum(p.nbytes for p in plain.parameters()), rel=0.01
    )
    more = {"lora__experts": True, "lora__lora_dropout": 0.0, "training__learning_rate": 1e-3}
    runs = [
        started(configure(model=str(m), method="qlora", **more), tmp_path)
        for m in (tiny_mixture, folder)
    ]
    lines = [[line["loss"] for line in stepped(one)] for one in runs]
    assert lines[0] == pytest.approx(lines[1], abs=1e-4)
    packed = [m for m in runs[1].module.modules() if isinstance(m, Packed4bitExperts)]
    assert len(packed) == 2
