"""How much memory a worker needs, part by part. Every figure is computed, none measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aift_ray.planning.shape import Shape

GIB = 2**30
_FLOAT32 = 4
# positions whose logits are in memory at once, in fp32: the logits and their gradient
_LOGIT_POSITIONS, _LOGIT_COPIES = 256, 3
# bits of a quantized weight: of 4 bits, 64 weights share a scale of 8 bits, 256 scales one in fp32
_HELD_BITS = {4: 4 + 8 / 64 + 32 / (64 * 256), 8: 8.0}
# where matrices are split, the scales of 4 bits are in fp32
_SPLIT_BITS = 4 + 32 / 64
# bytes of two moments of 8 bits: 256 weights share a scale in fp32 for each
_MOMENTS_8BIT = 2 + 2 * _FLOAT32 / 256
# bytes of a position's logits by token of the vocabulary
LOGIT_BYTES = _FLOAT32 * _LOGIT_COPIES


def moments(trained: int, optimizer: str, full: bool = True) -> tuple[int, int]:
    """Bytes of AdamW's two moments of `trained` weights on the device, and in host memory.

    Paged moments are counted in the host, where they lie when the device is full. Matrices under
    100,000 weights are never paged, so those of adapters are counted on the device.

    Args:
        optimizer: as the configuration names it.
        full: whether whole matrices are trained.
    """
    size = round(trained * (_MOMENTS_8BIT if optimizer.endswith("8bit") else 2 * _FLOAT32))
    return (0, size) if optimizer.startswith("paged") and full else (size, 0)


def held_bytes(weights: int, width: int, bits: int | None) -> int:
    """Bytes of weights that are not trained, `width` each, or quantized to `bits` bits."""
    return round(weights * _HELD_BITS[bits] / 8) if bits else weights * width


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker by part, computed for training with AdamW.

    Attributes:
        gathered: weights of other workers, while they are used.
        process: libraries and tokenizer, where the device is the host itself.
        host: held in host memory instead of the device.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int = 0
    process: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """Sum of the parts on the device; the device's own overhead comes on top."""
        return int(sum(vars(self).values())) - self.host

    @property
    def parts(self) -> str:
        """The parts in words."""
        sizes = {name: size for name, size in vars(self).items() if size or name == "weights"}
        return ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in sizes.items())


@dataclass(frozen=True)
class Work:
    """What a worker does, as far as its memory depends on it.

    Attributes:
        method: full, or lora for what only trains adapters.
        rank: of LoRA; unused for method full.
        tokens: of the longest micro-batch.
        frozen_bytes: bytes of a weight that is not trained (2 in bf16, 4 in fp32); activations
            have the same width.
        checkpointing: whether activations are recomputed block by block.
        base_bits: bits of a weight of the blocks' linear layers, 4 or 8; None: not quantized.
        strategy, workers: what is shared out over how many.
        whole: weights trained as a whole beside the adapters, a copy of those of the base.
        apart: stages of a pipeline, devices of a model laid out over several, or workers that
            split each matrix.
        offload: shares of weights, gradients and optimizer state lie in host memory.
        optimizer: as the configuration names it.
        process: bytes that a worker on a CPU holds before it has a model; 0 on a GPU.
        targets: supervised tokens of a micro-batch at most, where that is known.
        dropout: whether adapters drop inputs, on a CPU.
    """

    method: str
    rank: int
    tokens: int
    frozen_bytes: int
    checkpointing: bool
    base_bits: int | None = None
    strategy: str = "ddp"
    workers: int = 1
    whole: int = 0
    apart: int = 1
    offload: bool = False
    optimizer: str = "adamw"
    process: int = 0
    targets: int | None = None
    dropout: bool = False

    @property
    def full(self) -> bool:
        """Whether the base is trained."""
        return self.method == "full"

    @property
    def split(self) -> int:
        """Workers that have a part of each matrix."""
        return self.apart if self.strategy == "tensor" else 1

    @property
    def shares(self) -> int:
        """Workers among whom weights, gradients or moments are shared out."""
        return self.workers if self.strategy in ("fsdp", "zero1", "zero2", "zero3") else 1

    @property
    def held(self) -> float:
        """Bytes of a weight of the blocks' linear layers while it is not in use."""
        if self.base_bits == 4 and self.split > 1:
            return _SPLIT_BITS / 8
        return _HELD_BITS[self.base_bits] / 8 if self.base_bits else self.frozen_bytes

    @property
    def expert_held(self) -> float:
        """The same of a weight of the experts, which bitsandbytes has no 8 bits for."""
        return _HELD_BITS[4] / 8 if self.base_bits == 4 else self.frozen_bytes


@dataclass(frozen=True)
class _Part:
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


def memory(shape: Shape, work: Work) -> Memory:
    """Memory of the worker, or device, that needs the most."""
    return max(memories(shape, work), key=lambda need: need.total)


def memories(shape: Shape, work: Work) -> list[Memory]:
    """Memory of a worker; of each stage, where there are stages."""
    parts = [_Part(shape.layers, 1 if shape.tied else 2)]
    if work.strategy in ("pipeline", "model_parallel"):
        parts = _stages(shape, work.apart, work.strategy)
    return [_need(shape, part, work) for part in parts]


def _need(shape: Shape, part: _Part, work: Work) -> Memory:
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
        activations += part.in_flight * linear * _copied(width)
    if work.base_bits:
        # one layer at a time is brought back to the width of the computation
        activations += shape.largest * width
    on_device, in_host = moments(trained, work.optimizer, work.full)
    need = Memory(
        weights=frozen + shape.beside * width + trained * _FLOAT32,
        gradients=trained * _FLOAT32,
        optimizer=on_device,
        activations=activations,
        logits=_logits(shape, work, width if work.full else 0) if part.last else 0,
        process=work.process,
        host=in_host,
    )
    if work.shares == 1 and not work.offload:
        return need
    return _shared_out(need, work, shape.layers, blocks, loose * width)


def _counts(shape: Shape, part: _Part, rank: int, split: int) -> tuple[int, int, int]:
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


def _widened_experts(shape: Shape, part: _Part, work: Work) -> int:
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


def _stages(shape: Shape, number: int, strategy: str) -> list[_Part]:
    """Blocks dealt out evenly; of a pipeline (1F1B), earlier stages keep more micro-batches."""
    stages = []
    for stage in range(number):
        first, last = stage == 0, stage == number - 1
        blocks = shape.layers * (stage + 1) // number - shape.layers * stage // number
        tables = 1 if first and last and shape.tied else first + last
        in_flight = number - stage if strategy == "pipeline" else 1
        stages.append(_Part(blocks, tables, last, in_flight))
    return stages


def _activations(shape: Shape, part: _Part, work: Work) -> int:
    tokens = work.tokens * work.frozen_bytes
    # where matrices are split, so are the positions in between; two gathered copies come on top
    inside = tokens * (10 * shape.hidden + 4 * shape.feed_forward + shape.routed)
    if work.dropout and not work.full:
        # of each adapter its input with gaps, and the gaps, which a CPU keeps in full width
        inside += 2 * tokens * shape.adapted_inputs
    inside //= work.split
    block = inside + (tokens * 2 * shape.hidden if work.split > 1 else 0)
    if not work.checkpointing:
        return part.in_flight * part.blocks * block
    return part.in_flight * part.blocks * tokens * shape.hidden // work.split + block


def _logits(shape: Shape, work: Work, width: int) -> int:
    """Bytes of a piece's logits; where the output layer is trained, of its gradient too.

    Args:
        width: bytes of a weight in the computation, where the output layer is trained; else 0.
    """
    tokens = work.tokens if work.targets is None else min(work.tokens, work.targets)
    logits = min(tokens, _LOGIT_POSITIONS) * shape.vocabulary * LOGIT_BYTES
    # a copy in the width of the computation, a piece's gradient, and the sum of all in fp32
    trained = _copied(width) + width + _FLOAT32 if width else 0
    return logits + shape.vocabulary * shape.hidden * trained


def _copied(width: int) -> int:
    """Bytes of the copy of a trained weight in the `width` of the computation."""
    return width if width < _FLOAT32 else 0


def _shared_out(need: Memory, work: Work, layers: int, blocks: float, loose: int) -> Memory:
    """The need of one of several who share a model out, or of one who keeps it in host memory.

    Args:
        blocks: bytes of the weights of all blocks, as they are gathered.
        loose: of all else.
    """
    # gathered besides: all blocks, or two of them, the one in use and the next
    used = 1.0 if work.strategy in ("zero1", "zero2") else min(1, 2 / layers)
    shared = need.gradients // work.shares
    gradients = need.gradients if work.strategy == "zero1" else shared
    weights, optimizer = need.weights // work.shares, need.optimizer // work.shares
    need = replace(need, gathered=round(used * blocks) + loose)
    if not work.offload:
        return replace(need, weights=weights, gradients=gradients, optimizer=optimizer)
    # a block's gradient, and that of all else, before they are reduced and moved
    moving = round(blocks / layers + loose) if work.full else gradients
    host = weights + gradients + optimizer
    return replace(need, weights=0, gradients=moving, optimizer=0, host=host)
