"""CPU milliseconds of a step and of reading prompts, with weights as loaded and as packed.

    python benchmarks/serve_step.py MODEL [DTYPE]

One thread; 1, 4 and 16 rows, prompts of 20 to 59 random tokens; of a step the least of eight. The
time of the process on a CPU counts, which other load changes less than the clock.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))
from serve_engine import opened, prompts_of

from aift_ray.serving.engines.interface import Request, SamplingParams
from aift_ray.serving.engines.transformers.lora_manager import Adapters
from aift_ray.serving.engines.transformers.packed_weights import pack
from aift_ray.serving.engines.transformers.prefix_cache import Prefixes
from aift_ray.serving.engines.transformers.sampler import Chooser
from aift_ray.serving.engines.transformers.scheduler import Row, Scheduler

# rows that are read together
_READ = 8


def measured(model: Any, number: int) -> tuple[float, float]:
    """Milliseconds: to read the prompts of so many rows, and of a step over all of them."""
    batch = Scheduler(model, Adapters(model), Prefixes(0))
    rows = []
    for key, prompt in enumerate(prompts_of(number)):
        request = Request(prompt, 100, frozenset(), SamplingParams(temperature=0), "")
        rows.append(Row(key, request, Chooser(request, model.device)))
    began = time.process_time()
    for start in range(0, number, _READ):
        batch.begin(rows[start : start + _READ])
        while batch.reading:
            batch.read()
            batch.settle()
    read = time.process_time() - began
    steps = []
    for _ in range(8):
        began = time.process_time()
        batch.step()
        batch.settle()
        steps.append(time.process_time() - began)
    return read * 1e3, min(steps) * 1e3


def main() -> None:
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float32"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in ("loaded", "packed"):
        model = opened(sys.argv[1], getattr(torch, dtype))
        if name == "packed":
            pack(model)
        with torch.inference_mode():
            measured(model, 1)
            for number in (1, 4, 16):
                read, step = measured(model, number)
                print(f"{dtype} {name:6} {number:2} rows: read {read:6.0f}, step {step:6.1f}")


if __name__ == "__main__":
    main()
