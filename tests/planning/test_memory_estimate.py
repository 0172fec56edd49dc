"""The arithmetic of memory agrees with published counts and with real modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aift_ray.config import SHIPPED_MODEL
from aift_ray.models.bnb.bnb_layers import layers
from aift_ray.planning.memory_estimate import Workload, memory
from aift_ray.planning.model_shape import Shape
from aift_ray.planning.overheads import heap_slack
from tests.helpers.runs import started

# parameters as published; numbers of the architectures from their config.json
PUBLISHED = {
    "llama3-8b": (8_030_261_248, (4096, 32, 32, 8, 128, 14336, 128256, False)),
    "calm3-22b": (22_542_882_816, (6144, 48, 48, 48, 128, 16384, 65024, False)),
    "qwen3-4b": (4_022_468_096, (2560, 36, 32, 8, 128, 9728, 151936, True)),
    "llm-jp-3-13b": (13_707_924_480, (5120, 40, 40, 40, 128, 13824, 99584, False)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_agree_with_published_counts(name: str) -> None:
    published, numbers = PUBLISHED[name]
    # norms of heads and biases are left out of the count
    assert Shape(*numbers).parameters == pytest.approx(published, rel=1e-4)


def test_parameters_and_adapters_agree_with_real_modules(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    run = started(configure(method="lora", lora__r=8), tmp_path)
    shape = Shape.of(run.module.model.config.to_dict())
    trained = sum(p.numel() for p in run.module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in run.module.parameters() if not p.requires_grad)
    assert trained == shape.adapter_parameters(8)
    assert frozen == shape.parameters


def test_an_8b_model_with_lora_fits_a_card_of_24_gb_and_full_training_does_not() -> None:
    shape = Shape(*PUBLISHED["llama3-8b"][1])
    lora = memory(shape, Workload("lora", 16, 2048, 2, checkpointing=True))
    full = memory(shape, Workload("full", 16, 2048, 2, checkpointing=True))
    assert lora.total < 22 * 2**30
    assert full.total > 100 * 2**30
    assert full.optimizer == 2 * full.gradients


def test_recomputing_activations_saves_what_it_promises() -> None:
    shape = Shape(*PUBLISHED["llama3-8b"][1])
    kept, recomputed = (memory(shape, Workload("lora", 16, 4096, 2, c)) for c in (False, True))
    assert recomputed.activations < kept.activations / 10
    assert recomputed.weights == kept.weights


def test_an_architecture_of_another_kind_is_not_guessed_at() -> None:
    with pytest.raises(KeyError):
        Shape.of({"hidden_size": 64})


@pytest.mark.parametrize("bits", [4, 8])
def test_the_bytes_of_a_quantized_base_agree_with_real_modules(
    bits: int, configure: Callable[..., Any], tmp_path: Path
) -> None:
    config = configure(model=SHIPPED_MODEL, method="qlora", lora__qlora_4bit=bits == 4, lora__r=8)
    model = started(config, tmp_path).module.model
    shape = Shape.of(model.config.to_dict())
    held = sum(
        p.numel() * p.element_size()
        for name, p in model.named_parameters()
        if not name.endswith("bias")
    )
    for layer in layers(model, bits):
        if bits == 4:
            state = layer.weight.quant_state
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    need = memory(shape, Workload("qlora", 8, 512, 4, checkpointing=False, base_bits=bits))
    assert need.weights == pytest.approx(held, rel=0.001)


def test_a_30b_model_with_qlora_is_held_in_16_to_20_gb() -> None:
    shape = Shape(6656, 60, 52, 52, 128, 17920, 32000, False)
    assert 30e9 < shape.parameters < 34e9
    need = memory(shape, Workload("qlora", 8, 2048, 2, checkpointing=True, base_bits=4))
    assert 16e9 < need.weights < 20e9


def test_each_stage_shares_out_what_it_says() -> None:
    shape = Shape(*PUBLISHED["llama3-8b"][1])
    one, *stages = (
        memory(shape, Workload("full", 0, 2048, 2, True, None, strategy, 4))
        for strategy in ("ddp", "zero1", "zero2", "fsdp")
    )
    assert all(stage.optimizer == one.optimizer // 4 for stage in stages)
    assert [s.gradients * 4 // one.gradients for s in stages] == [4, 1, 1]
    assert stages[2].weights < 0.4 * one.weights
    assert [s.total for s in (one, *stages)] == sorted([s.total for s in (one, *stages)])[::-1]


def test_a_worker_on_a_cpu_holds_libraries_and_what_dropout_keeps() -> None:
    # gemma3-270m, LoRA, fp32, 332 tokens of which 54 are trained: saved for the backward pass were
    # 574 MiB (hooks of autograd on saved tensors, torch 2.13)
    numbers = {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 2048,
        "vocab_size": 262144,
    }
    shape = Shape.of(numbers)
    on_gpu = Workload("lora", 16, 332, 4, checkpointing=False)
    on_cpu = replace(on_gpu, process=700 * 2**20, targets=54, dropout=True)
    need, plain = memory(shape, on_cpu), memory(shape, on_gpu)
    assert need.activations / 2**20 == pytest.approx(574, rel=0.1)
    assert need.logits == plain.logits * 54 // 256
    difference = need.activations + need.logits - plain.activations - plain.logits
    assert need.slack == heap_slack(need.activations)
    assert need.total == plain.total + 700 * 2**20 + difference + need.slack
    assert "process 0.68 GiB" in need.parts


def test_deepspeed_holds_the_buckets_of_its_file() -> None:
    shape = Shape(*PUBLISHED["llama3-8b"][1])
    work = Workload("lora", 16, 2048, 2, True, None, "zero2", 2, gpu=True, by_deepspeed=True)
    one, two = (memory(shape, replace(work, bucket=size)).buffers for size in (5e8, 1e9))
    # two in fp32
    assert two - one == 2 * 4 * 500_000_000
    stage3 = replace(work, strategy="zero3")
    assert memory(shape, replace(stage3, live=0)).gathered < memory(shape, stage3).gathered
