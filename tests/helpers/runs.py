"""Runs the loop for tests, in this process or in several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor

from aift_ray.config import RunConfig
from aift_ray.engine import loop
from aift_ray.engine.build import build
from aift_ray.engine.checkpoint.writer import snapshot
from aift_ray.engine.precision import JoinedScaler
from aift_ray.engine.worker import work
from aift_ray.engine.worker_run import Run
from aift_ray.models import compiled_blocks
from aift_ray.parallel.group import Group
from aift_ray.runs import run_dir as output
from aift_ray.runs.prepare import prepare
from tests.helpers.ports import free_port

CPU = torch.device("cpu")


def started(config: RunConfig, output: Path, group: Group | None = None) -> Run:
    """A run ready for its first step; the global batch counts the group's workers."""
    group = group or Group(0, 1, CPU)
    prepared = prepare(config, output, group.world_size, False, None)
    return build(prepared.job, group)


def stepped(run: Run, steps: int | None = None) -> list[dict[str, Any]]:
    """Take some steps, all by default; the lines of their metrics."""
    lines = []
    for _ in range(steps or run.total_steps):
        line, _ = loop.train_step(run)
        run.state.step += 1
        lines.append(line)
    return lines


def curve(config: RunConfig, output: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step in one process."""
    return [(line["loss"], line["grad_norm"]) for line in stepped(started(config, output))]


def main() -> None:
    """A worker of a gloo group: argv holds rank, world, port and a JSON file of configurations.

    One that names an output folder is a whole run; of the others the steps are taken, with the
    loss scaled where their name begins so, as fp16 on a GPU has it.
    """
    rank, world, port, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    # others take a minute to compile
    compiled_blocks.BACKEND = "aot_eager"
    group, found, weights, held = Group(rank, world, CPU), {}, {}, {}
    for name, values in json.loads(path.read_text("utf-8")).items():
        config = RunConfig.model_validate(values)
        if config.output_dir:
            whole_run(config, Path(config.output_dir), group)
            continue
        run = started(config, path.parent, group)
        if name.startswith("scaled"):
            scaler = JoinedScaler("cpu", init_scale=1024.0)
            run.parallel_model.set_optimizer(run.optimizer, scaler)
        found[name] = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
        weights[name], held[name] = snapshot(run).model, held_bytes(run)
        if run.rollouts:
            run.rollouts.close()
    if group.is_main_process:
        torch.save(weights, path.with_name("weights.pt"))
    path.with_name(f"held{rank}.json").write_text(json.dumps(held), "utf-8")
    path.with_name(f"rank{rank}.json").write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()
    # gloo's threads wait now and then for a worker that has gone, when the model is freed
    os._exit(0)


def held_bytes(run: Run) -> int:
    """Bytes of the weights that this process holds between steps."""
    weights = run.module.parameters()
    # ds_tensor: this worker's partition of a weight of ZeRO 3 by DeepSpeed
    own = (w.to_local() if isinstance(w, DTensor) else getattr(w, "ds_tensor", w) for w in weights)
    return sum(w.nbytes for w in own)


def whole_run(config: RunConfig, folder: Path, group: Group) -> Run:
    """A run from start to end in `folder`, going on from the checkpoint that it names."""
    resume = Path(config.resume) if config.resume else None
    prepared = prepare(config, folder, group.world_size, False, resume)
    if group.is_main_process:
        output.start(prepared.job.config, folder)
    group.barrier()
    return work(prepared.job, group)


def spawn(
    path: Path, world: int, module: str = "tests.helpers.runs"
) -> dict[str, list[tuple[float, float]]]:
    """Run the configurations in `path` on gloo workers, by `module`; what rank 0 saw."""
    port = str(free_port())
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(world), port, str(path)],
            cwd=root,
            env=environment,
        )
        for rank in range(world)
    ]
    assert [worker.wait(600) for worker in workers] == [0] * world
    seen = path.with_name("rank0.json")
    result: dict[str, Any] = json.loads(seen.read_text("utf-8")) if seen.exists() else {}
    return result


def on_workers(
    configs: Mapping[str, Any], folder: Path, workers: int = 2, module: str = "tests.helpers.runs"
) -> dict[str, Any]:
    """Run configurations by name on gloo workers, by `module`; what rank 0 saw of each."""
    path = folder / "runs.json"
    path.write_text(json.dumps({k: v.model_dump(mode="json") for k, v in configs.items()}), "utf-8")
    return spawn(path, workers, module)


def whole_on_workers(configs: Mapping[str, Any], folder: Path, workers: int = 2) -> None:
    """Whole runs on gloo workers, each in the folder of its name."""
    for name, config in configs.items():
        config.output_dir = str(folder / name)
    on_workers(configs, folder, workers)


if __name__ == "__main__":
    main()
