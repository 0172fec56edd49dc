"""Which device or stage holds which piece of a model. Arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# in place of a device's number: the host
HOST = -1


@dataclass(frozen=True)
class ModelPart:
    """What is never split: the embeddings, a block, the last norm, the output layer.

    Attributes:
        name: of the module in the model.
        bytes: its weights, gradients, optimizer state, and activations that are kept.
        work: multiplications a token, forward and backward.
        shares: name of the piece whose weight it uses too, and beside which it must lie.
    """

    name: str
    bytes: int
    work: float
    shares: str | None = None


def laid_out(
    pieces: Sequence[ModelPart], limits: Mapping[int, int], spill: bool = False
) -> tuple[dict[str, int], list[ModelPart]]:
    """The device of each piece, filled one after the other in the pieces' order.

    Args:
        limits: bytes that each device takes.
        spill: what fits no device lies in the host.

    Returns:
        {name: device}, and the pieces that fit nowhere.
    """
    layout: dict[str, int] = {}
    left: list[ModelPart] = []
    devices = iter(sorted(limits))
    device = next(devices, None)
    room = limits[device] if device is not None else 0
    for piece in pieces:
        while device is not None and piece.bytes > room:
            device = next(devices, None)
            room = limits[device] if device is not None else 0
        if piece.shares in layout:
            layout[piece.name] = layout[piece.shares]
        elif device is not None:
            layout[piece.name] = device
        elif spill:
            layout[piece.name] = HOST
        else:
            left.append(piece)
            continue
        room -= piece.bytes
    return layout, left


def dealt_out(work: Sequence[float], stages: int, last: float = 0.0) -> list[int]:
    """Numbers of blocks a stage, in order, such that the slowest stage has the least work.

    Args:
        work: of each block; at least as many as stages.
        last: further work of the last stage: the output layer.
    """
    number = len(work)
    sums = [0.0]
    for one in work:
        sums.append(sums[-1] + one)
    # best[n]: the slowest stage when the blocks from n on make up the stages looked at so far
    best = [sums[number] - sums[n] + last for n in range(number)]
    cuts: list[list[int]] = []
    for later in range(1, stages):
        found, cut = list(best), [number] * number
        for first in range(number - later):
            ways = range(first + 1, number - later + 1)
            cut[first] = min(ways, key=lambda end: max(sums[end] - sums[first], best[end]))
            found[first] = max(sums[cut[first]] - sums[first], best[cut[first]])
        best = found
        cuts.append(cut)
    sizes, at = [], 0
    for cut in reversed(cuts):
        sizes.append(cut[at] - at)
        at = cut[at]
    return [*sizes, number - at]
