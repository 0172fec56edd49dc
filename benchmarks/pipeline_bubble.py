"""How much of a step a pipeline's workers wait, measured and by the formula.

    python benchmarks/pipeline_bubble.py [1f1b|gpipe|interleaved]

Two gloo workers on one thread each, micro-batches of one row, all alike; forward and backward
passes of a step, without the optimizer's. A worker that waits uses no CPU: waiting is the share of
the time, from the start of the first worker to the end of the last, in which they did not compute.
The formula: (p - 1) / (m + p - 1), with two stages a worker (p - 1) / (2 m + p - 1).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers

from aift_ray.commandline import validated
from aift_ray.engine import loop
from aift_ray.engine.build import build
from aift_ray.models import hub
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare

WORKERS, NUMBERS, TAKEN = 2, (1, 2, 4, 8, 16), 4


def make_model(folder: Path) -> None:
    """A random Llama of eight blocks, and the shipped tokenizer."""
    shipped = hub.resolve("hina-4m")
    config = transformers.AutoConfig.from_pretrained(shipped)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 384, 1024, 8
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 6, 6, 64
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(shipped).save_pretrained(folder)


def settings(folder: Path, schedule: str, number: int) -> Any:
    """A run of `number` micro-batches a step."""
    return validated(
        {
            "model": str(folder / "model"),
            "method": "full",
            "parallel": {
                "strategy": "pipeline",
                "pipeline_parallel_size": WORKERS,
                "pipeline_schedule": schedule,
            },
            "data": {"train_files": [str(folder / "rows.jsonl")], "sequence_length": 256},
            "training": {
                "batch_size": 1,
                "gradient_accumulation_steps": number,
                "max_steps": TAKEN,
                "warmup_steps": 0,
                "gradient_checkpointing": False,
            },
        }
    )


def work(rank: int, folder: Path, schedule: str, port: int) -> None:
    """One worker: the shortest step of each number of micro-batches."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    group, found = Group(rank, WORKERS, torch.device("cpu")), {}
    for number in NUMBERS:
        config = settings(folder, schedule, number)
        run = build(prepare(config, folder, WORKERS, False, None).job, group)
        shares, targets, times = run.plan.share(0, 0, 1), run.plan.step_targets(0), []
        for _ in range(TAKEN):
            dist.barrier()
            began, used = time.perf_counter(), time.process_time()
            loop.accumulate(run, shares, targets)
            (busy,) = group.sum(time.process_time() - used)
            times.append((time.perf_counter() - began, busy / WORKERS))
            run.optimizer.zero_grad()
        found[number] = min(times)
    if group.is_main_process:
        (folder / "found.json").write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()


def main() -> None:
    """Measure and print a table."""
    schedule = sys.argv[1] if len(sys.argv) > 1 else "1f1b"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        make_model(folder / "model")
        text = "春はあけぼの。やうやう白くなりゆく山ぎは、少し明かりて。" * 10
        row = json.dumps({"text": text}, ensure_ascii=False)
        (folder / "rows.jsonl").write_text(f"{row}\n" * 64, "utf-8")
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        mp.spawn(work, (folder, schedule, port), WORKERS)
        found = {int(k): v for k, v in json.loads((folder / "found.json").read_text()).items()}
    chunks = 2 if schedule == "interleaved" else 1
    print(f"{schedule}\n\n| micro-batches | ms | waiting, measured | by the formula |")
    print("|---|---|---|---|")
    for number, (seconds, busy) in found.items():
        waited = 1 - busy / seconds
        formula = (WORKERS - 1) / (chunks * number + WORKERS - 1)
        print(f"| {number} | {seconds * 1e3:.0f} | {waited:.1%} | {formula:.1%} |")


if __name__ == "__main__":
    main()
