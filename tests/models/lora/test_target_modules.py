"""Adapters go on every linear map of the decoder blocks, in models of many families, and as many
weights are planned as the model has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from aift_ray.config import LoRAConfig
from aift_ray.errors import AiftError
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.load import load_model, skeleton
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.models.lora.attach import add_adapters
from aift_ray.models.model_stats import measured
from aift_ray.serving.engines.transformers.lora_manager import Adapters
from tests.helpers.tiny_families import make

FAMILIES = ("gpt2", "gpt_neox", "falcon", "bloom", "opt", "phi", "mpt", "gptj", "olmo2", "granite")
FAMILIES += ("stablelm", "cohere2", "deepseek_v3", "gpt_bigcode", "starcoder2", "openai-gpt")
FAMILIES += (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "codegen",
    "lfm2",
    "mamba",
    "falcon_h1",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_the_weights_that_there_are(
    family: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    location = str(make(family, tmp_path))
    model = AutoModelForCausalLM.from_pretrained(location)
    wanted = sum(p.numel() for p in model.parameters())
    lora = {"r": 4, "lora_dropout": 0.0}
    planned = measured(location, configure(model=location, method="lora", lora=lora))
    assert planned.shape.parameters == wanted
    adapted = add_adapters(load_model(location, None, None), LoRAConfig(r=4), location)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == planned.shape.adapter_parameters(4) > 0


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "falcon", "bloom", "opt", "phi", "gptj"])
def test_adapters_are_those_that_peft_puts_on_all_linear_layers(
    family: str, tmp_path: Path
) -> None:
    location = str(make(family, tmp_path))
    ours = add_adapters(load_model(location, None, None), LoRAConfig(r=4), location)
    plain = AutoModelForCausalLM.from_pretrained(location)
    config = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=family == "gpt2")
    theirs = get_peft_model(plain, config)

    def names(model: PeftModel) -> list[str]:
        return sorted(n for n, p in model.named_parameters() if p.requires_grad)

    assert names(ours) == names(theirs)


def test_what_peft_cannot_adapt_is_named(configure: Callable[..., Any], tmp_path: Path) -> None:
    location = str(make("mixtral", tmp_path))
    [note] = measured(location, configure(model=location, method="lora")).notes
    assert "mlp.experts.gate_up_proj" in note
    assert "mlp.gate" in note


def test_layers_of_an_odd_class_are_not_held_in_fewer_bits(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    location = str(make("falcon", tmp_path))
    with pytest.raises(AiftError, match=r"(?s)falcon.*FalconLinear.*--method lora"):
        measured(location, configure(model=location, method="qlora"))


def test_a_layer_that_lora_cannot_adapt_is_refused(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    location = str(make("gpt2", tmp_path))
    lora = {"target_modules": ["ln_1"]}
    with pytest.raises(AiftError, match="LayerNorm, which LoRA can't adapt"):
        measured(location, configure(model=location, method="lora", lora=lora))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn"]},
        {"modules_to_save": ["ln_f"]},
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
    ],
)
def test_every_kind_of_trained_weight_is_planned(
    settings: dict[str, Any], configure: Callable[..., Any], tmp_path: Path
) -> None:
    location = str(make("gpt2", tmp_path))
    lora = LoRAConfig(r=4, **settings)
    planned = measured(location, configure(model=location, method="lora", lora=settings | {"r": 4}))
    adapted = add_adapters(load_model(location, None, None), lora, location)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == planned.shape.adapter_parameters(4) + planned.whole


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_of_a_conv1d_are_opened_by_peft_on_the_published_model(
    bits: int, tmp_path: Path
) -> None:
    location = str(make("gpt2", tmp_path / "model"))
    held = load_model(location, torch.float32, None, Quantization(bits))  # type: ignore[arg-type]
    adapted = add_adapters(held, LoRAConfig(r=4), location)
    ids = torch.arange(5, 25)[None]
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.eval().save_pretrained(str(tmp_path / "adapter"))
    plain = AutoModelForCausalLM.from_pretrained(location)
    opened = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        given = opened(ids).logits
        near = adapted(ids).logits
        merged = opened.merge_and_unload()(ids).logits
        base = AutoModelForCausalLM.from_pretrained(location)(ids).logits
    torch.testing.assert_close(merged, given, rtol=0, atol=1e-3)
    # the rounding of a few bits moves less than the adapter
    assert (near - given).norm() < 0.5 * (base - given).norm()


def test_adapters_of_a_conv1d_are_served_as_peft_computes_them(tmp_path: Path) -> None:
    location = str(make("gpt2", tmp_path / "model"))
    base: Any = load_model(location, torch.float32, None)
    adapted = add_adapters(base, LoRAConfig(r=4), location).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    ids = torch.arange(5, 25)[None]
    served = Adapters(load_model(location, torch.float32, None).eval())
    served.load("one", str(tmp_path / "adapter"))
    served.choose(["one"])
    check_adapter(str(tmp_path / "adapter"), location, location, skeleton(location))
    with torch.no_grad():
        wanted, given = adapted(ids).logits, served._base(ids).logits
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "loftq"])
def test_adapters_of_a_conv1d_start_near_the_published_model(start: Any, tmp_path: Path) -> None:
    location = str(make("gpt2", tmp_path))
    config = LoRAConfig(r=16, init_lora_weights=start, lora_dropout=0.0)
    held = Quantization(4) if start == "loftq" else None
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted = load_model(location, torch.float32, None).eval()(ids).logits
        before = load_model(location, torch.float32, None, held).eval()(ids).logits
        base = load_model(location, torch.float32, None, held)
        after = add_adapters(base, config, location).eval()(ids).logits
    if start == "pissa":
        torch.testing.assert_close(after, wanted, rtol=0, atol=1e-3)
    else:
        assert (after - wanted).norm() < 0.9 * (before - wanted).norm()
