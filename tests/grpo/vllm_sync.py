"""Trained weights that reach vLLM, against transformers' eager forward with the same weights.

    python -m tests.grpo.vllm_sync FOLDER NAME=VALUE ...

It runs in vLLM's environment: settings of the run by name, what was found as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aift_ray.commandline import validated
from aift_ray.engine.grpo.rollout_engine import Asked
from aift_ray.engine.grpo.vllm_rollouts import VllmRolloutEngine
from aift_ray.engine.job_model import untrained
from aift_ray.engine.precision import Precision
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare

PROMPTS = ("今日の天気は", "昔々、あるところに", "日本の首都は")
TOKENS = 16


def main() -> None:
    """Print what was found."""
    folder, values = Path(sys.argv[1]), dict(each.split("=", 1) for each in sys.argv[2:])
    print(json.dumps(synced(folder, torch.device("cpu"), **values)))


def synced(folder: Path, device: torch.device, **values: Any) -> dict[str, Any]:
    """What vLLM generates after its weights were replaced, twice.

    Returns:
        greedy: whether each token is the likeliest by transformers; difference: of its
        log-probabilities, at most, from transformers', and stale from those by the weights before;
        free: bytes of a GPU that are free while the engine computes, and while it rests.
    """
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS), "utf-8")
    job = prepare(_config(folder, rows, values), folder, 1, device.type == "cuda", None).job
    tokenizer, asked = job.load_tokenizer(), Asked([], [], [])
    for number, prompt in enumerate(PROMPTS):
        asked.prompts.append(np.array(tokenizer(prompt)["input_ids"], np.int32))
        asked.keys.append([(0, number)])
        asked.sources.append({})
    engine = VllmRolloutEngine(job, device)
    engine.rest()
    group, precision = Group(0, 1, device), Precision.resolve(job.config, device)
    model = untrained(job, group, precision).to(device).eval()
    model.set_attn_implementation("eager")
    found: dict[str, Any] = {}
    for _ in range(2):
        changed = _changed(model, job.config.method)
        engine.load(changed)
        busy = _free(device)
        before, now = found.get("made"), engine.generate(asked)
        found = _compared(model, asked, now) | {"free": [busy]}
        found["stale"] = _compared(model, asked, before)["difference"] if before else 0.0
        engine.rest()
        found["free"].append(_free(device))
        found["made"] = now
    del found["made"]
    return found


def _config(folder: Path, rows: Path, values: dict[str, Any]) -> Any:
    how = {"reward": ["japanese"], "num_generations": 2, "max_completion_length": TOKENS}
    how |= {"engine": "vllm", "top_k": 1, "rollout_batch_size": 8}
    data = {"train_files": [str(rows)], "sequence_length": 128, "cache_dir": str(folder / "cache")}
    training = {"batch_size": 2, "gradient_accumulation_steps": 1, "precision": "fp32"}
    sections = {"grpo": how, "data": data, "training": training | values.pop("training", {})}
    return validated({"objective": "grpo", **sections, **values})


@torch.no_grad()
def _changed(model: Any, method: str) -> dict[str, torch.Tensor]:
    """The trained weights, by name, with noise that was not there before."""
    torch.manual_seed(1)
    found = {}
    for name, weight in model.named_parameters():
        if method == "full" or "lora_" in name:
            size = 0.05 * weight.std() if method == "full" else torch.tensor(0.05)
            weight.add_(torch.randn_like(weight) * size.to(weight))
            found[name] = weight.cpu().clone()
    return found


@torch.no_grad()
def _compared(model: Any, asked: Asked, made: Any) -> dict[str, Any]:
    difference, greedy = 0.0, True
    for prompt, (completion,) in zip(asked.prompts, made, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, completion.ids])).long()
        logits = model(input_ids=ids[None].to(model.device)).logits[0].float().cpu()
        logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        own = torch.from_numpy(completion.ids).long()
        theirs = logps.gather(-1, own[:, None])[:, 0].numpy()
        difference = max(difference, float(np.abs(theirs - completion.logps).max()))
        greedy &= bool((logps.argmax(-1) == own).all())
    return {"greedy": greedy, "difference": difference}


def _free(device: torch.device) -> int:
    if device.type == "cpu":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


if __name__ == "__main__":
    main()
