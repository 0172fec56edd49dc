"""A folder in fewer bits of a model with towers: whatever opens the source opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from aift_ray import quantize
from aift_ray.models import load
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.utils.exit_status import guarded
from tests.helpers.tiny_families import make, save, with_towers
from tests.quantization.conftest import Quantize
from tests.serving.test_families import made

IDS = torch.arange(5, 25)[None]


def answers(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize(("family", "bits"), [("qwen3_5", "4"), ("qwen3_5", "8"), ("mllama", "4")])
def test_a_model_whose_language_model_is_opened_alone_stays_whole(
    run: Quantize, family: str, bits: str, tmp_path: Path
) -> None:
    source = save(with_towers(family), tmp_path / "source")
    folder = run("--bits", bits, "--eval-rows", "0", model=source)
    whole = AutoModelForMultimodalLM.from_pretrained(folder)
    wanted = answers(whole)
    assert torch.equal(answers(AutoModelForCausalLM.from_pretrained(folder)), wanted)
    assert torch.equal(answers(load.load_model(str(folder), None, None)), wanted)
    before, after = (load_file(one / "model.safetensors") for one in (source, folder))
    towers = [name for name in before if "visual" in name or "vision" in name]
    assert towers
    assert all(torch.equal(after[name], before[name]) for name in towers)
    plain = answers(AutoModelForMultimodalLM.from_pretrained(source))
    assert 0 < (wanted - plain).abs().max() < plain.abs().max()


@pytest.mark.parametrize(
    ("family", "what", "layout"),
    [
        ("llama4", "Llama4TextExperts", "serve it with --load-in 4bit"),
        ("falcon", "FalconLinear", "leave it in 16 bits"),
    ],
)
def test_a_family_that_no_folder_in_fewer_bits_holds_is_refused(
    family: str, what: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wraps = family == "llama4"
    source = save(with_towers(family), tmp_path) if wraps else make(family, tmp_path)
    assert guarded(quantize.run, ["--model", str(source), "--bits", "4", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert f"model family {family}" in told
    assert what in told
    assert layout in told
    assert "choose another model, such as " in told


def test_layers_in_8_bits_take_four_dimensions(tmp_path: Path) -> None:
    """The keys of a DeepSeek are made of inputs by batch, head and token."""
    folder = str(made("deepseek_v3", tmp_path))
    held = load.load_model(folder, torch.float32, "eager", Quantization(8, threshold=0.0))
    found, wanted = answers(held), answers(load.load_model(folder, torch.float32, "eager"))
    assert (found - wanted).norm() < 0.2 * wanted.norm()
