"""Output tokens a second: rows that step together, transformers' continuous batching, generate().

    python benchmarks/serve_engine.py MODEL [DTYPE] [TOKENS] [CONTESTANT ...]

Greedy, prompts of 20 to 59 random tokens, 1, 4 and 16 requests at once, the contestants in turn in
one process. `rows`: our loop, on packed weights (`packed_weights.py`); `loaded`: on weights as they
were loaded; `adapters`: the rows spread over three LoRA adapters (r=16, every linear layer).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.utils import logging

from aift_ray.models.load import load_model
from aift_ray.serving.engines.interface import Request, SamplingParams
from aift_ray.serving.engines.transformers.lora_manager import Adapters
from aift_ray.serving.engines.transformers.packed_weights import pack
from aift_ray.serving.engines.transformers.prefix_cache import Prefixes
from aift_ray.serving.engines.transformers.sampler import Chooser
from aift_ray.serving.engines.transformers.scheduler import PIECE, Row, Scheduler

Prompts = list[list[int]]


def rows(
    model: Any, adapters: Adapters, prompts: Prompts, tokens: int, names: list[str]
) -> Prompts:
    """The answers of our own loop: every prompt is read, then all rows step together."""
    batch = Scheduler(model, adapters, Prefixes(0))
    reading: list[Row] = []
    every: list[Row] = []
    for key, prompt in enumerate(prompts):
        name = names[key % len(names)]
        request = Request(prompt, tokens, frozenset(), SamplingParams(temperature=0), name)
        reading.append(Row(key, request, Chooser(request, model.device)))
        # 59 tokens are the longest; the engine too reads together what fits a piece
        if len(reading) == PIECE // 64 or key + 1 == len(prompts):
            batch.begin(reading)
            every += reading
            reading = []
            while batch.reading:
                batch.read()
                batch.settle()
    while batch.rows:
        batch.step()
        batch.settle()
    return [row.answer for row in every]


def continuous(manager: Any, prompts: Prompts, tokens: int) -> Prompts:
    """The answers of transformers' manager."""
    keys = [manager.add_request(p, max_new_tokens=tokens, eos_token_id=-1) for p in prompts]
    done: dict[str, list[int]] = {}
    while len(done) < len(prompts):
        result = manager.get_result(timeout=60)
        if result is not None:
            done[result.request_id] = result.generated_tokens
    return [done[key] for key in keys]


def generate(model: Any, prompts: Prompts, tokens: int) -> None:
    """One after the other."""
    for prompt in prompts:
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens)


def timed(work: Callable[[], object], tokens: int) -> float:
    start = time.perf_counter()
    work()
    return tokens / (time.perf_counter() - start)


def opened(folder: str, width: torch.dtype) -> Any:
    """A model as the server loads it, whose answers go on to the length that is asked for."""
    model: Any = load_model(folder, width, "sdpa")
    model.generation_config.eos_token_id = None
    return model


def manager_of(folder: str, width: torch.dtype) -> Any:
    """transformers' continuous batching of a plainly loaded model, started."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=width).eval()
    settings = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=512)
    asked = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(asked, settings)
    manager.start()
    return manager


def prompts_of(number: int) -> Prompts:
    """Random ones of 20 to 59 tokens."""
    generator = torch.Generator().manual_seed(0)
    sizes = [20 + 7 * i % 40 for i in range(number)]
    return [torch.randint(300, 4000, (n,), generator=generator).tolist() for n in sizes]


def main() -> None:
    given = dict(enumerate(sys.argv))
    folder, dtype, number = sys.argv[1], given.get(2, "float32"), int(given.get(3, "32"))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load = partial(opened, folder, getattr(torch, dtype))
    loaded, base, adapted = load(), load(), load()
    pack(base)
    pack(adapted)
    none, adapters = Adapters(base), Adapters(adapted)
    config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    with tempfile.TemporaryDirectory() as place:
        get_peft_model(load(), config).save_pretrained(place, save_embedding_layers=False)
        for name in ("a", "b", "c"):
            adapters.load(name, place)
    manager = manager_of(folder, getattr(torch, dtype))
    prompts = prompts_of(16)
    contestants: dict[str, Callable[[Prompts], object]] = {
        "loaded": lambda p: rows(loaded, Adapters(loaded), p, number, [""]),
        "rows": lambda p: rows(base, none, p, number, [""]),
        "adapters": lambda p: rows(adapted, adapters, p, number, ["a", "b", "c"]),
        "continuous": lambda p: continuous(manager, p, number),
        "generate": lambda p: generate(base, p[:2], number),
    }
    with torch.inference_mode():
        contestants = {
            name: work
            for name, work in contestants.items()
            if name in (sys.argv[4:] or contestants)
        }
        for work in contestants.values():
            work(prompts[:2])
        for at_once in (1, 4, 16):
            line: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(3):
                for name, work in contestants.items():
                    some = prompts[:at_once]
                    count = min(at_once, 2) if name == "generate" else at_once
                    line[name].append(timed(lambda w=work, s=some: w(s), count * number))  # type: ignore[misc]
            medians = {name: round(sorted(each)[1], 1) for name, each in line.items()}
            print(f"{at_once:3} at once: {medians}", flush=True)
    manager.stop(block=True)


if __name__ == "__main__":
    main()
