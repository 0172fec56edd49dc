"""Quantized weights as this package loads them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from aift_ray.errors import ModelError
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.load import load_model
from aift_ray.quantization import quantizer
from tests.conftest import SHIPPED

IDS = torch.arange(4, 20)[None]
CPU = torch.device("cpu")


@pytest.mark.parametrize("double", [True, False])
def test_a_stored_4_bit_model_is_safe_to_save_after_an_evaluation(
    double: bool, tmp_path: Path
) -> None:
    form = Quantization(4, torch.bfloat16, double=double)
    quantizer.quantize(str(SHIPPED), form, CPU, tmp_path / "one")
    model = load_model(str(tmp_path / "one"), torch.bfloat16, None).eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    # transformers can't turn what it has read in 4 bits back into its "original format"
    model.save_pretrained(tmp_path / "two", save_original_format=False)
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("repack", [True, False])
def test_an_evaluation_does_not_change_how_it_trains(repack: bool) -> None:
    def gradient(evaluated: bool) -> torch.Tensor:
        form = Quantization(4, torch.float32, repack=repack)
        model = load_model(str(SHIPPED), torch.float32, None, form)
        if evaluated:
            with torch.no_grad():
                model.eval()(IDS)
        inputs = model.get_input_embeddings()(IDS).detach().requires_grad_()
        model.train()(inputs_embeds=inputs, labels=IDS).loss.backward()
        assert inputs.grad is not None
        return inputs.grad

    assert torch.equal(gradient(True), gradient(False))


def test_a_model_without_a_layer_to_quantize_is_refused(tiny_model: Path) -> None:
    form = Quantization(4, skipped=("model", "lm_head"))
    with pytest.raises(ModelError, match="no layer could be held in 4 bits"):
        load_model(str(tiny_model), torch.float32, None, form)


def test_what_a_user_can_not_act_on_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        load_model(str(SHIPPED), torch.bfloat16, None, Quantization(8)).eval()(IDS)
        kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
        kernels.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "x")
        kernels.warning("another matter")
    assert [r.getMessage() for r in caplog.records if "bitsandbytes" in r.name] == [
        "another matter"
    ]
