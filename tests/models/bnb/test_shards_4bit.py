"""A worker that loads a quantized model never holds the whole of it, and ends with its shard."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from bitsandbytes.functional import dequantize_4bit
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aift_ray.config import LoRAConfig
from aift_ray.engine.loss import LossModule
from aift_ray.models import load
from aift_ray.models.bnb.bnb_layers import Quantization, layers
from aift_ray.models.bnb.experts_4bit import Packed4bitExperts
from aift_ray.models.bnb.shards_4bit import Loading
from aift_ray.models.lora.attach import add_adapters
from aift_ray.parallel import fsdp
from aift_ray.parallel.group import Group
from tests.conftest import make_tiny_mixture, make_tiny_model

CPU = torch.device("cpu")
WIDE = {"hidden_size": 256, "intermediate_size": 704, "head_dim": 64, "num_hidden_layers": 8}
VOCABULARY = 512
KINDS = {"llama": make_tiny_model, "qwen3_moe": make_tiny_mixture}


class Resident(TorchDispatchMode):
    """Counts the bytes of all storages that operations have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {self._key(one) for one in tree_leaves((args, kwargs)) if self._counts(one)}
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if self._counts(one) and self._key(one) not in given | self._known.keys():
                self._add(one.untyped_storage())
        return made

    def _counts(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.device.type == "cpu"

    def _key(self, tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        self._known[key] = weakref.ref(storage, lambda _: self._drop(key, size))

    def _drop(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.bytes -= size


@pytest.fixture
def pair() -> Iterator[Group]:
    """Worker 1 of two, of which there is no other."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield Group(1, 2, CPU)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    sizes = WIDE | {"moe_intermediate_size": 256, "vocab_size": VOCABULARY}
    return {kind: str(make(root / kind, kind, **sizes)) for kind, make in KINDS.items()}


def loaded(folder: str, how: Loading | None) -> Any:
    held = Quantization(4, torch.bfloat16)
    return load.load_model(folder, torch.bfloat16, None, held, shards=how)


def quantized(model: Any) -> dict[str, tuple[torch.Tensor, Any]]:
    """What is held of each weight in 4 bits, with its scales."""
    experts = {
        f"{name}.{own}": (module.get_parameter(f"{own}_4bit"), state)
        for name, module in model.named_modules()
        if isinstance(module, Packed4bitExperts)
        for own, state in module.states.items()
    }
    found = set(layers(model, 4))
    linear = {
        name: (module.weight, module.quant_state)
        for name, module in model.named_modules()
        if module in found
    }
    return linear | experts


def packed_bytes(model: Any) -> int:
    return sum(weight.nbytes for weight, _ in quantized(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_worker_holds_the_whole_while_it_loads(kind: str, folders: dict[str, str]) -> None:
    whole, shard = Resident(), Resident()
    with whole:
        model = loaded(folders[kind], Loading(CPU))
    with shard:
        cut = loaded(folders[kind], Loading(CPU, 1, 2))
    packed = packed_bytes(model)
    assert packed_bytes(cut) == packed / 2
    assert whole.bytes - shard.bytes == pytest.approx(packed / 2, rel=0.01)
    assert whole.peak - shard.peak > 0.7 * packed / 2
    largest = max(state.shape.numel() for _, state in quantized(model).values())
    tables = sum(p.nbytes for n, p in cut.named_parameters() if "embed" in n or "lm_head" in n)
    scales = sum(
        state.absmax.nbytes + state.state2.absmax.nbytes for _, state in quantized(cut).values()
    )
    # in bf16 and once more in what it is quantized to, and tables that are yet to be cast
    assert shard.peak < packed / 2 + scales + 8 * largest + 4 * tables


@pytest.mark.parametrize("kind", KINDS)
def test_what_fsdp_gets_is_the_shard_of_the_whole(
    kind: str, folders: dict[str, str], pair: Group
) -> None:
    wanted = quantized(loaded(folders[kind], None))
    model = loaded(folders[kind], Loading(CPU, 1, 2))
    adapted = add_adapters(model, LoRAConfig(r=4, lora_dropout=0.0), folders[kind])
    module = LossModule(adapted)
    resident = Resident()
    with resident:
        fsdp.wrap(module, pair, torch.bfloat16)
    found = quantized(adapted.get_base_model())
    assert len(found) == len(wanted) > 0
    for (weight, state), (before, scales) in zip(found.values(), wanted.values(), strict=True):
        assert isinstance(weight, DTensor)
        assert weight.shape == before.shape
        assert torch.equal(weight.to_local(), before.data.chunk(2)[1])
        # and with the other's shard it is what was quantized
        both = torch.cat([before.data.chunk(2)[0], weight.to_local()])
        assert torch.equal(dequantize_4bit(both, state), dequantize_4bit(before.data, scales))
    # FSDP copies adapters and tables, and no more of the weights than their shards
    rest = sum(p.nbytes for p in adapted.parameters() if p.dtype != torch.uint8)
    assert resident.peak < rest + 1.1 * packed_bytes(model) / 2


def test_scales_of_workers_are_whole_and_alike(folders: dict[str, str]) -> None:
    one, other = (loaded(folders["llama"], Loading(CPU, rank, 2)) for rank in (0, 1))
    pairs = zip(quantized(one).values(), quantized(other).values(), strict=True)
    for (first, state), (second, same) in pairs:
        assert torch.equal(state.absmax, same.absmax)
        assert state.absmax.numel() * 64 == state.shape.numel()
        assert (len(first) + len(second)) * 2 == state.shape.numel()
