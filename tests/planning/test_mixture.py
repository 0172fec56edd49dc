"""The arithmetic of a mixture of experts against its modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from aift_ray.data.collate import collate
from aift_ray.models import load
from aift_ray.models.bnb.bnb_layers import layers
from aift_ray.models.bnb.experts_4bit import Packed4bitExperts
from aift_ray.models.cost import weighed
from aift_ray.models.model_stats import counted, measured
from aift_ray.models.split import pieces_of
from aift_ray.planning.memory_estimate import Workload, memory
from tests.conftest import make_tiny_mixture
from tests.helpers.runs import started

KINDS = ("qwen3_moe", "mixtral", "gpt_oss")
# wide enough that norms are a small part
WIDE = {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 192, "intermediate_size": 192}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixtures")
    return {kind: make_tiny_mixture(root / kind, kind, **WIDE) for kind in KINDS}


def scales(state: Any) -> int:
    return int(state.absmax.nbytes + state.state2.absmax.nbytes)


# name, experts that a token takes, parameters of config.json's numbers as published
PUBLISHED = {
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        30_532_122_624,
        {
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "vocab_size": 151936,
            "tie_word_embeddings": False,
        },
    ),
    "Mixtral-8x7B": (
        "mixtral",
        46_702_792_704,
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
            "tie_word_embeddings": False,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_agree_with_published_counts(name: str) -> None:
    kind, published, numbers = PUBLISHED[name]
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **numbers))
    shape = counted(model, {})
    assert shape.parameters == published
    experts = numbers.get("num_experts") or numbers["num_local_experts"]
    width = numbers.get("moe_intermediate_size") or numbers["intermediate_size"]
    block = experts * 3 * numbers["hidden_size"] * width
    assert (shape.block_experts, shape.expert_parameters) == (block, block * shape.layers)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("qwen2_moe", {"mlp_only_layers": [0], "num_experts": 4}),
        ("qwen2_moe", {"decoder_sparse_step": 2, "num_experts": 4}),
        ("qwen3_moe", {"mlp_only_layers": [1, 2], "num_experts": 4}),
        ("gpt_oss", {"num_local_experts": 4}),
    ],
)
def test_blocks_without_experts_shared_experts_and_biases_are_counted(
    kind: str, numbers: dict[str, Any]
) -> None:
    sizes = {"num_hidden_layers": 4, "vocab_size": 512}
    config = AutoConfig.for_model(kind, **sizes, **numbers)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    shape = counted(model, {})
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    stacks = {n: p.numel() for n, p in model.named_parameters() if p.ndim == 3}
    assert shape.expert_parameters == sum(stacks.values())
    block = max(int(name.split(".")[2]) for name in stacks)
    one = sum(size for name, size in stacks.items() if f".{block}." in name)
    assert shape.block_experts == one


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_agree_with_real_modules(
    kind: str,
    adapted: bool,
    folders: dict[str, Path],
    configure: Callable[..., Any],
    tmp_path: Path,
) -> None:
    lora = {"lora__r": 8, "lora__experts": adapted, "lora__lora_dropout": 0.0}
    run = started(configure(model=str(folders[kind]), method="lora", **lora), tmp_path)
    trained = sum(p.numel() for p in run.module.parameters() if p.requires_grad)
    shape = measured(str(folders[kind]), run.config).shape
    assert trained == shape.adapter_parameters(8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_quantized_mixture_agree_with_real_modules(
    kind: str,
    bits: int,
    folders: dict[str, Path],
    configure: Callable[..., Any],
    tmp_path: Path,
) -> None:
    lora = {"lora__r": 8, "lora__qlora_4bit": bits == 4}
    config = configure(model=str(folders[kind]), method="qlora", **lora)
    model = started(config, tmp_path).module.model
    held = sum(p.nbytes for p in model.parameters())
    if bits == 4:
        held += sum(scales(layer.weight.quant_state) for layer in layers(model, 4))
        packed = [m for m in model.modules() if isinstance(m, Packed4bitExperts)]
        assert len(packed) == 2
        held += sum(scales(state) for module in packed for state in module.states.values())
    shape = measured(str(folders[kind]), config).shape
    need = memory(shape, Workload("qlora", 8, 512, 4, checkpointing=False, base_bits=bits))
    assert need.weights == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("adapted", [False, True])
def test_what_the_backward_pass_keeps_is_counted(
    method: str,
    adapted: bool,
    folders: dict[str, Path],
    configure: Callable[..., Any],
    tmp_path: Path,
) -> None:
    values: dict[str, Any] = {"lora__experts": adapted, "lora__lora_dropout": 0.0}
    config = configure(model=str(folders["qwen3_moe"]), method=method, **values)
    run = started(config, tmp_path)
    batch = collate(run.rows, list(range(8)), padded=False)
    weights = {p.untyped_storage().data_ptr() for p in run.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        states = run.module.states(batch)
    assert states.requires_grad
    work = Workload(method, 16, batch.input_ids.numel(), 4, False, run.config.base_bits)
    need = memory(measured(run.job.location, run.config).shape, work)
    # the largest tensors of the backward pass itself come on top
    assert 1 < need.activations / sum(kept.values()) < 1.75


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_mixture_weigh_what_the_whole_does(
    kind: str, method: str, folders: dict[str, Path], configure: Callable[..., Any]
) -> None:
    lora = {"lora__experts": True, "lora__lora_dropout": 0.0}
    recomputed = {"training__gradient_checkpointing": True}
    config = configure(model=str(folders[kind]), method=method, **lora, **recomputed)
    model = load.skeleton(str(folders[kind]))
    # no token: weights, gradients and moments alone
    pieces = weighed(model, pieces_of(model), config, 4, tokens=0, share=1.0)
    shape = measured(str(folders[kind]), config).shape
    need = memory(shape, Workload(method, 16, 0, 4, True, config.base_bits))
    wanted = need.weights + need.gradients + need.optimizer
    assert sum(piece.bytes for piece in pieces) == pytest.approx(wanted, rel=0.01)
    mine, theirs = (piece.work for piece in pieces if ".layers." in piece.name)
    assert mine == theirs
    dense = 2 * 4 * (4 * 2 + 4 * 2) * 64 * 64 / 4
    experts = 2 * 3 * 256 * 192
    assert mine == pytest.approx((dense + experts) * (4 if method == "full" else 3), rel=0.3)
