"""Layers whose weights were rearranged compute what they computed before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aift_ray.serving.engines.transformers.lora_manager import Adapters
from aift_ray.serving.engines.transformers.packed_weights import pack
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from tests.serving.conftest import load
from tests.serving.engines.transformers.test_transformers_engine import (
    generated,
    ids,
    prompt,
    request,
    together,
)


def network(dtype: torch.dtype, tied: bool) -> Any:
    """One whose output layer is large enough to be packed in fp32 too."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2**15, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied, attention_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_what_they_did(dtype: torch.dtype, tied: bool) -> None:
    model = network(dtype, tied)
    ids = torch.randint(0, 2**15, (3, 20))
    with torch.inference_mode():
        wanted = model(ids).logits.float()
        pack(model)
        found = model(ids).logits.float()
    # bf16 keeps 8 bits: sums in another order may round to the next number
    assert torch.allclose(found, wanted, rtol=2**-7, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    # what was packed holds no memory any more, and nobody computes with what is there
    layer = model.lm_head if not tied and dtype == torch.float32 else None
    if layer is not None:
        assert layer.weight.shape == (2**15, 128)
        assert layer.weight.untyped_storage().nbytes() == 4
        assert layer.weight.isnan().all()


def test_answers_of_packed_weights_are_those_of_generate() -> None:
    plain, packed = load(), load()
    pack(packed)
    engine = TransformersEngine(packed, 4, 8)
    try:
        asked = [prompt(seed, 12 + 9 * seed) for seed in range(4)]
        found = together(engine, [request(each, 24) for each in asked])
        assert [ids(each) for each in found] == [generated(plain, each, 24) for each in asked]
    finally:
        engine.close()


def test_adapters_are_loaded_on_packed_weights(adapters: dict[str, Any]) -> None:
    plain, packed = load(), load()
    pack(packed)
    logits = []
    for model in (plain, packed):
        loaded = Adapters(model)
        for name, folder in adapters.items():
            loaded.load(name, str(folder))
        loaded.choose([*adapters])
        with torch.inference_mode():
            logits.append(model(torch.arange(300, 320)[None].repeat(len(adapters), 1)).logits)
    assert torch.allclose(*logits, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_takes_few_rows_of_any_shape(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    model = network(dtype, tied=False)
    layer = model.lm_head
    states = torch.randn(rows, 1, 128).to(dtype)
    with torch.inference_mode():
        wanted = [layer(each) for each in (states, states[:, 0], states[0, 0])]
        pack(model)
        found = [layer(each) for each in (states, states[:, 0], states[0, 0])]
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one.float(), other.float(), rtol=2**-7, atol=1e-3)
