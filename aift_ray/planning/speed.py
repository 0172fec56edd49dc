"""How fast a run or a server can be, by arithmetic: an estimate to compare by, not a promise.

Work, bytes and data sheets are exact; which part of a sheet's figure is reached is experience: what
others reach of it in training is 41 to 71% of the products, and in decoding 78 to 84% of the
memory's bandwidth in 16 bits, 57 to 60% in 4 (docs/planning.md names the sources).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aift_ray.planning.gpu_specs import Card
from aift_ray.planning.memory_parts import FLOAT32, Workload, held_bytes
from aift_ray.planning.model_shape import Shape

# parts of a data sheet's figure that are reached
PRODUCTS, BANDWIDTH, LINK = 0.65, 0.80, 0.80
# of the memory's in decoding with weights of 4 bits
NARROW = 0.60
# of what was measured with large matrices and long copies
OF_MEASURED = 0.80
# bytes a second that AdamW moves in host memory, of all workers of a machine together
HOST_BANDWIDTH = 50e9
# seconds of Python and launches for a block: some 720 operations forward, backward and once more;
# and in decoding, without graphs
BLOCK_LAUNCHES, DECODED_BLOCK = 3.5e-3, 0.9e-3
# seconds that vLLM's scheduler takes for a step
DECODED_STEP = 3e-3
# what is sent beside the work and is waited for all the same
_EXPOSED = 0.1
# bytes that dequantization reads and writes for a weight of 4 bits
_DEQUANTIZED = 4.5
# bytes that AdamW moves a weight: weight and moments read and written, gradient read
_STEPPED = 28


@dataclass(frozen=True)
class Speed:
    """An estimate.

    Attributes:
        tokens_per_second: of all cards together.
        limit: what takes most of the time.
        seconds: of a step by what takes them.
    """

    tokens_per_second: float
    limit: str
    seconds: dict[str, float] = field(default_factory=dict)

    def hours(self, tokens: float) -> float:
        """Hours for a number of tokens."""
        return tokens / self.tokens_per_second / 3600


def matrix_parameters(shape: Shape) -> int:
    """Parameters that a token is multiplied with: matrices, its experts, the output layer."""
    head = shape.vocabulary * shape.hidden
    if not shape.counted:
        return shape.linear_parameters + head
    experts = sum(a * b for _, a, b in shape.counted.experts) * shape.counted.active
    return shape.linear_parameters + experts + head


def token_operations(shape: Shape, work: Workload, length: int) -> float:
    """Floating-point operations of training for a token of rows of `length` tokens."""
    # of what is recomputed, selective recomputation keeps attention and every other product
    products = work.forwards + work.checkpointing * (0.5 if work.selective else 1)
    again = work.forwards + (work.checkpointing and not work.selective)
    passes = (6 if work.full else 4) + 2 * products
    attention = 2 * length * shape.heads * shape.head_size * shape.layers
    return passes * matrix_parameters(shape) + (3.5 + again) * attention


def training(shape: Shape, work: Workload, card: Card, length: int, micro_steps: int) -> Speed:
    """Of a step of `micro_steps` micro-batches a worker, each of `work.tokens` tokens.

    Args:
        length: tokens of a row, of which attention takes its part.
    """
    cards = work.workers if work.strategy != "model_parallel" else work.model_parallel_size
    compute = work.tokens * token_operations(shape, work, length)
    compute /= _products(card)
    memory = 0.0
    if work.base_bits == 4:
        dequantized = _DEQUANTIZED * (shape.linear_parameters + shape.expert_parameters)
        memory = dequantized * (2 + work.checkpointing + work.forwards) / _bandwidth(card)
    launches = max(0.0, shape.layers * BLOCK_LAUNCHES - compute - memory)
    terms = {"compute": compute, "memory bandwidth": memory, "Python and launches": launches}
    # how many cards share the work of a micro-batch
    apart = cards if work.strategy in ("tensor", "pipeline", "model_parallel") else 1
    busy = (compute + memory + launches) * micro_steps
    terms = {name: seconds * micro_steps / apart for name, seconds in terms.items()}
    if work.strategy == "pipeline":
        # while it fills and empties
        terms["waiting for other cards"] = busy / cards * (cards - 1) / micro_steps
    elif work.strategy == "model_parallel":
        terms["waiting for other cards"] = busy * (cards - 1) / cards
    terms |= _links(shape, work, card, micro_steps, busy)
    if work.row_tokens:
        terms |= _row_links(shape, work, card, micro_steps)
    if moved := work.inputs_in_host(shape.hidden, shape.layers):
        # there and back, on the stream that computes
        terms["activations in host memory"] = 2 * moved * micro_steps / _link(card, card.pcie)
    if work.offload and not work.by_deepspeed and micro_steps > 1:
        # the first copy is made beside the work; later ones are waited for, and added by the host
        own = _trained(shape, work) * FLOAT32 / work.workers
        each = own / _link(card, card.pcie) + 3 * own * work.workers / HOST_BANDWIDTH
        terms["gradients added in host memory"] = each * (micro_steps - 1)
    terms |= _optimizer(shape, work, card)
    replicas = (
        work.workers // max(work.model_parallel_size, 1) if work.strategy != "model_parallel" else 1
    )
    tokens = replicas * micro_steps * work.tokens
    limit = max(terms, key=lambda name: terms[name])
    return Speed(tokens / sum(terms.values()), limit, terms)


def with_generation(found: Speed, seconds: float) -> Speed:
    """The same of a run that generates what it trains, which takes so long a step."""
    step = sum(found.seconds.values())
    terms = found.seconds | {"generation": seconds}
    limit = max(terms, key=lambda name: terms[name])
    return Speed(found.tokens_per_second * step / (step + seconds), limit, terms)


def _products(card: Card) -> float:
    """Operations a second that are reached."""
    return (OF_MEASURED if card.measured else PRODUCTS) * card.tflops * 1e12


def _bandwidth(card: Card) -> float:
    """Bytes a second of the card's memory that are reached."""
    return (1.0 if card.measured else BANDWIDTH) * card.bandwidth * 1e9


def _link(card: Card, rate: float) -> float:
    """Bytes a second that are reached of a link of `rate` GB/s."""
    return (1.0 if card.measured else LINK) * rate * 1e9


def _trained(shape: Shape, work: Workload) -> int:
    if work.full:
        return shape.parameters - shape.beside
    return shape.adapter_parameters(work.rank) + work.whole


def _links(
    shape: Shape, work: Workload, card: Card, micro_steps: int, busy: float
) -> dict[str, float]:
    """Seconds of a step that cards wait for each other's bytes, or the host's."""
    number, between = max(work.workers, work.model_parallel_size), _link(card, card.link)
    name = "NVLink" if card.nvlink else "PCIe"
    others = (number - 1) / number
    reduced = others * _trained(shape, work) * FLOAT32
    if work.strategy in ("pipeline", "model_parallel"):
        handed_on = work.tokens * shape.hidden * work.frozen_bytes * 2 * micro_steps
        return {name: handed_on / between if number > 1 else 0.0}
    if work.strategy == "tensor":
        # two gathered and two scattered a block, forward, once more, backward; not hidden
        sent = shape.layers * work.tokens * shape.hidden * work.frozen_bytes * 4 * others
        return {name: sent * (2 + work.checkpointing) * micro_steps / between}
    if not work.gathers:
        # sent beside the last backward pass, which is more than half of a micro-step
        sent = 2 * reduced if number > 1 else 0.0
        return {name: max(0.0, sent / between - busy / micro_steps / 2)}
    if work.by_deepspeed:
        return {name: _deepspeed_links(shape, work, card, micro_steps)}
    width, weights = work.frozen_bytes, _weights(shape, work)
    times = {"zero1": 1, "zero2": micro_steps}.get(work.strategy, 2 * micro_steps)
    sent = others * weights * times + reduced * (1 if work.strategy == "zero1" else micro_steps)
    seconds = sent / between
    if work.offload:
        # shares go up in the width in which they are held
        up = weights / number * (FLOAT32 / width if work.full else 1) * times
        seconds += up / _link(card, card.pcie)
    return {name: max(_EXPOSED * seconds, seconds - busy)}


def _weights(shape: Shape, work: Workload) -> int:
    """Bytes of the weights in the width of the computation, or in 4 bits."""
    inside = shape.linear_parameters + shape.expert_parameters
    width = work.frozen_bytes
    return held_bytes(inside, width, work.base_bits) + shape.loose * width


def _deepspeed_links(shape: Shape, work: Workload, card: Card, micro_steps: int) -> float:
    """Seconds of a step that cards wait for DeepSpeed (0.19.8), which sends nothing beside the
    work as its engine is configured here (overlap_comm)."""
    number, stage = work.workers, int(work.strategy[-1])
    # a card's parts: of what is trained, in fp32, and of all weights, as they are gathered
    own = _trained(shape, work) * FLOAT32 / number
    wide = FLOAT32 / work.frozen_bytes if work.full else 1
    held = _weights(shape, work) * wide / number
    reduced = (number - 1) * own
    # forward and backward, unless so few weights are kept in between
    gathered = held * micro_steps * (1 if shape.parameters <= work.live else 2)
    if stage == 3:
        sent = (number - 1) * gathered + reduced * micro_steps
    else:
        # gradients are all-reduced, stage 1's once a step; then the weights stepped are gathered
        sent = reduced * (2 * (micro_steps if stage == 2 else 1) + 1)
    seconds = sent / _link(card, card.link)
    if work.offload:
        # gradients go down, and come back to be added to; weights go up once they are stepped,
        # or each time that they are gathered
        moved = own * (2 * micro_steps - 1) + (gathered if stage == 3 else own)
        seconds += moved / _link(card, card.pcie)
    return seconds


def _row_links(shape: Shape, work: Workload, card: Card, micro_steps: int) -> dict[str, float]:
    """Seconds of a step that cards wait for keys and values of the rows that they divide."""
    sent = (work.row_tokens - work.tokens) * shape.cache_bytes(work.frozen_bytes)
    # gathered forward and once more, and the sum of their gradients; each block waits for it
    seconds = sent * (2 + work.checkpointing) * micro_steps / _link(card, card.link)
    return {"keys and values": seconds}


def _optimizer(shape: Shape, work: Workload, card: Card) -> dict[str, float]:
    moved = _trained(shape, work) * _STEPPED
    if work.offload:
        # all workers' shares lie in one machine's memory
        return {"the optimizer's step in host memory": moved / HOST_BANDWIDTH}
    on_one = moved / max(work.shares, work.model_parallel_size)
    return {"the optimizer's step": on_one / _bandwidth(card)}


def decoding(
    shape: Shape, card: Card, cached: float, rows: int, bits: int | None, graphs: bool, cards: int
) -> float:
    """Tokens a second of `rows` answers made at once.

    Args:
        cached: bytes of keys and values that a step reads of a row.
        bits: of a weight of the linear layers; None: 16.
        graphs: the engine launches a step as one CUDA graph.
        cards: that hold the model together.
    """
    table = 0 if shape.tied else shape.vocabulary * shape.hidden * 2
    weights = shape.weight_bytes(2, bits) - table
    experts = shape.counted.experts if shape.counted else ()
    if experts and shape.counted:
        # of a mixture, those experts that some row takes
        active = shape.counted.active
        idle = sum(n * a * b * (1 - min(1.0, rows * active / n)) for n, a, b in experts)
        weights -= round(idle * (bits or 16) / 8)
    narrow = NARROW / BANDWIDTH if bits == 4 else 1.0
    read = (weights + rows * cached) / (narrow * _bandwidth(card))
    work = rows * 2 * matrix_parameters(shape) / _products(card)
    launches = DECODED_STEP if graphs else shape.layers * DECODED_BLOCK
    return rows / max(max(read, work) / cards, launches)
