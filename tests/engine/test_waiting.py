"""How often a step waits for its device: once, and no forward or backward pass does."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from aift_ray.engine import loop, step_batches
from aift_ray.parallel import dtensor_utils, shard_adamw
from tests.conftest import make_tiny_mixture
from tests.helpers.runs import started

Configure = Callable[..., Any]
# operations whose result the host has to know before it goes on
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")
# CPUs attend each document by itself; a GPU's kernel takes their borders as they are
CPU_ONLY = "_each_document"


class Waits(TorchDispatchMode):
    """Notes each operation that a device would be waited for, and who asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") in WAITS:
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        """Remember the caller outside of torch."""
        frames = [each for each in traceback.extract_stack() if "/torch/" not in each.filename]
        frames = [each for each in frames if Path(each.filename).name != "test_waiting.py"]
        if not any(each.name == CPU_ONLY for each in frames):
            self.found.append(f"{Path(frames[-1].filename).name}, {frames[-1].name}")


def waits_of(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a step waits for where tensors are on a device."""
    # the next step's batches are made within a step
    monkeypatch.setattr(step_batches, "computes_apart", lambda _: True)
    loop.train_step(run)
    run.state.step += 1
    # gradients as a GPU has them
    monkeypatch.setattr(dtensor_utils, "in_host", lambda _: False)
    waits, plain = Waits(), torch.Tensor.tolist

    def tolist(tensor: torch.Tensor) -> Any:
        waits.note()
        return plain(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    with waits:
        loop.train_step(run)
    return waits.found


@pytest.mark.parametrize(
    ("method", "packing"), [("lora", "concat"), ("qlora", "concat"), ("full", "fill")]
)
def test_a_step_waits_once_however_many_micro_batches_it_has(
    method: str, packing: str, configure: Configure, tmp_path: Path, monkeypatch: Any
) -> None:
    steps = {"training__batch_size": 2, "training__gradient_accumulation_steps": 3}
    config = configure(
        method=method, data__packing=packing, training__gradient_checkpointing=True, **steps
    )
    found = waits_of(started(config, tmp_path), monkeypatch)
    assert found == ["loop.py, train_step"]


@pytest.mark.parametrize(
    "further",
    [
        {"training__optimizer": "adamw_8bit"},
        {"training__bf16_stochastic_round": True, "training__precision": "bf16"},
    ],
)
def test_smaller_states_wait_no_more(
    further: dict[str, Any], configure: Configure, tmp_path: Path, monkeypatch: Any
) -> None:
    run = started(configure(method="full", **further), tmp_path)
    waited: list[torch.device] = []

    def sync_gpu(tensor: torch.Tensor) -> None:
        waited.append(tensor.device)

    # a CPU has nothing to wait for: counted is where bitsandbytes would wait for a GPU
    monkeypatch.setattr(optimizer, "sync_gpu", sync_gpu)
    monkeypatch.setattr(shard_adamw, "sync_gpu", sync_gpu)
    assert waits_of(run, monkeypatch) == ["loop.py, train_step"]
    assert not waited


def test_padded_rows_and_routers_wait_a_known_number_of_times(
    configure: Configure, tmp_path: Path, monkeypatch: Any
) -> None:
    steps = {"training__batch_size": 4, "training__gradient_accumulation_steps": 2}
    padded = started(configure(method="lora", data__packing="false", **steps), tmp_path)
    found = waits_of(padded, monkeypatch)
    assert found.count("loop.py, train_step") == 1
    # transformers asks of each micro-batch whether its mask masks anything
    assert {where.partition(",")[0] for where in found} == {"loop.py", "masking_utils.py"}
    assert len(found) <= 1 + 2 * 2


def test_the_routers_loss_is_read_with_all_else(
    configure: Configure, tmp_path: Path, monkeypatch: Any
) -> None:
    folder = make_tiny_mixture(tmp_path / "mixture", output_router_logits=True)
    run = started(configure(model=str(folder), training__batch_size=4), tmp_path)
    assert run.module.routers
    assert waits_of(run, monkeypatch).count("loop.py, train_step") == 1
    line, _ = loop.train_step(run)
    assert line["aux_loss"] > 0


def test_the_count_would_see_what_it_counts(configure: Configure, tmp_path: Path) -> None:
    waits = Waits()
    with waits:
        torch.ones(2).sum().item()
        torch.ones(3).nonzero()
    assert len(waits.found) == 2
