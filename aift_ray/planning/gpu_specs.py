"""GPUs by name: memory and speed, from their data sheets. Nothing in the table was measured.

Sources: NVIDIA's data sheets of RTX A5000, RTX A6000, L4, A100 80GB, H100 and H200 (SXM), its white
papers on the GA102 (RTX 3090) and Ada (RTX 4090). Where a sheet gives products with 2:4 sparsity,
half of that stands here. What a driver reports of the memory is a little less than what is printed
on the box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30
_PCIE4, _PCIE5 = 31.5, 63.0


@dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        name: for people.
        box: GB that it is sold with.
        memory: GiB that CUDA reports of it.
        tflops: dense products in bf16 with sums in fp32.
        bandwidth: of its memory, GB/s.
        pcie: to the host, GB/s each way, 16 lanes.
        nvlink: to its neighbours, GB/s each way; None: by PCIe.
        measured: whether the figures are what was reached, not a data sheet's.
    """

    name: str
    box: int
    memory: float
    tflops: float
    bandwidth: float
    pcie: float
    nvlink: float | None = None
    measured: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of memory that CUDA reports."""
        return int(self.memory * GIB)

    @property
    def link(self) -> float:
        """GB/s each way between two cards."""
        return self.nvlink or self.pcie


CARDS = {
    "a5000": Card("RTX A5000", 24, 23.6, 111.1, 768, _PCIE4),
    "a6000": Card("RTX A6000", 48, 47.5, 154.8, 768, _PCIE4),
    "3090": Card("RTX 3090", 24, 23.6, 71.0, 936, _PCIE4),
    "4090": Card("RTX 4090", 24, 23.6, 165.2, 1008, _PCIE4),
    "l4": Card("L4", 24, 22.0, 121.0, 300, _PCIE4),
    "a100": Card("A100 80GB SXM", 80, 79.1, 312.0, 2039, _PCIE4, 300),
    "h100": Card("H100 SXM", 80, 79.1, 989.4, 3350, _PCIE5, 450),
    "h200": Card("H200 SXM", 141, 139.7, 989.4, 4800, _PCIE5, 450),
}


def of_name(name: str) -> Card | None:
    """The card that a driver calls `name`; None: it is not known."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return next((card for key, card in CARDS.items() if key in words), None)


def of_memory(size: int) -> str:
    """The name of the smallest card that is sold with as much as `size` bytes, else the largest."""
    large = [name for name, card in CARDS.items() if card.box * 1e9 >= size]
    return min(large, key=lambda name: CARDS[name].box, default="h200")
