"""What a device holds beside tensors, the most of all phases, and the copy of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from aift_ray.data.collate import collate
from aift_ray.errors import ConfigError
from aift_ray.models.model_stats import measured
from aift_ray.planning.candidates import Room
from aift_ray.planning.memory_estimate import GIB, Workload, memories, memory, phases
from aift_ray.runs import memory_fit
from aift_ray.runs.prepare import prepare
from tests.helpers.a5000 import AUDITED, MODELS, fuller
from tests.helpers.runs import started

B8, B13, B32 = MODELS.values()
LORA = Workload("lora", 16, 2048, 2, True, workers=2, gpu=True)


@pytest.mark.parametrize("run", AUDITED, ids=" ".join)
def test_what_the_device_holds_is_what_was_added_up_by_hand(run: tuple[str, str, str]) -> None:
    assert fuller(*run).total / GIB == pytest.approx(AUDITED[run], rel=0.05)


def test_a_cpu_has_neither_context_nor_communication_nor_slack() -> None:
    on_gpu, on_cpu = (memory(B8, replace(LORA, gpu=gpu)) for gpu in (True, False))
    assert on_cpu.total == on_gpu.tensors == on_cpu.tensors
    assert min(on_gpu.context, on_gpu.communication, on_gpu.slack) > 0
    assert not memory(B8, replace(LORA, workers=1)).communication


def test_a_cpu_holds_the_copy_of_a_checkpoint_while_it_is_written() -> None:
    cpu = Workload("full", 0, 100, 4, True, process=GIB // 2)
    step = memory(B8, cpu)
    ended, going_on = (
        memory(B8, replace(cpu, copies=True, saves_beside=beside)) for beside in (False, True)
    )
    # a weight and two moments in fp32
    copied = B8.parameters * 12
    assert going_on.total == pytest.approx(step.total + copied, rel=1e-3)
    assert ended.total == pytest.approx(step.weights + step.optimizer + copied + GIB // 2, rel=1e-3)
    # in the host, and of the device nothing
    on_gpu = replace(cpu, gpu=True, process=0)
    assert memory(B8, on_gpu).total == memory(B8, replace(on_gpu, copies=True)).total


def test_fsdp_gathers_what_is_outside_the_blocks_in_a_piece_of_its_own() -> None:
    work = replace(LORA, base_bits=4, strategy="fsdp")
    tables = 2 * B32.vocabulary * B32.hidden * 2
    need = memory(B32, work)
    assert need.buffers == pytest.approx(tables, rel=0.01)
    assert need.gathered > tables
    assert not memory(B32, replace(work, strategy="ddp")).buffers


def test_scales_of_4_bits_are_whole_on_each_worker() -> None:
    def weights(workers: int) -> int:
        work = replace(LORA, base_bits=4, strategy="fsdp", workers=workers)
        return memory(B32, work).weights

    alone = memory(B32, replace(LORA, base_bits=4, workers=1)).weights
    scales = B32.linear_parameters * (8 / 64 + 32 / (64 * 256)) / 8
    assert weights(2) == pytest.approx((alone - scales) / 2 + scales, rel=1e-6)
    assert weights(2) - alone / 2 == pytest.approx(0.23 * GIB, rel=0.02)


def test_the_most_of_all_phases_is_what_is_planned() -> None:
    for strategy in ("ddp", "fsdp", "tensor"):
        apart = 2 if strategy == "tensor" else 1
        work = replace(LORA, strategy=strategy, model_parallel_size=apart)
        (found,) = phases(B13, work)
        assert {"load", "step", "evaluate"} <= set(found)
        assert memory(B13, work).total == max(need.total for need in found.values())
    answers = replace(LORA, answer_tokens=32 * 4096)
    need = memory(B8, answers)
    assert need == phases(B8, answers)[0]["evaluate"], "keys and values of many answers"
    # 32 layers of 8 heads of 128 numbers, keys and values
    assert need.cache == 32 * 4096 * 2 * 32 * 8 * 128 * 2
    assert len(memories(B8, replace(LORA, strategy="pipeline", model_parallel_size=2))) == 2


def test_4_bits_that_are_shared_out_are_never_whole_on_a_device() -> None:
    """As tests/models/bnb/test_shards_4bit.py counts it."""
    work = replace(LORA, base_bits=4, workers=4)
    for strategy, host in (("fsdp", 4), ("tensor", 1)):
        apart = 4 if strategy == "tensor" else 1
        (found,) = phases(B32, replace(work, strategy=strategy, model_parallel_size=apart))
        assert found["load"].total < found["step"].total
        assert found["load"].total < 0.75 * memory(B32, replace(work, workers=1)).weights
        packed = B32.linear_parameters * (4 + 8 / 64 + 32 / (64 * 256)) / 8
        assert found["load"].host == pytest.approx(packed / host, rel=1e-6)


def kept(run: Any) -> int:
    """Bytes that the backward pass of a micro-batch keeps beside weights."""
    batch = collate(run.rows, list(range(8)), padded=False)
    weights = {p.untyped_storage().data_ptr() for p in run.module.parameters()}
    found: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    hooks = saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        run.module.states(batch)
    return sum(size for _, size in found.values())


def planned(run: Any, dropout: bool = False) -> int:
    tokens = int(run.rows.lengths[:8].sum())
    work = Workload(run.config.method, 16, tokens, 2, False, dropout=dropout)
    return memory(measured(run.job.location, run.config).shape, work).activations


@pytest.fixture
def wide(configure: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A started run in bf16 on a model whose blocks are most of it."""
    from tests.conftest import make_tiny_model

    folder = make_tiny_model(tmp_path / "wide", hidden_size=256, intermediate_size=704, head_dim=64)

    def make(**values: Any) -> Any:
        common = {"model": str(folder), "training__precision": "bf16"}
        return started(configure(**common, **values), tmp_path)

    return make


def test_dropout_keeps_the_inputs_of_adapters_once_more_with_its_masks(
    wide: Callable[..., Any],
) -> None:
    runs = [wide(method="lora", lora__lora_dropout=rate) for rate in (0.0, 0.05)]
    without, dropped = (kept(run) for run in runs)
    tokens = int(runs[0].rows.lengths[:8].sum())
    shape = measured(runs[0].job.location, runs[0].config).shape
    more = tokens * shape.layers * shape.adapted_inputs
    # 16 bits and a mask, of a byte on GPUs and wider on CPUs; without it layers share one input
    assert 2 * more < dropped - without < 6 * more
    counted = planned(runs[1], dropout=True) - planned(runs[0])
    assert counted == pytest.approx(3 * more, rel=0.01)


def test_the_residual_stream_of_full_training_is_in_fp32(wide: Callable[..., Any]) -> None:
    run = wide(method="full")
    seen = []
    layer = run.module.model.get_decoder().layers[1]
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    kept(run)
    assert seen == [torch.float32]
    shape = measured(run.job.location, run.config).shape
    full, lora = (
        memory(shape, Workload(method, 16, 2048, 2, True)).activations
        for method in ("full", "lora")
    )
    # of each block its input, and four more of the one that is recomputed
    assert full - lora == 2048 * 2 * shape.hidden * (shape.layers + 4)


def test_checkpoints_are_copied_where_host_memory_holds_the_copy(
    configure: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(host: int, **values: Any) -> Any:
        monkeypatch.setattr(memory_fit, "_room", lambda *_: Room(24 * GIB, host))
        config = configure(parallel__gpu_memory="24GB", **values)
        return prepare(config, tmp_path, 2, False, None)

    run = prepared(GIB)
    assert run.job.config.training.async_save
    # a weight and two moments in fp32; worker 0 of two copies for both
    assert run.memory.copied == pytest.approx(run.parameters * 12 / 2, rel=0.01)
    run = prepared(100_000)
    assert not run.job.config.training.async_save
    assert "training.async_save is off: the copy of a checkpoint takes" in run.job.why[-1]
    assert not run.memory.copied
    with pytest.raises(ConfigError, match=r"training\.async_save: .*\n.*--training.async_save fal"):
        prepared(100_000, training__async_save=True)
