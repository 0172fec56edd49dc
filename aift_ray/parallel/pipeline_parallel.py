"""Pipeline parallel: each worker holds some of a model's blocks, micro-batches pass through all.

A stage runs the model's own forward pass with stand-ins for the blocks that lie elsewhere, so that
each stage makes masks and positions from the batch itself; only hidden states travel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from aift_ray.data.collate import MicroBatch
from aift_ray.models.decoder import causal_model, decoder_blocks, decoder_of
from aift_ray.models.split import StandIn
from aift_ray.parallel.dtensor_utils import gradient_norm, sum_gradients
from aift_ray.parallel.group import Group
from aift_ray.parallel.pp_p2p import Wires
from aift_ray.parallel.pp_schedule import order
from aift_ray.parallel.protocol import LossModel, MicroBatches, ParallelModel, StageModel
from aift_ray.parallel.torch_model import TorchModel
from aift_ray.utils.forward_compat import replace_forward

if TYPE_CHECKING:
    from transformers import Cache

# batches that a stage may be ahead of the next one in an evaluation
_AHEAD = 4


def held(layout: Mapping[str, int], group: Group) -> set[str]:
    """Names of the pieces that this worker holds; `layout` is {name of a piece: its stage}."""
    return {
        name for name, stage in layout.items() if stage % group.model_parallel_size == group.mp_rank
    }


def wrap(
    module: StageModel, group: Group, layout: Mapping[str, int], schedule: str
) -> ParallelModel:
    """The part of a model that this worker holds, as one of a pipeline.

    Args:
        layout: {name of a piece: its stage}, in the order of a forward pass.
    """
    return PipelineModel(Pipeline(module.to(group.device), group, layout, schedule), group)


class Pipeline(LossModel):
    """The stages of one worker, and how micro-batches pass through them.

    Every worker of a replica calls each method alike. A loss is there on the worker of the last
    stage, and 0 on the others.
    """

    def __init__(
        self, module: StageModel, group: Group, layout: Mapping[str, int], schedule: str
    ) -> None:
        super().__init__()
        self.module = module
        # not as an attribute: its weights would have two names
        self.__dict__["model"] = module.model
        self._group, self._schedule = group, schedule
        stages = list(layout.values())
        self._last, self._norm = stages[-1], list(layout)[-2].rpartition(".")[2]
        self._own = range(group.mp_rank, self._last + 1, group.model_parallel_size)
        self._wires = Wires(group, self._last)
        inner: Any = causal_model(self.model)
        self._decoder: list[Any] = [decoder_of(inner)]
        blocks = decoder_blocks(inner)
        # not as attributes: modules would be registered twice
        self._blocks = {
            stage: nn.ModuleList(
                block if at == stage else StandIn(number)
                for number, (block, at) in enumerate(zip(blocks, stages[1:-2], strict=True))
            )
            for stage in self._own
        }
        self._width = inner.config.get_text_config().hidden_size
        self._join(inner)
        # generation asks the model itself for logits
        replace_forward(inner, wraps(inner.forward)(partial(self._logits)))

    def _join(self, inner: Any) -> None:
        """Form the groups of a replica, of a stage in all replicas, and of a shared weight."""
        group, size = self._group, self._group.model_parallel_size
        replicas = [range(r * size, (r + 1) * size) for r in range(group.dp_size)]
        places = [range(place, group.world_size, size) for place in range(size)]
        ends = [(ranks[0], ranks[-1]) for ranks in replicas]
        made = [
            [(ranks, dist.new_group(ranks)) for ranks in kind] for kind in (replicas, places, ends)
        ]
        own = [[g for ranks, g in kind if group.rank in ranks] for kind in made]
        (self._replica,), (self._alike,), ends_group = own
        head, table = inner.get_output_embeddings(), inner.get_input_embeddings()
        facts: list[Any] = [None]
        if group.mp_rank == size - 1:
            names = self.model.named_parameters(remove_duplicate=False)
            facts = [([n for n, p in names if p is head.weight], head.weight.shape[0])]
        dist.broadcast_object_list(facts, replicas[group.dp_rank][-1], self._replica)
        # names of the output layer's weight, that of the embeddings among them if it is theirs
        self._names, self._vocabulary = facts[0]
        self._ends = ends_group[0] if len(self._names) > 1 and ends_group else None
        # held twice, by the first stage and the last
        self._shared = table.weight if self._ends else None

    @property
    def _is_twin(self) -> bool:
        """Whether the weight that is held twice counts on another worker."""
        return self._shared is not None and self._group.mp_rank > 0

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """The summed loss of `batch`, without gradients; a scalar in fp32."""
        loss = torch.zeros((), device=self._group.device)
        for stage in self._own:
            output = self._pass(stage, batch, self._received(stage, batch.input_ids.shape))
            loss = self._handed_on(stage, output, loss)
        self._wires.settle(_AHEAD)
        return loss

    def accumulate(self, step: MicroBatches, scaler: torch.amp.GradScaler) -> torch.Tensor:
        """Gradients of all micro-batches of a step, in the order of the schedule; their loss."""
        group, held_back = self._group, {}
        total = torch.zeros((), device=group.device)
        place = group.model_parallel_size, group.mp_rank
        for action in order(self._schedule, *place, len(step.batches)):
            stage, batch = action.stage, step.batches[action.micro]
            if action.forward:
                given = self._received(stage, batch.input_ids.shape)
                if given is not None:
                    given.requires_grad_()
                step.seed(action.micro * (self._last + 1) + stage)
                with step.autocast():
                    output = self._pass(stage, batch, given)
                total = self._handed_on(stage, output, total)
                held_back[stage, action.micro] = given, output
                continue
            given, output = held_back.pop((stage, action.micro))
            if stage == self._last:
                scaler.scale(output / step.divisor).backward()
            else:
                gradient = self._wires.receive(stage + 1, stage, output.shape)
                # the first stage may have nothing that is trained
                if output.requires_grad:
                    output.backward(gradient)
            if given is not None:
                assert given.grad is not None
                self._wires.send(stage, stage - 1, given.grad)
        self._wires.settle()
        self._reduce()
        return total

    def gradient_norm(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """The norm of the gradients of all stages, in double precision."""
        own = [p for p in parameters if not (self._is_twin and p is self._shared)]
        squares = self._group.joined(gradient_norm(own).double().square())
        return (squares[0] / self._group.dp_size).sqrt()

    def generate(self, **inputs: object) -> torch.Tensor:
        """Token ids that the model generates, the same on each worker."""
        output = self.module.generate(**inputs)
        self._wires.settle()
        return output

    def gathered(self, own: dict[str, Any]) -> dict[str, Any]:
        """Tensors in host memory by name, or dictionaries of such, of all stages, on worker 0.

        Every worker must call this; the others have what they gave.
        """
        group = self._group
        if group.dp_rank:
            return own
        if self._is_twin:
            # as the model calls it, and as its trainer does
            twins = {prefix + name for name in self._names for prefix in ("", "model.")}
            own = {name: value for name, value in own.items() if name not in twins}
        if not group.is_main_process:
            outline = _each(own, lambda t: t.to("meta"))
            dist.send_object_list([outline], 0)
            _each(own, lambda t: dist.send(t.to(self._carrier), 0))
            return own
        for rank in range(1, group.model_parallel_size):
            box: list[Any] = [None]
            dist.recv_object_list(box, rank)
            own = own | _each(box[0], partial(self._fetched, rank))
        known = [own[name] for name in self._names if name in own]
        return own | (dict.fromkeys(self._names, known[0]) if known else {})

    @property
    def _carrier(self) -> torch.device:
        return self._group.device if dist.get_backend() == "nccl" else torch.device("cpu")

    def _fetched(self, rank: int, outline: torch.Tensor) -> torch.Tensor:
        tensor = torch.empty_like(outline, device=self._carrier)
        dist.recv(tensor, rank)
        return tensor.cpu()

    def _received(self, stage: int, shape: Sequence[int]) -> torch.Tensor | None:
        """What `stage` gets from the one before it, for token ids of `shape`."""
        if stage == 0:
            return None
        return self._wires.receive(stage - 1, stage, (*shape, self._width))

    def _pass(self, stage: int, batch: MicroBatch, given: torch.Tensor | None) -> torch.Tensor:
        """The hidden states that `stage` makes of those that it is `given`; at last the loss."""
        with self._alone(stage, given):
            states = self.module.states(batch, given)
        return states if stage < self._last else self.module.loss(states, batch)

    def _handed_on(self, stage: int, output: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Send hidden states on; of the last stage, add the loss to the total."""
        if stage == self._last:
            return total + output.detach()
        self._wires.send(stage, stage + 1, output)
        return total

    @contextmanager
    def _alone(self, stage: int, given: torch.Tensor | None) -> Iterator[None]:
        """The model's body does what `stage` does."""
        (decoder,) = self._decoder
        blocks, norm = decoder.layers, getattr(decoder, self._norm)
        decoder.layers = self._blocks[stage]
        decoder.layers[0].received = given
        if stage < self._last:
            setattr(decoder, self._norm, StandIn())
        try:
            yield
        finally:
            decoder.layers[0].received = None
            decoder.layers = blocks
            setattr(decoder, self._norm, norm)

    def _reduce(self) -> None:
        """Sum gradients over replicas, and those of a weight that two stages share."""
        if self._group.dp_size > 1:
            sum_gradients(self.module.parameters(), self._alike)
        if self._shared is not None:
            sum_gradients([self._shared], self._ends)

    def _logits(
        self, input_ids: torch.Tensor, past_key_values: Cache | None = None, **given: object
    ) -> CausalLMOutputWithPast:
        """What the model's forward gives while it generates: logits of the last position."""
        known = ("attention_mask", "position_ids", "use_cache")
        inputs = {name: given[name] for name in known if name in given}
        logits = torch.empty(len(input_ids), 1, self._vocabulary, device=self._group.device)
        for stage, cache in zip(self._own, self._caches(past_key_values), strict=True):
            received = self._received(stage, input_ids.shape)
            source = {"input_ids": input_ids} if stage == 0 else {"inputs_embeds": received}
            with self._alone(stage, received):
                output = self._decoder[0](**source, **inputs, past_key_values=cache)
            if stage < self._last:
                self._wires.send(stage, stage + 1, output.last_hidden_state)
            else:
                logits = self.module.logits(output.last_hidden_state[:, -1:]).contiguous()
        leader = self._group.dp_rank * self._group.model_parallel_size
        dist.broadcast(logits, leader + self._group.model_parallel_size - 1, self._replica)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def _caches(self, first: Any) -> list[Cache | None]:
        """A cache a stage: each counts the tokens of all blocks by itself."""
        if first is None:
            return [None for _ in self._own]
        if not hasattr(first, "of_later_stages"):
            first.of_later_stages = [copy.deepcopy(first) for _ in self._own[1:]]
        return [first, *first.of_later_stages]


class PipelineModel(TorchModel):
    """The stages of one worker and their optimizer."""

    def __init__(self, stages: Pipeline, group: Group) -> None:
        super().__init__(stages, group)
        self._stages, self.contributes = stages, group.dp_rank == 0

    def backward(self, step: MicroBatches) -> torch.Tensor:
        """Accumulate the gradients of a step; the summed loss, (), on the last stage's worker."""
        return self._stages.accumulate(step, self.scaler)

    def gradient_norm(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """The norm of the gradients of all stages, ()."""
        return self._stages.gradient_norm(parameters)

    def gather(self, own: dict[str, Any]) -> dict[str, Any]:
        """Tensors of all stages, on worker 0."""
        return self._stages.gathered(own)


def _each(values: Mapping[str, Any] | torch.Tensor, act: Callable[[torch.Tensor], object]) -> Any:
    """What `act` makes of each tensor of dictionaries in dictionaries."""
    if isinstance(values, Mapping):
        return {name: _each(part, act) for name, part in values.items()}
    return act(values)
