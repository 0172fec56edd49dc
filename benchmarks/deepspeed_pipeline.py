"""DeepSpeed's pipeline engine against ours: equality with one process, seconds of a step, memory.

Two gloo workers with one stage each, one thread each, a random Llama, fp32, AdamW. DeepSpeed and
one process compute the same rows of equal length; ours, whose equality `make parity` shows,
computes packed rows of as many tokens. Run by the interpreter of `make test-deepspeed`:
`python -m benchmarks.deepspeed_pipeline`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from tests.conftest import SHIPPED, make_tiny_model, write_rows
from tests.helpers.ports import free_port

CONFIG = LlamaConfig(
    vocab_size=json.loads((SHIPPED / "config.json").read_text("utf-8"))["vocab_size"],
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    attn_implementation="sdpa",
    tie_word_embeddings=False,
)
TOKENS, STEPS, RATE = 256, 6, 1e-3


class Embedding(nn.Embedding):
    """The first layer."""


class Block(nn.Module):
    """A decoder block that makes its own positions: between stages one tensor is sent."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer = LlamaDecoderLayer(CONFIG, number)
        self.rotary = LlamaRotaryEmbedding(CONFIG)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states (rows, tokens, width)."""
        positions = torch.arange(states.shape[1])[None]
        made = self.layer(states, position_embeddings=self.rotary(states, positions))
        return made if isinstance(made, torch.Tensor) else made[0]


class Head(nn.Module):
    """The last norm and the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(CONFIG.hidden_size, CONFIG.rms_norm_eps)
        self.out = nn.Linear(CONFIG.hidden_size, CONFIG.vocab_size, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (rows, tokens, vocabulary)."""
        logits: torch.Tensor = self.out(self.norm(states))
        return logits


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of the next tokens."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def layers() -> list[nn.Module]:
    """All layers, with the weights that every process makes alike."""
    torch.manual_seed(0)
    blocks = [Block(number) for number in range(CONFIG.num_hidden_layers)]
    made = [Embedding(CONFIG.vocab_size, CONFIG.hidden_size), *blocks, Head()]
    for module in (part for layer in made for part in layer.modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    return made


def rows(micro_batches: int) -> list[torch.Tensor]:
    """Token ids of the micro-batches of a step."""
    made = torch.Generator().manual_seed(1)
    return [
        torch.randint(CONFIG.vocab_size, (1, TOKENS), generator=made) for _ in range(micro_batches)
    ]


def alone(micro_batches: int) -> dict[str, Any]:
    """One process."""
    base = _held()
    model = nn.Sequential(*layers())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses, seconds = [], []
    for _ in range(STEPS):
        began, total = time.perf_counter(), 0.0
        for ids in rows(micro_batches):
            loss = loss_of(model(ids), ids) / micro_batches
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        seconds.append(time.perf_counter() - began)
    return _result(losses, seconds, base)


def theirs(micro_batches: int) -> dict[str, Any]:
    """DeepSpeed's engine."""
    from aift_ray.parallel import deepspeed_compat

    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    deepspeed = deepspeed_compat.library(torch.device("cpu"))
    from deepspeed.pipe import PipelineModule

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, dist_init_required=False)
    base = _held()
    model = PipelineModule(
        layers(), num_stages=dist.get_world_size(), loss_fn=loss_of, partition_method="uniform"
    )
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    losses, seconds = [], []
    for _ in range(STEPS):
        began = time.perf_counter()
        batches = iter([(ids, ids) for ids in rows(micro_batches)])
        losses.append(float(engine.train_batch(batches)))
        seconds.append(time.perf_counter() - began)
    return _result(losses, seconds, base)


def ours(micro_batches: int) -> dict[str, Any]:
    """Strategy pipeline, 1F1B, on packed rows of as many tokens; its losses are of other rows."""
    from aift_ray.commandline import validated
    from aift_ray.engine import loop
    from aift_ray.parallel.group import Group
    from tests.helpers.runs import started

    rank, world, folder = dist.get_rank(), dist.get_world_size(), Path(os.environ["FOLDER"])
    settings = {
        "model": str(folder / "model"),
        "method": "full",
        "parallel": {
            "strategy": "pipeline",
            "pipeline_parallel_size": world,
            "pipeline_microbatches": micro_batches,
        },
        "data": {
            "train_files": [str(folder / "rows.jsonl")],
            "sequence_length": TOKENS,
            "cache_dir": str(folder / "cache"),
        },
        "training": {
            "batch_size": 1,
            "gradient_accumulation_steps": micro_batches,
            "precision": "fp32",
            "gradient_checkpointing": False,
            "max_steps": STEPS,
        },
    }
    base = _held()
    run = started(validated(settings), folder, Group(rank, world, torch.device("cpu")))
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        loop.train_step(run)
        run.state.step += 1
        seconds.append(time.perf_counter() - began)
    return _result([], seconds, base)


def _held() -> float:
    """MiB of this process."""
    return float(psutil.Process().memory_info().rss) / 2**20


def _result(losses: list[float], seconds: list[float], base: float) -> dict[str, Any]:
    more = _held() - base
    return {"losses": losses, "seconds": statistics.median(seconds[1:]), "mib": more}


def worker() -> None:
    """argv: name, micro-batches, rank, world, port."""
    name, micro_batches, rank, world, port = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=world)
    print(json.dumps({"alone": alone, "theirs": theirs, "ours": ours}[name](micro_batches)))
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Run each with 2 and 8 micro-batches; print a table."""
    print("| micro-batches | engine | s a step | MiB a worker | largest difference of the loss |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        numbers = {name: getattr(CONFIG, name) for name in (*names, "num_key_value_heads")}
        make_tiny_model(Path(folder) / "model", head_dim=32, attention_bias=False, **numbers)
        write_rows(Path(folder) / "rows.jsonl", 600)
        os.environ["FOLDER"] = folder
        for micro_batches in (2, 8):
            wanted: list[float] = []
            for name, world in (("alone", 1), ("ours", 2), ("theirs", 2)):
                found = workers(name, micro_batches, world)
                wanted = wanted or found[0]["losses"]
                pairs = zip(wanted, found[0]["losses"], strict=False)
                apart = max((abs(a - b) for a, b in pairs), default=float("nan"))
                sizes = " and ".join(f"{each['mib']:.0f}" for each in found)
                seconds = f"{found[0]['seconds']:.2f}"
                print(f"| {micro_batches} | {name} | {seconds} | {sizes} | {apart:.1e} |")


def workers(name: str, micro_batches: int, world: int) -> list[dict[str, Any]]:
    """What the workers print as their last line."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(world)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.deepspeed_pipeline", *map(str, words)],
                stdout=log.open("w"),
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for log, words in (
                (logs[rank], (name, micro_batches, rank, world, port)) for rank in range(world)
            )
        ]
        assert [process.wait(300) for process in processes] == [0] * world
        return [json.loads(log.read_text("utf-8").splitlines()[-1]) for log in logs]


if __name__ == "__main__":
    worker() if len(sys.argv) > 1 else main()
