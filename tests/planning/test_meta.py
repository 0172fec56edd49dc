"""The arithmetic of large models against those models, split as in a run, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from aift_ray.config import LoRAConfig, ParallelConfig
from aift_ray.engine.loss import LossModule
from aift_ray.models.lora.attach import add_adapters
from aift_ray.parallel import fsdp, hold, tensor_parallel
from aift_ray.parallel.group import Group
from aift_ray.planning.memory_estimate import Workload, phases
from aift_ray.planning.model_shape import Shape
from tests.helpers.a5000 import MODELS, two_cards

CPU = torch.device("cpu")
WAYS: dict[str, Callable[..., torch.nn.Module]] = {
    "fsdp": fsdp.wrap,
    "tensor": tensor_parallel.wrap,
}


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    """Worker 0 of two, of which there is no other; nothing leaves the meta device."""
    monkeypatch.setattr(LossModule, "to", lambda module, *_: module)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield Group(0, 2, CPU)
    dist.destroy_process_group()


def on_meta(shape: Shape, method: str) -> LossModule:
    """A Llama of these numbers, in fp32 to be trained as a whole, else in bf16 with adapters."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        intermediate_size=shape.feed_forward,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
        if method == "lora":
            model = add_adapters(model.bfloat16(), LoRAConfig(r=16, lora_dropout=0.0), "")
    return LossModule(model)


def _mesh(kind: str, _: str, *shape: Any, **names: Any) -> Any:
    return init_device_mesh(kind, *shape, **names)


def own(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


@pytest.mark.parametrize("strategy", WAYS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_a_card_holds_of_a_13b_model(
    method: str, strategy: str, pair: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = on_meta(MODELS["13B"], method)
    group = pair
    if strategy == "tensor":
        group = Group(0, 2, torch.device("meta"), model_parallel_size=2)
        monkeypatch.setattr(tensor_parallel, "init_device_mesh", partial(_mesh, "cpu"))
    WAYS[strategy](module, group, torch.bfloat16)
    (need,) = two_cards(MODELS["13B"], method, strategy)
    weights = list(module.parameters())
    trained = sum(own(weight).nbytes for weight in weights if weight.requires_grad)
    assert sum(own(weight).nbytes for weight in weights) == pytest.approx(need.weights, rel=1e-3)
    assert trained == pytest.approx(need.gradients, rel=1e-3)
    assert 2 * trained == pytest.approx(need.optimizer, rel=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_a_reference_is_held_beside_what_is_trained_and_spread_alike(
    strategy: str, pair: Group
) -> None:
    shape, config = MODELS["8B"], ParallelConfig(strategy=strategy)
    reference = hold(config, on_meta(shape, "full"), pair, torch.bfloat16)
    assert not any(weight.requires_grad for weight in reference.parameters())
    held = sum(own(weight).nbytes for weight in reference.parameters())
    work = Workload("full", 16, 2048, 2, True, None, strategy, 2)
    one, two = (phases(shape, replace(work, reference=more))[0] for more in (False, True))
    for phase, need in one.items():
        assert two[phase].weights - need.weights == pytest.approx(held, rel=1e-3)


@pytest.mark.parametrize("strategy", ["pipeline", "model_parallel"])
def test_what_each_card_holds_of_a_13b_model_in_stages(strategy: str) -> None:
    module = on_meta(MODELS["13B"], "lora")
    named = dict(module.named_parameters())
    half = MODELS["13B"].layers // 2

    def first(name: str) -> bool:
        block = name.partition(".layers.")[2].partition(".")[0]
        return int(block) < half if block else "embed_tokens" in name

    stages = two_cards(MODELS["13B"], "lora", strategy)
    for stage, here in zip(stages, (True, False), strict=True):
        held = sum(weight.nbytes for name, weight in named.items() if first(name) is here)
        assert held == pytest.approx(stage.weights, rel=1e-3)


def test_the_linear_layers_of_a_32b_model_are_those_that_are_quantized() -> None:
    shape = MODELS["32B"]
    module = on_meta(shape, "full")
    linear = sum(
        layer.weight.numel()
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and not name.endswith("lm_head")
    )
    assert linear == shape.linear_parameters
    both = two_cards(shape, "qlora", "pipeline")
    # 4 bits and their scales, the rest in bf16, the adapters in fp32
    quantized = linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    rest = (shape.parameters - linear) * 2 + shape.adapter_parameters(8) * 4
    assert sum(stage.weights for stage in both) == pytest.approx(quantized + rest, rel=1e-6)
