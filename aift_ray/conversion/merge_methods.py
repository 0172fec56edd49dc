"""Weights of several models to one: the arithmetic.

linear: weighted sum. slerp: along the arc between two weights (Shoemake 1985). task_arithmetic:
differences from a base are added to it (Ilharco et al. 2023; "chat vector", Huang et al. 2024).
ties: the largest differences are kept, and of each number those with the sign of the majority
(Yadav et al. 2023). dare: differences are dropped at random, and the rest is scaled up (Yu et al.
2024). Computed in fp32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from aift_ray.config.merge_config import OF_BASE, MergeConfig

# vectors closer than this are on a line as far as fp32 can tell
_PARALLEL = 0.9995


def merge(
    config: MergeConfig, name: str, parts: Sequence[torch.Tensor], base: torch.Tensor | None
) -> torch.Tensor:
    """One tensor of several.

    Args:
        name: of the tensor; what is dropped at random is a function of it and the seed.
        parts: of the models, of any shape, all the same.
        base: of the base, for methods that take differences.
    """
    tensors = [part.float() for part in parts]
    weights = config.weights or [1.0] * len(parts)
    if config.method == "slerp":
        return slerp(tensors[0], tensors[1], (config.weights or [0.5, 0.5])[1])
    if config.method not in OF_BASE or base is None:
        return _sum(tensors, weights, config.normalizes)
    start = base.float()
    deltas = [tensor - start for tensor in tensors]
    if config.method == "ties":
        deltas = [trimmed(delta, config.density) for delta in deltas]
    elif config.method.startswith("dare"):
        deltas = [
            dropped(delta, config.density, f"{config.seed}:{number}:{name}")
            for number, delta in enumerate(deltas)
        ]
    if config.method in ("ties", "dare_ties"):
        return start + agreed(deltas, weights, config.normalizes)
    return start + _sum(deltas, weights, config.normalizes)


def _sum(
    tensors: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool
) -> torch.Tensor:
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor
    return total / sum(weights) if normalize else total


def slerp(one: torch.Tensor, other: torch.Tensor, t: float) -> torch.Tensor:
    """From `one` (t 0) to `other` (t 1) along the arc between them, each taken as one vector."""
    flat = [one.double().flatten(), other.double().flatten()]
    norms = [vector.norm() for vector in flat]
    if not all(norms):
        return (1 - t) * one + t * other
    cosine = (flat[0] @ flat[1] / (norms[0] * norms[1])).clamp(-1, 1)
    if cosine.abs() > _PARALLEL:
        return (1 - t) * one + t * other
    angle = cosine.arccos()
    shares = [((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
    found: torch.Tensor = shares[0] * one.double() + shares[1] * other.double()
    return found.float()


def trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The largest of a tensor's numbers, others 0; at least one is kept."""
    kept = max(1, int(density * delta.numel()))
    flat = delta.flatten()
    chosen = flat.abs().topk(kept).indices
    return torch.zeros_like(flat).index_put((chosen,), flat[chosen]).view_as(delta)


def dropped(delta: torch.Tensor, density: float, key: str) -> torch.Tensor:
    """Numbers dropped at random, the rest divided by the part that is kept."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(delta.shape, generator=generator) < density
    return torch.where(kept, delta / density, 0.0)


def agreed(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool
) -> torch.Tensor:
    """Of each number the weighted sum of those with the sign of the whole sum.

    Args:
        normalize: divide by the weights of those that were added.
    """
    weighted = torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])
    sign = weighted.sum(0).sign()
    same = (weighted.sign() == sign) & (weighted != 0)
    total = (weighted * same).sum(0)
    if not normalize:
        return total
    factors = torch.tensor(list(weights)).view(-1, *[1] * deltas[0].ndim)
    divisor = (factors * same).sum(0)
    return total / torch.where(divisor == 0, 1.0, divisor)
