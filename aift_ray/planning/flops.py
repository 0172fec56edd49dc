"""Floating-point operations of a training step, and what a GPU could do in the same time.

Model FLOPs, as in the PaLM paper (Chowdhery et al. 2022, appendix B): those that the computation
needs, without what activation checkpointing computes again. A weight takes two of them a token in
the forward pass, two for the gradient of its input, and two for its own gradient where it is
trained; so LoRA needs about two thirds of full training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aift_ray.planning.model_shape import Shape

# dense bf16 (V100, T4: fp16) with sums in fp32, 1e12 a second, of NVIDIA's data sheets; the longest
# name that a card's own contains counts
PEAKS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX A5000": 111.1,
    "RTX A4000": 76.7,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}


@dataclass(frozen=True)
class Flops:
    """What a step of a model needs.

    Attributes:
        token: operations of the blocks' matrices for a token.
        label: those of the output layer for a supervised token; it is computed there alone.
        pair: those of attention for a pair of tokens of a document of which one sees the other.
    """

    token: float
    label: float
    pair: float

    @classmethod
    def of(cls, shape: Shape, trained: int, full: bool) -> Flops:
        """Of a model of which `trained` weights are trained, all of them where `full`."""
        active = shape.linear_parameters
        if shape.expert_parameters and shape.counted:
            number = shape.counted.experts[0][0]
            active += shape.expert_parameters * shape.counted.active // number
        head = shape.vocabulary * shape.hidden
        if full:
            return cls(6.0 * active, 6.0 * head, cls._pair(shape))
        # adapters come beside the weights, and are trained
        return cls(4.0 * active + 6.0 * trained, 4.0 * head, cls._pair(shape))

    @staticmethod
    def _pair(shape: Shape) -> float:
        # scores and values, forward and two gradients
        return 2.0 * 2.0 * 3.0 * shape.heads * shape.head_size * shape.layers

    def step(self, lengths: npt.NDArray[np.int32], labels: int) -> float:
        """Of documents of these `lengths`, with so many supervised tokens in all."""
        sizes = lengths.astype(np.float64)
        pairs = float((sizes * (sizes + 1) / 2).sum())
        return float(self.token * sizes.sum() + self.label * labels + self.pair * pairs)


def peak(name: str) -> float | None:
    """Operations a second that a card of this name can do at most; None: it is not known."""
    found = [known for known in PEAKS if known in name]
    return PEAKS[max(found, key=len)] * 1e12 if found else None
