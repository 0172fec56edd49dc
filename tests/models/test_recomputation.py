"""What is kept of a block changes memory and work, and no number of the result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aift_ray.engine import loop
from aift_ray.errors import ConfigError
from aift_ray.models import recomputation
from aift_ray.models.model_stats import measured
from aift_ray.planning.memory_estimate import Workload, memory
from aift_ray.runs.prepare import prepare
from tests.helpers.a5000 import MODELS
from tests.helpers.runs import started, stepped

Configure = Callable[..., Any]
RECOMPUTED = {
    "training__gradient_checkpointing": True,
    "training__batch_size": 4,
    "training__max_steps": 2,
    "training__learning_rate": 1e-3,
}
SELECTIVE = {"training__activation_checkpointing": "selective"}
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class Products(TorchDispatchMode):
    """Counts matrix products, and calls of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.attended = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func in _PRODUCTS
        self.attended += "scaled_dot_product" in str(func) and "backward" not in str(func)
        return func(*args, **(kwargs or {}))


def trained(run: Any) -> tuple[list[Any], list[torch.Tensor]]:
    lines = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
    return lines, [p.detach().clone() for p in run.module.parameters() if p.requires_grad]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("packing", ["concat", "false"])
def test_selective_recomputation_trains_the_same_to_the_bit(
    method: str, packing: str, configure: Configure, tmp_path: Path
) -> None:
    how = RECOMPUTED | {"method": method, "data__packing": packing}
    (lines, weights), (others, same) = (
        trained(started(configure(**how, **more), tmp_path)) for more in ({}, SELECTIVE)
    )
    assert lines == others
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


def test_half_of_the_products_and_no_attention_are_computed_again(
    configure: Configure, tmp_path: Path
) -> None:
    found = {}
    kinds = {"kept": {"training__gradient_checkpointing": False}, "full": {}, "some": SELECTIVE}
    for kind, more in kinds.items():
        run = started(configure(**(RECOMPUTED | {"method": "full"} | more)), tmp_path)
        with Products() as counted:
            loop.train_step(run)
        found[kind] = counted.products, counted.attended
    again = [found[kind][0] - found["kept"][0] for kind in ("full", "some")]
    # in each of two blocks: the last of seven is not needed, and every other one is kept
    assert again == [2 * 6, 2 * 3]
    assert found["full"][1] == 2 * found["kept"][1] > 0
    assert found["some"][1] == found["kept"][1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_plan_counts_what_is_kept(
    method: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(configure(**RECOMPUTED, **SELECTIVE, method=method), tmp_path)
    kept, call = [0], recomputation._EveryOther.__call__

    def noted(self: Any, ctx: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        policy = call(self, ctx, func, *args, **kwargs)
        if policy is recomputation.CheckpointPolicy.MUST_SAVE and not ctx.is_recompute:
            outputs = ctx.op_output
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            kept[0] += sum(t.nbytes for t in outputs if isinstance(t, torch.Tensor))
        return policy

    monkeypatch.setattr(recomputation._EveryOther, "__call__", noted)
    line, _ = loop.train_step(run)
    shape = measured(run.job.location, run.config).shape
    computed = line["tokens"] * shape.kept_outputs(method == "lora") * 4 * shape.layers
    # attention keeps its sums too; of adapters three inner products of 16 numbers
    assert kept[0] == pytest.approx(computed, rel=0.12)


def test_hidden_states_in_host_memory_change_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(**RECOMPUTED, method="lora")
    wanted = trained(started(config, tmp_path))
    moved: list[int] = []
    real = recomputation.offloaded_activations

    def counted(width: int) -> AbstractContextManager[None]:
        hooks = real(width)
        pack = hooks.pack_hook

        def packed(tensor: torch.Tensor) -> Any:
            found = pack(tensor)
            moved.extend([tensor.nbytes] if isinstance(found, tuple) else [])
            return found

        hooks.pack_hook = packed
        return hooks

    monkeypatch.setattr(loop, "offloaded_activations", counted)
    run = started(config, tmp_path)
    training = config.training.model_copy(update={"activation_offloading": True})
    run.job = replace(run.job, config=run.config.model_copy(update={"training": training}))
    lines, weights = trained(run)
    assert lines == wanted[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, wanted[1], strict=True))
    assert len(moved) >= 2 * 2, "the input of each block, in each step"


def test_the_plan_of_long_rows() -> None:
    def of(**more: Any) -> Any:
        work = Workload("lora", 16, 32768, 2, True, 4, "fsdp", 2, gpu=True, **more)
        return memory(MODELS["8B"], work)

    plain, moved, kept = of(), of(activations_in_host=True), of(selective=True)
    inputs = 32768 * 4096 * 2
    assert plain.activations - moved.activations == 30 * inputs
    assert moved.host == 32 * inputs
    # of attention, and of queries, values, gates and the last product with their adapters
    numbers = 4096 + 2 * (4096 + 1024 + 14336 + 4096)
    assert kept.activations - plain.activations == 32 * 32768 * 2 * numbers


@pytest.mark.parametrize("name", ["checkpointing", "offloading"])
def test_where_it_can_t_be_had_is_told_by_name(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    field = f"training__activation_{name}"
    asked = {field: "selective" if name == "checkpointing" else True}
    asked["training__gradient_checkpointing"] = True
    for strategy in ("tensor", "pipeline", "model_parallel"):
        with pytest.raises(ConfigError, match=rf"activation_{name}.*not possible with {strategy}"):
            configure(**asked, parallel__strategy=strategy)
    with pytest.raises(ConfigError, match=rf"activation_{name}.*backend deepspeed"):
        configure(**asked, parallel__strategy="zero2", parallel__backend="deepspeed")
    with pytest.raises(ConfigError, match=r"gradient_checkpointing.* off"):
        configure(**(asked | {"training__gradient_checkpointing": False}))
    if name == "checkpointing":
        with pytest.raises(ConfigError, match=r"operations that training\.compile fuses"):
            configure(**asked, training__compile=True)
        return
    with pytest.raises(ConfigError, match=r"activation_offloading.*compute on CPUs"):
        prepare(configure(**asked), tmp_path, 1, False, None)
