"""Tensor parallel: each worker holds a share of every matrix, and of the positions between them.

A layer split by columns computes some of its outputs; one split by rows takes those as inputs, and
its output is a part of a sum. In between, attention and feed-forward see every position; norms and
residual sums see those of one worker: a sum is handed out position by position, and gathered
before the next matrix. Norms and the second half of an adapter are whole on each worker; their
gradients are summed over the workers. Source: Megatron-LM, arXiv:1909.08053 and 2205.05198.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.functional import dropout

from aift_ray.errors import Problem
from aift_ray.models.bnb.bnb_layers import cut_4bit, is_held_in
from aift_ray.models.decoder import causal_model, decoder_blocks, decoder_of
from aift_ray.models.families.refusals import refusal
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel, ParallelModel
from aift_ray.parallel.torch_model import TorchModel
from aift_ray.parallel.tp_collectives import (
    Change,
    MeshGroup,
    cut,
    enter,
    joined,
    leave,
    looked_up,
    used_in_part,
)
from aift_ray.planning import tp_support
from aift_ray.planning.tp_support import COLUMNS, FAMILIES, ROWS

__all__ = ["FAMILIES", "unfit", "wrap"]
# what PEFT puts between the name of a layer and its weights
_COPIES = r"\.base_layer|\.original_module|\.modules_to_save\.default"
_BY_COLUMNS = re.compile(rf"\.({'|'.join(COLUMNS)}|lm_head)({_COPIES}|\.lora_B\.default)?$")
_BY_ROWS = re.compile(rf"\.({'|'.join(ROWS)})({_COPIES}|\.lora_A\.default)?$")
_TABLE = re.compile(rf"\.embed_tokens({_COPIES})?$")


def unfit(
    config: Mapping[str, Any], parts: int, targets: list[str], quantized: bool = False
) -> list[Problem]:
    """Why a model can't be split into `parts`; see `split.unfit`."""
    kind = config["model_type"]
    if kind in FAMILIES:
        return tp_support.unfit(config, parts, targets, quantized)
    what = f"tensor knows how to split {', '.join(FAMILIES)} alone"
    field, layout = "parallel.strategy", "use --strategy fsdp"
    return [refusal(kind, what, layout, FAMILIES.__contains__, field)]


def wrap(module: LossModel, group: Group, compute: torch.dtype) -> ParallelModel:
    """`module`, split over the workers of a replica, in place.

    Args:
        module: holds the language model as `model`; its forward and its `generate` are the ways
            in, and all workers of a tp_group call them alike, with the same rows.
        compute: makes no difference here; a trained weight is held in fp32, others as they are.
    """
    shape = (group.dp_size, group.model_parallel_size)
    mesh = init_device_mesh(group.device.type, shape, mesh_dim_names=("data", "tensor"))
    tp_group = MeshGroup(mesh["tensor"])
    _split(module, tp_group, group.device)
    module.to(group.device)
    _connect(module.model, tp_group)
    if group.dp_size == 1:
        return TorchModel(module, group)
    no_sync = _average(module, mesh["data"])
    return TorchModel(module, group, module, no_sync)


def _split(module: torch.nn.Module, tp_group: MeshGroup, device: torch.device) -> None:
    """Put shares in place of the weights, and have each layer compute with its own."""
    # embeddings and output layer may be one weight
    known: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for name, layer in list(module.named_modules()):
        quantized = is_held_in(layer, 4)
        for own, weight in list(layer.named_parameters(recurse=False)):
            if quantized and own == "weight":
                dim = 1 if _BY_ROWS.search(name) else 0
                cut_4bit(layer, dim, tp_group.own(weight.quant_state.shape[dim]))
                continue
            if weight not in known:
                known[weight] = _shared(weight, _dimension(name, weight), tp_group, device)
            setattr(layer, own, known[weight])
        by_rows = _BY_ROWS.search(name) is not None
        if _TABLE.search(name) and isinstance(layer, torch.nn.Embedding):
            _look_up_own(layer, tp_group)
        if by_rows and "default" in getattr(layer, "lora_dropout", {}):
            rate = getattr(layer.lora_dropout["default"], "p", 0.0)
            layer.lora_dropout["default"] = _Dropout(rate, tp_group)
        if quantized or any(isinstance(p, DTensor) for p in layer.parameters(recurse=False)):
            _compute_locally(layer, tp_group, by_rows)


def _dimension(name: str, weight: torch.Tensor) -> int | None:
    """Along which dimension a weight of the layer `name` is split; None: it is not."""
    if _BY_COLUMNS.search(name) or _TABLE.search(name):
        return 0
    # the bias of a layer split by rows is added to the sum
    return 1 if _BY_ROWS.search(name) and weight.ndim > 1 else None


def _shared(
    weight: torch.nn.Parameter, dim: int | None, tp_group: MeshGroup, device: torch.device
) -> torch.nn.Parameter:
    """A worker's share of a weight. One that is whole and trained must be of the same kind, for
    the optimizer takes all alike; one that is whole and frozen stays as it is."""
    if dim is None and not weight.requires_grad:
        return weight
    share = weight.detach()
    if dim is not None:
        mine = tp_group.own(weight.shape[dim])
        share = share.narrow(dim, mine.start, mine.stop - mine.start)
    placement = Replicate() if dim is None else Shard(dim)
    dtype = torch.float32 if weight.requires_grad else weight.dtype
    spread = DTensor.from_local(
        share.to(device, dtype, copy=True, memory_format=torch.contiguous_format),
        tp_group.mesh,
        [placement],
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )
    return torch.nn.Parameter(spread, weight.requires_grad)


def _compute_locally(layer: torch.nn.Module, tp_group: MeshGroup, by_rows: bool) -> None:
    """Have `layer` compute with what this worker holds of its weights."""
    names = [n for n, p in layer.named_parameters(recurse=False) if isinstance(p, DTensor)]
    biased = by_rows and getattr(layer, "bias", None) is not None
    hidden = {*names, "bias"} if biased else names

    def hide(*_: object) -> None:
        # an attribute of the instance hides the parameter of the same name
        layer.__dict__.update({name: _local(layer, name, tp_group) for name in names})
        if biased:
            layer.__dict__["bias"] = None

    def show(_: object, __: object, output: torch.Tensor | None) -> Any:
        for name in hidden:
            layer.__dict__.pop(name, None)
        if output is None:
            # of a forward pass that failed
            return None
        if by_rows:
            output = leave(output, tp_group)
        return output + _local(layer, "bias", tp_group).to(output.dtype) if biased else output

    layer.register_forward_pre_hook(hide)
    layer.register_forward_hook(show, always_call=True)


def _local(layer: torch.nn.Module, name: str, tp_group: MeshGroup) -> Any:
    # the parameter, or a copy that stands in for it
    weight: torch.Tensor = getattr(layer, name)
    if not isinstance(weight, DTensor):
        return weight
    local = weight.to_local()
    # each worker sees some positions, heads or channels, so a part of the gradient
    return used_in_part(local, tp_group) if weight.placements[0].is_replicate() else local


def _look_up_own(table: torch.nn.Embedding, tp_group: MeshGroup) -> None:
    """Have `table` look up the tokens of this worker's share, and zeros for others."""
    mine = tp_group.own(table.num_embeddings)
    if table.padding_idx is not None:
        held = mine.start <= table.padding_idx < mine.stop
        table.padding_idx = table.padding_idx - mine.start if held else None
    asked: list[torch.Tensor] = []

    def own(_: object, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        elsewhere = (inputs[0] < mine.start) | (inputs[0] >= mine.stop)
        asked[:] = [elsewhere]
        inside: torch.Tensor = inputs[0] - mine.start
        return inside.masked_fill(elsewhere, 0)

    def joint(_: object, __: object, found: torch.Tensor) -> torch.Tensor:
        elsewhere = asked.pop().unsqueeze(-1)
        return looked_up(found.masked_fill(elsewhere, 0), tp_group)

    table.register_forward_pre_hook(own)
    table.register_forward_hook(joint)


class _Dropout(torch.nn.Module):
    """Dropout of this worker's channels, by the same random numbers as where all are together."""

    def __init__(self, rate: float, tp_group: MeshGroup) -> None:
        super().__init__()
        self.rate, self._tp_group = rate, tp_group

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """`value`: (rows, positions, channels), the channels of one worker."""
        if not self.training or not self.rate:
            return value
        each = value.shape[-1]
        kept = dropout(value.new_ones(*value.shape[:-1], each * self._tp_group.size), self.rate)
        return value * kept.narrow(-1, each * self._tp_group.rank, each)


def _connect(model: torch.nn.Module, tp_group: MeshGroup) -> None:
    """Where the positions are dealt out and gathered, and the vocabulary is joined."""
    inner = causal_model(model)
    blocks = decoder_blocks(model)
    blocks[0].register_forward_pre_hook(
        partial(_first, lambda x: cut(x, tp_group)), with_kwargs=True
    )
    for block in blocks:
        for part in (block.self_attn, block.mlp):
            assert isinstance(part, torch.nn.Module)
            hook = partial(_first, lambda x: enter(x, tp_group))
            part.register_forward_pre_hook(hook, with_kwargs=True)
    decoder: Any = decoder_of(inner)
    decoder.norm.register_forward_hook(lambda _, __, output: enter(output, tp_group))
    head = inner.get_output_embeddings()
    words = next(head.parameters()).shape[0]
    head.register_forward_hook(lambda _, __, output: joined(output, tp_group, words))


def _first(
    change: Change, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...], more: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Change the hidden states, by whatever way they come."""
    if inputs:
        return (change(inputs[0]), *inputs[1:]), more
    return inputs, more | {"hidden_states": change(more["hidden_states"])}


def _average(
    module: torch.nn.Module, mesh: DeviceMesh
) -> Callable[[], AbstractContextManager[None]]:
    """Average each gradient over the copies of the model; the context in which none is."""
    last = [True]

    def average(weight: torch.Tensor) -> None:
        if last[0] and weight.grad is not None:
            gradient = weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad
            dist.all_reduce(gradient, group=mesh.get_group())
            gradient /= mesh.size()

    for weight in module.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(average)

    @contextmanager
    def no_sync() -> Iterator[None]:
        last[0] = False
        try:
            yield
        finally:
            last[0] = True

    return no_sync
