"""Where the milliseconds of a step go, and what the machine itself allows.

    python benchmarks/serve_parts.py MODEL [DTYPE]

One thread; 1, 4 and 16 rows behind prompts of 20 to 59 random tokens, weights packed as the server
packs them; medians of 12 steps, CPU milliseconds of the process. `layers` and `output` are the
matrix products, `attention` the attention function, `norms` normalization and activation; `other`
is what is left of the forward pass (rotary positions, residuals, Python), `engine` what is left of
the step (mask, choice of the tokens, rows that come and go). `floor` is what the products would
take if the weights were read at the speed of memory, or multiplied at the speed of a large product,
whichever is slower.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))
from serve_engine import opened, prompts_of

from aift_ray.serving.engines.interface import Request, SamplingParams
from aift_ray.serving.engines.transformers.lora_manager import Adapters
from aift_ray.serving.engines.transformers.packed_weights import pack
from aift_ray.serving.engines.transformers.prefix_cache import Prefixes
from aift_ray.serving.engines.transformers.sampler import Chooser
from aift_ray.serving.engines.transformers.scheduler import Row, Scheduler

STEPS = 12
spent: dict[str, float] = defaultdict(float)


def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with its CPU time noted."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        made = work(*args, **kwargs)
        spent[name] += time.process_time() - began
        return made

    return run


def watch(model: Any) -> None:
    """Note the time of the parts of a model."""
    head = model.get_output_embeddings()
    for module in model.modules():
        kind = type(module).__name__
        if module is head:
            module.forward = timed("output", module.forward)
        elif type(module) is nn.Linear:
            module.forward = timed("layers", module.forward)
        elif "Norm" in kind or "Activation" in kind or kind in ("SiLU", "GELUTanh"):
            module.forward = timed("norms", module.forward)
    name = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[name] = timed("attention", ALL_ATTENTION_FUNCTIONS[name])
    model.forward = timed("forward", model.forward)


def began_rows(model: Any, number: int) -> Scheduler:
    """So many rows whose prompts are read."""
    batch = Scheduler(model, Adapters(model), Prefixes(0))
    rows = []
    for key, prompt in enumerate(prompts_of(number)):
        request = Request(prompt, 1000, frozenset(), SamplingParams(temperature=0), "")
        rows.append(Row(key, request, Chooser(request, model.device)))
    for start in range(0, number, 8):
        batch.begin(rows[start : start + 8])
        while batch.reading:
            batch.read()
            batch.settle()
    return batch


def parts(model: Any, number: int) -> dict[str, float]:
    """Milliseconds of each part of a step over so many rows."""
    batch = began_rows(model, number)
    steps: list[dict[str, float]] = []
    for _ in range(STEPS):
        spent.clear()
        began = time.process_time()
        batch.step()
        batch.settle()
        steps.append({"step": time.process_time() - began} | spent)
    found = {name: statistics.median(step[name] for step in steps) * 1e3 for name in steps[0]}
    named = ("layers", "output", "attention", "norms")
    found["other"] = found["forward"] - sum(found.get(name, 0) for name in named)
    found["engine"] = found["step"] - found["forward"]
    return {name: found.get(name, 0) for name in ("step", *named, "other", "engine")}


def best(work: Callable[[], object], times: int = 5) -> float:
    """The least seconds of several."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def limits(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second that a thread reads, and operations a second of a large product."""
    large = torch.ones(2**27, dtype=torch.float32)
    read = large.nbytes / best(large.sum)
    size = 1536
    one = torch.randn(size, size).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(one, size)
    product = torch.ops.mkldnn._linear_pointwise
    took = best(lambda: product(one, packed, None, "none", [], ""))
    return read, 2 * size**3 / took


def main() -> None:
    dtype = getattr(torch, sys.argv[2] if len(sys.argv) > 2 else "float32")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    read, multiply = limits(dtype)
    print(f"reads {read / 1e9:.1f} GB/s, multiplies {multiply / 1e9:.0f} GFLOP/s")
    model = opened(sys.argv[1], dtype)
    weights = [m.weight for m in model.modules() if type(m) is nn.Linear]
    elements, size = sum(map(torch.numel, weights)), sum(each.nbytes for each in weights)
    pack(model)
    watch(model)
    with torch.inference_mode():
        parts(model, 1)
        for number in (1, 4, 16):
            found = parts(model, number)
            floor = max(size / read, 2 * elements * number / multiply) * 1e3
            told = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
            print(f"{number:2} rows: {told}; floor {floor:.1f}", flush=True)


if __name__ == "__main__":
    main()
