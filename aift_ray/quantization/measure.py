"""What quantization saves and costs: memory, time, perplexity, and how far the logits move."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from aift_ray.models.bnb.bnb_layers import unpack

MEASURES = ("memory_mb", "latency_ms_median", "latency_ms_p95", "tokens_per_second", "perplexity")


@dataclass(frozen=True)
class Sample:
    """What one forward pass reads.

    Attributes:
        ids: token ids, (batch, seq).
        targets: (batch, seq), True where a token counts for the perplexity.
    """

    ids: torch.Tensor
    targets: torch.Tensor


def benchmark(
    original: torch.nn.Module, quantized: torch.nn.Module, samples: Sequence[Sample], runs: int
) -> dict[str, Any]:
    """Compare two models on the same samples.

    Args:
        runs: timed forward passes of each model; they take the samples, and their turns, one
            after the other.

    Returns:
        `original` and `quantized`: memory_mb (MiB of weights and scales), latency_ms_median and
        latency_ms_p95 of a forward pass, tokens_per_second read by it, perplexity (None where no
        token counts); `ratio`: quantized by original; `logit_difference`: max and mean, absolute.
    """
    models = (original, quantized)
    with evaluating(*models):
        loss, moved = _quality(original, quantized, samples)
        seconds = _times(models, samples, runs)
    tokens = sum(samples[run % len(samples)].ids.numel() for run in range(runs))
    numbers = [
        {
            "memory_mb": memory_bytes(model) / 2**20,
            "latency_ms_median": float(np.median(taken)) * 1000,
            "latency_ms_p95": float(np.percentile(taken, 95)) * 1000,
            "tokens_per_second": tokens / sum(taken),
            "perplexity": nats if nats is None else math.exp(min(nats, 700.0)),
        }
        for model, taken, nats in zip(models, seconds, loss, strict=True)
    ]
    first, second = numbers
    ratio = {name: _ratio(second[name], first[name]) for name in MEASURES}
    return {"original": first, "quantized": second, "ratio": ratio, "logit_difference": moved}


def logit_difference(
    one: torch.nn.Module, other: torch.nn.Module, samples: Sequence[Sample]
) -> dict[str, float]:
    """Largest and mean absolute difference of the logits of two models, over all samples."""
    with evaluating(one, other):
        return _quality(one, other, samples)[1]


def memory_bytes(model: torch.nn.Module) -> int:
    """Bytes of weights, buffers and quantization scales as loaded; shared ones count once."""
    unpack(model)
    found: dict[int, int] = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@contextmanager
def evaluating(*models: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradients; afterwards the models are as they were."""
    training = [(m, m.training) for model in models for m in model.modules()]
    for model in models:
        model.eval()
    try:
        # not inference_mode: layers that are repacked in it could never be trained
        with torch.no_grad():
            yield
    finally:
        for module, flag in training:
            module.training = flag


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits in fp32, (batch, seq, vocabulary), on the model's device."""
    device = next(model.parameters()).device
    found: torch.Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return found.float()


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        # of 4 bits: scales, and scales of scales
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            yield from (v for v in vars(part).values() if torch.is_tensor(v)) if part else ()
    for module in model.modules():
        # of 8 bits
        weight, state = getattr(module, "weight", None), getattr(module, "state", None)
        for scales in (getattr(weight, "SCB", None), getattr(state, "SCB", None)):
            if torch.is_tensor(scales):
                yield scales


def _quality(
    original: torch.nn.Module, quantized: torch.nn.Module, samples: Sequence[Sample]
) -> tuple[tuple[float | None, float | None], dict[str, float]]:
    """Mean loss in nats of each model, and how far apart their logits are."""
    losses, count = [0.0, 0.0], 0
    largest, total, number = 0.0, 0.0, 0
    for sample in samples:
        pair = [logits(model, sample.ids) for model in (original, quantized)]
        chosen = sample.targets[:, 1:].flatten()
        wanted = sample.ids[:, 1:].flatten()[chosen]
        count += len(wanted)
        for which, found in enumerate(pair):
            states = found[:, :-1].flatten(0, 1)[chosen.to(found.device)]
            targets = wanted.to(found.device)
            losses[which] += cross_entropy(states, targets, reduction="sum").item()
        apart = (pair[0] - pair[1].to(pair[0].device)).abs_()
        # NaN stays NaN, which max() over floats would lose
        largest = float(np.maximum(largest, apart.max().item()))
        total, number = total + apart.sum(dtype=torch.float64).item(), number + apart.numel()
    mean = (losses[0] / count, losses[1] / count) if count else (None, None)
    return mean, {"max": largest, "mean": total / number}


def _times(
    models: Sequence[torch.nn.Module], samples: Sequence[Sample], runs: int
) -> list[list[float]]:
    """Seconds of each forward pass; the models take turns, so that both meet the same noise."""
    passes = [_forward(model) for model in models]
    for forward in passes:
        forward(samples[0].ids)
    return [
        list(taken)
        for taken in zip(
            *[
                [forward(samples[run % len(samples)].ids) for forward in passes]
                for run in range(runs)
            ],
            strict=True,
        )
    ]


def _forward(model: torch.nn.Module) -> Callable[[torch.Tensor], float]:
    device = next(model.parameters()).device

    def timed(ids: torch.Tensor) -> float:
        here = ids.to(device)
        _wait(device)
        began = time.perf_counter()
        model(input_ids=here, use_cache=False)
        _wait(device)
        return time.perf_counter() - began

    return timed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ratio(quantized: float | None, original: float | None) -> float | None:
    return None if quantized is None or not original else quantized / original
