"""How much memory a worker needs, part by part. Every figure is computed, none measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aift_ray.planning.deepspeed_memory import PartitionedModel, partitioned
from aift_ray.planning.memory_parts import (
    FLOAT32,
    GIB,
    SCALE_BITS,
    Memory,
    Workload,
    held_bytes,
    logit_bytes,
    moments,
)
from aift_ray.planning.model_shape import Shape
from aift_ray.planning.overheads import heap_slack, with_copies, with_overheads

# positions whose logits are in memory at once
_LOGIT_POSITIONS = 256
# of the numbers of a block's width that it keeps of a token: those in the width of the stream
_STREAMED = 4
# bytes of a token of the vocabulary while one is sampled: logits and log-probabilities in fp32,
# probabilities and their sums in fp64
_SAMPLED = 24
# the same where the likeliest is taken: logits, and two copies in fp32
_GREEDY = 12
# bytes of a number that dropout has left: itself in 16 bits, and whether it was left
_DROPPED = 3
__all__ = [
    "GIB",
    "Memory",
    "Workload",
    "held_bytes",
    "memories",
    "memory",
    "moments",
]


@dataclass(frozen=True)
class _Term:
    """What of a model lies on one device: all of it, or a stage.

    Attributes:
        tables: embeddings and output layer, 0 to 2.
        last: whether the logits are made here.
        in_flight: micro-batches whose activations are kept at once.
    """

    blocks: int
    tables: int
    last: bool = True
    in_flight: int = 1


def memory(shape: Shape, work: Workload) -> Memory:
    """Memory of the worker, or device, that needs the most, when it needs the most."""
    return max(memories(shape, work), key=lambda need: need.total)


def memories(shape: Shape, work: Workload) -> list[Memory]:
    """The same of a worker; of each stage, where there are stages."""
    return [_most(each) for each in phases(shape, work)]


def _most(each: dict[str, Memory]) -> Memory:
    """Of the phases that which needs most of the device, with what any needs of the host."""
    most = max(each.values(), key=lambda need: need.total)
    return replace(most, host=max(need.host for need in each.values()))


def phases(shape: Shape, work: Workload) -> list[dict[str, Memory]]:
    """Memory of a worker, or of each stage, while it loads, steps, saves and evaluates.

    The trial of the longest micro-batch needs what a step does: moments are allocated before it.
    """
    parts = [_Term(shape.layers, 1 if shape.tied else 2)]
    if work.strategy in ("pipeline", "model_parallel"):
        parts = _stages(shape, work.model_parallel_size, work.strategy)
    return [
        {
            name: with_overheads(need, work)
            for name, need in with_copies(_phases(shape, part, work), work).items()
        }
        for part in parts
    ]


def _phases(shape: Shape, part: _Term, work: Workload) -> dict[str, Memory]:
    step, width = _step(shape, part, work), work.frozen_bytes
    logits = min(step.logits, _logits(shape, work, 0))
    answering = "generate" if work.completions else "evaluate"
    # of an evaluation nothing is kept for a backward pass
    asked = replace(work, tokens=max(work.tokens, work.asked_tokens), dropout=False)
    chosen = max(work.completions * _SAMPLED, work.answers * _GREEDY) * shape.vocabulary
    evaluate = replace(
        step,
        gradients=0,
        # what the steps have freed is given back before
        slack=0,
        activations=_block(shape, asked) + (shape.largest * width if work.base_bits else 0),
        logits=max(logits, chosen),
        cache=work.answer_tokens * shape.cache_bytes(width) * part.blocks // shape.layers,
        engine=work.engine,
    )
    if work.gathers and work.completions and not work.engine:
        # all weights, for the time of a generation
        whole = _step(shape, part, replace(work, strategy="zero2")).gathered
        evaluate = replace(evaluate, gathered=whole)
    if work.process and work.completions:
        # a CPU generates with copies of the weights in another layout
        copied = shape.linear_parameters + shape.vocabulary * shape.hidden
        evaluate = replace(evaluate, activations=evaluate.activations + copied * width)
    if not (work.gathers or work.split > 1):
        load = replace(step, gradients=0, optimizer=0, activations=0, logits=0, slack=0)
        if work.base_bits:
            # each matrix is brought to the device before it is quantized
            load = replace(load, activations=shape.largest * width)
        return {"load": load, "step": step, answering: evaluate}
    # FSDP moves a block, or what is outside of blocks, to the device whole; 4 bits are quantized
    # there matrix by matrix, and what is not shared out yet is in the host
    tables = part.tables * shape.vocabulary * shape.hidden * work.gathers
    kept = work.trained_bytes if work.full else width
    inside = shape.linear_parameters // shape.layers * work.gathers
    block = max(shape.largest if work.base_bits else inside, tables) * kept
    matrices = shape.linear_parameters + shape.expert_parameters
    waiting = held_bytes(matrices, width, work.base_bits) if work.base_bits else 0
    empty = {"gradients": 0, "activations": 0, "logits": 0, "gathered": 0, "buffers": 0, "slack": 0}
    load = replace(step, **empty, optimizer=0)
    # what not all workers see is gathered tensor by tensor
    save = replace(step, **empty)
    largest = max(shape.largest, shape.vocabulary * shape.hidden) if work.full else 0
    return {
        "load": replace(load, gathered=block, host=max(load.host, waiting // work.shares)),
        "step": step,
        "save": replace(save, gathered=largest * FLOAT32),
        answering: evaluate,
    }


def _step(shape: Shape, part: _Term, work: Workload) -> Memory:
    linear, loose, adapters = _counts(shape, part, work.rank, work.split)
    width = work.frozen_bytes
    experts = shape.expert_parameters * part.blocks // shape.layers
    whole = work.whole if part.last else 0
    trained = linear + experts + loose if work.full else adapters + whole
    blocks = linear * work.held + experts * work.expert_held
    frozen = 0 if work.full else round(blocks) + loose * width
    activations = _activations(shape, part, work) + _widened_experts(shape, part, work)
    if work.full and not work.checkpointing and work.shares == 1:
        # copies that the backward pass needs; those of shared weights are counted as gathered
        activations += part.in_flight * linear * work.narrowed_bytes
    if work.base_bits:
        # one layer at a time is brought back to the width of the computation
        activations += shape.largest * width
    on_device, in_host = moments(trained, work.optimizer, work.full)
    each = work.trained_bytes
    need = Memory(
        weights=(frozen + shape.beside * width + trained * each) * (1 + work.reference),
        gradients=trained * each,
        optimizer=on_device,
        activations=activations,
        logits=_logits(shape, work, width if work.full else 0) if part.last else 0,
        process=work.process,
        slack=heap_slack(part.blocks * _block(shape, work)) if work.process else 0,
        host=in_host // work.shares + work.inputs_in_host(shape.hidden, part.blocks),
        copied=work.copied_of(trained * each + on_device + in_host),
    )
    if not work.gathers:
        return need
    scales = round((linear + experts) * SCALE_BITS / 8) if work.base_bits == 4 else 0
    outside = loose * (FLOAT32 if work.full else width)
    if work.by_deepspeed:
        numbers = PartitionedModel(
            shape.layers, shape.hidden, blocks, loose * width, scales, trained
        )
        return partitioned(need, work, numbers)
    return _shared_out(need, work, shape.layers, blocks, loose * width, scales, outside)


def _counts(shape: Shape, part: _Term, rank: int, split: int) -> tuple[int, int, int]:
    """Weights of the linear layers, of all else, and of adapters."""
    if shape.counted:
        # a model that is split matrix by matrix is never one that had to be counted
        tables = shape.vocabulary * shape.hidden
        inside = (shape.loose - tables * (1 if shape.tied else 2)) * part.blocks // shape.layers
        linear = shape.linear_parameters * part.blocks // shape.layers
        adapters = shape.adapter_parameters(rank) * part.blocks // shape.layers
        return linear, inside + part.tables * tables, adapters
    linear = part.blocks * sum(a * b for a, b in shape.linear_shapes) // split
    norms = part.blocks * (2 * shape.hidden + shape.extra) + (shape.hidden if part.last else 0)
    loose = norms + part.tables * shape.vocabulary * shape.hidden // split
    # of an adapter, the half at the cut is split with its layer
    columns = sum(a + b // split for a, b in shape.column_shapes)
    rows = sum(a // split + b for a, b in shape.row_shapes)
    return linear, loose, part.blocks * rank * (columns + rows)


def _widened_experts(shape: Shape, part: _Term, work: Workload) -> int:
    """Bytes of copies of the experts of a block, in the width of the computation.

    They are dequantized, and PEFT adds an adapter to all of them: the backward pass needs the
    result, and makes a gradient of its size.
    """
    if work.full:
        return 0
    block, quantized = shape.block_experts * work.frozen_bytes, work.base_bits == 4
    kept = block * (quantized or shape.adapts_experts)
    blocks = 1 if work.checkpointing else part.in_flight * part.blocks
    return kept * blocks + block * shape.adapts_experts * (1 + quantized)


def _stages(shape: Shape, number: int, strategy: str) -> list[_Term]:
    """Blocks dealt out evenly; of a pipeline (1F1B), earlier stages keep more micro-batches."""
    stages = []
    for stage in range(number):
        first, last = stage == 0, stage == number - 1
        blocks = shape.layers * (stage + 1) // number - shape.layers * stage // number
        tables = 1 if first and last and shape.tied else first + last
        in_flight = number - stage if strategy == "pipeline" else 1
        stages.append(_Term(blocks, tables, last, in_flight))
    return stages


def _activations(shape: Shape, part: _Term, work: Workload) -> int:
    block = _block(shape, work)
    # keys and values of a divided row, as each worker gathers them for a block
    gathered = work.row_tokens * shape.cache_bytes(work.frozen_bytes) // shape.layers
    if not work.checkpointing:
        return part.in_flight * part.blocks * (block + gathered) + gathered
    # of a GPU, two inputs of blocks at most are there at once where all are in host memory
    inputs = min(part.blocks, 2) if work.activations_in_host else part.blocks
    inputs *= work.tokens * work.stream_bytes * shape.hidden // work.split
    kept = work.tokens * shape.kept_outputs(not work.full) * work.frozen_bytes * part.blocks
    kept = kept if work.selective else 0
    # those of one block, a copy in the order of the row, and a gradient
    return part.in_flight * (inputs + round(kept)) + block + 3 * gathered


def _block(shape: Shape, work: Workload) -> int:
    """Bytes that a block keeps for its backward pass."""
    width = work.frozen_bytes
    numbers = 10 * shape.hidden + 4 * shape.feed_forward + shape.routed
    # where matrices are split, so are the positions in between; two gathered copies come on top
    token = numbers * width + _STREAMED * shape.hidden * (work.stream_bytes - width)
    # a CPU keeps what was left, and which, in full width
    dropped = 2 * work.frozen_bytes if work.process else _DROPPED
    token += round(shape.adapted_inputs * dropped) if work.dropout and not work.full else 0
    inside = work.tokens * token // work.split
    return inside + (work.tokens * width * 2 * shape.hidden if work.split > 1 else 0)


def _logits(shape: Shape, work: Workload, width: int) -> int:
    """Bytes of a piece's logits; where the output layer is trained, of its gradient too.

    Args:
        width: bytes of a weight in the computation, where the output layer is trained; else 0.
    """
    tokens = work.tokens if work.targets is None else min(work.tokens, work.targets)
    logits = min(tokens, _LOGIT_POSITIONS) * shape.vocabulary * logit_bytes(work.frozen_bytes)
    # a copy in the width of the computation, a piece's gradient, and the sum of all in fp32
    trained = work.narrowed_bytes + width + FLOAT32 if width else 0
    return logits + shape.vocabulary * shape.hidden * trained


def _shared_out(
    need: Memory, work: Workload, layers: int, blocks: float, loose: int, scales: int, outside: int
) -> Memory:
    """The need of one of several who share a model out, or of one who keeps it in host memory.

    Args:
        blocks: bytes of the weights of all blocks, as they are gathered.
        loose: of all else.
        scales: of 4-bit weights, which are whole on each worker.
        outside: of all that is outside the blocks, in the width of its gradients.
    """
    # gathered besides: all blocks, or two of them, the one in use and the next
    used = 1.0 if work.strategy in ("zero1", "zero2") else min(1, 2 / layers)
    shared = need.gradients // work.shares
    # whole gradients are added up in fp32
    whole = need.gradients * FLOAT32 // work.trained_bytes
    gradients = whole if work.strategy == "zero1" else shared
    weights = (need.weights - scales) // work.shares + scales
    optimizer = need.optimizer // work.shares
    # FSDP gathers what is outside the blocks in one piece, as large as any, in a stream of its
    # own, whose memory no other stream uses; of full training it reduces one in fp32 likewise
    buffers = round(max(loose, blocks / layers))
    if work.full:
        buffers += round(max(outside, blocks / layers * FLOAT32 / work.frozen_bytes))
    need = replace(need, gathered=round(used * blocks) + loose)
    need = replace(need, buffers=buffers if work.shares > 1 else 0)
    if not work.offload:
        return replace(need, weights=weights, gradients=gradients, optimizer=optimizer)
    # a block's gradient, and that of all else, before they are reduced and moved
    moving = round(blocks / layers + loose) if work.full else gradients
    host = need.host + weights + gradients + optimizer
    return replace(need, weights=0, gradients=moving, optimizer=0, host=host)
