"""CPU milliseconds of a step and of reading prompts, with weights as loaded and as packed.

    python benchmarks/serve_step.py MODEL [DTYPE]
    python benchmarks/serve_step.py MODEL [DTYPE] mixed

One thread; 1, 4 and 16 rows, prompts of 20 to 59 random tokens; of a step the least of eight. The
time of the process on a CPU counts, which other load changes less than the clock. With `mixed`,
what reading a prompt in the forward pass of a step would gain at most: the pass over as many
positions, all of one row, against the step and the reading on their own.
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
from aift_ray.serving.engines.transformers.kv_cache import RowsCache
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


def forward_ms(model: Any, rows: int, tokens: int, kept: int) -> float:
    """Of a forward pass over rows of so many tokens, with the logits of the last `kept` of each."""
    ids, found = torch.randint(0, 1000, (rows, tokens)), []
    for _ in range(9):
        cache = RowsCache(model.config)
        began = time.process_time()
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=kept)
        found.append(time.process_time() - began)
    return min(found) * 1e3


def mixed(model: Any) -> None:
    """What one forward pass for the rows that step and a prompt would take off both."""
    print("rows  prompt  step  read  together  gain  gain of answers of 32 tokens")
    for rows in (3, 15):
        for prompt in (20, 60, 200):
            step, read = forward_ms(model, rows, 1, 1), forward_ms(model, 1, prompt, 1)
            together = forward_ms(model, 1, rows + prompt, rows + 1)
            gain = step + read - together
            # each of the rows + 1 answers is read once, and takes 32 of the steps
            share = gain / (read + 32 / (rows + 1) * step)
            figures = f"{step:5.0f} {read:5.0f} {together:9.0f} {gain:5.0f} {share:.0%}"
            print(f"{rows:4} {prompt:7} {figures}")


def main() -> None:
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float32"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    if sys.argv[3:] == ["mixed"]:
        model = opened(sys.argv[1], getattr(torch, dtype))
        pack(model)
        with torch.inference_mode():
            mixed(model)
        return
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
