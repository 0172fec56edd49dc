"""Greedy answers other than those of generate() alone: rows that step together, a bare engine.

    python benchmarks/serve_differences.py MODEL [DTYPE] [TOKENS] [PROMPTS]

Prompts of 20 to 59 random tokens, 1, 4 and 16 at once. In bf16 sums come out otherwise in a batch
of another shape, and where two tokens are about as likely the other one may be taken: a bare
engine (transformers' continuous batching) differs as well. `adapter`: the same with one of three
LoRA adapters on the rows in turn, against PEFT's own model with that adapter.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from serve_engine import Prompts, continuous, manager_of, opened, prompts_of, rows
from transformers.utils import logging

from aift_ray.serving.engines.transformers.lora_manager import Adapters
from aift_ray.serving.engines.transformers.packed_weights import pack

Answers = list[list[int]]
NAMES = ["a", "b", "c"]


def main() -> None:
    given = dict(enumerate(sys.argv))
    folder, dtype = sys.argv[1], given.get(2, "bfloat16")
    tokens, count = int(given.get(3, "24")), int(given.get(4, "48"))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load = partial(opened, folder, getattr(torch, dtype))
    prompts = prompts_of(count)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as place:
        alone = _alone([load()], prompts, tokens)
        for seed, name in enumerate(NAMES):
            _adapter(load(), seed, Path(place) / name)
        adapted = [PeftModel.from_pretrained(load(), Path(place) / name) for name in NAMES]
        alone_adapted = _alone(adapted, prompts, tokens)
        model = load()
        pack(model)
        adapters = Adapters(model)
        manager = manager_of(folder, getattr(torch, dtype))
        found: dict[str, dict[str, int]] = {}
        for at_once in (1, 4, 16):
            parts = [prompts[at : at + at_once] for at in range(0, count, at_once)]
            bare = [a for part in parts for a in continuous(manager, part, tokens)]
            ours = [a for part in parts for a in rows(model, adapters, part, tokens, [""])]
            found[str(at_once)] = {"rows": _different(ours, alone), "bare": _different(bare, alone)}
        manager.stop(block=True)
        for name in NAMES:
            adapters.load(name, str(Path(place) / name))
        for at_once in (1, 4, 16):
            ours = []
            for at in range(0, count, at_once):
                names = [NAMES[(at + i) % 3] for i in range(at_once)]
                ours += rows(model, adapters, prompts[at : at + at_once], tokens, names)
            found[str(at_once)]["adapter"] = _different(ours, alone_adapted)
    header = [f"of {count}, at once", "rows", "bare", "adapter"]
    print(measuring.table(header, [[k, *(str(n) for n in v.values())] for k, v in found.items()]))
    options = {"dtype": dtype, "tokens": tokens, "prompts": count}
    name = f"serve_differences_{Path(folder).name}_{dtype}.json"
    measuring.write(measuring.RESULTS / name, {"options": options, "different": found})


def _adapter(model: Any, seed: int, folder: Path) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)


def _alone(models: list[Any], prompts: Prompts, tokens: int) -> Answers:
    """The answers of generate(), one prompt after the other, by each model in turn."""
    found = []
    for at, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        made = models[at % len(models)].generate(
            input_ids=ids, do_sample=False, max_new_tokens=tokens
        )
        found.append(made[0, len(prompt) :].tolist())
    return found


def _different(some: Answers, others: Answers) -> int:
    return sum(a != b for a, b in zip(some, others, strict=True))


if __name__ == "__main__":
    main()
