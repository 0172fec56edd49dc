"""`aift-ray evaluate` against lm-evaluation-harness with automatic batch size, on the same rows.

Choices of JCommonsenseQA with three examples and answers of MGSM, greedy, in fp32. Whole commands,
loading included, in turn. On a shared machine CPU seconds tell more than those of the clock. On a
CPU the harness takes the largest batch that it may, whether it fits or not: `--most` bounds it.
The harness runs in an environment of its own, which has lm-eval 0.4.13 and this environment's torch
and transformers: `--harness PYTHON`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import yaml
from measuring import Pair, Processes, Result

from aift_ray.config import EvaluateConfig
from aift_ray.tasks.task_files import BUILT_IN, load_tasks

MODEL = measuring.ROOT / "aift_ray" / "models" / "assets" / "hina-4m"
DATA = measuring.SHARED / "data" / "eval"


def main() -> None:
    """Measure, print, write."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="aift-evaluate-") as name:
        processes = Processes(Path(name), options.threads)
        calls = {
            f"{who} {task}": _contestant(who, task, options, processes)
            for task in options.tasks
            for who in ("aift", "harness")
        }
        found = measuring.alternate(calls, options.rounds)
    aims = {"rows_per_seconds": ">= 1.5", "rows_per_cpu_s": ">= 1.5", "peak_gib": "<= 1.0"}
    pairs = [
        Pair(f"aift {task}", f"harness {task}", key, aim)
        for key, aim in aims.items()
        for task in options.tasks
    ]
    ratios = measuring.compare(found, pairs)
    heads = ["contestant", "rows/s", "rows/CPU s", "seconds", "CPU s", "peak GiB"]
    rows = [
        [name, *(measuring.shown([r[key] for r in results]) for key in _KEYS)]
        for name, results in found.items()
    ]
    print(measuring.table(heads, rows) + "\n")
    print(measuring.ratio_table(ratios))
    content = {"options": vars(options), "contestants": found, "ratios": ratios}
    measuring.write(Path(options.output), content)


_KEYS = ("rows_per_seconds", "rows_per_cpu_s", "seconds", "cpu_s", "peak_gib")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--harness", required=True, help="Python that has lm-eval")
    parser.add_argument("--model", default=str(MODEL), help="model folder")
    parser.add_argument("--data-dir", default=str(DATA), help="folder of the tasks' files")
    parser.add_argument("--tasks", nargs="*", default=["jcommonsenseqa", "mgsm_ja"])
    parser.add_argument("--limit", type=int, default=200, help="rows of each task")
    parser.add_argument("--most", type=int, default=64, help="rows at once of the harness")
    parser.add_argument("--max-tokens", type=int, help="tokens of an answer, fewer than the task's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(measuring.RESULTS / "evaluate_speed.json"))
    return parser.parse_args()


def _contestant(
    who: str, task: str, options: argparse.Namespace, processes: Processes
) -> Callable[[int], Result]:
    def run(number: int) -> Result:
        folder = processes.folder / f"{who}-{task}-{number}"
        folder.mkdir()
        command = (_own if who == "aift" else _harness)(task, options, folder)
        found = _timed(command, processes, folder)
        rates = {f"rows_per_{kind}": options.limit / found[kind] for kind in ("seconds", "cpu_s")}
        return found | rates

    return run


def _own(task: str, options: argparse.Namespace, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "aift_ray", "evaluate", "--model", options.model]
    command += [
        "--task",
        _named(task, options, folder),
        "--limit",
        str(options.limit),
        "--data-dir",
        options.data_dir,
    ]
    return [*command, "--output", str(folder / "results.json")]


def _named(task: str, options: argparse.Namespace, folder: Path) -> str:
    """The task, or a file of it whose answers are shorter."""
    if options.max_tokens is None:
        return task
    held = yaml.safe_load((BUILT_IN / f"{task}.yaml").read_text("utf-8"))
    data = Path(options.data_dir).absolute()
    held["files"] = [str(data / name) for name in held["files"]]
    shots = held.get("few_shot", {})
    shots["files"] = [str(data / name) for name in shots.get("files", [])]
    file = folder / f"{task}.yaml"
    # JSON is YAML
    changed = held | {"few_shot": shots, "max_tokens": options.max_tokens}
    file.write_text(json.dumps(changed), "utf-8")
    return str(file)


def _harness(task: str, options: argparse.Namespace, folder: Path) -> list[str]:
    named = _named(task, options, folder)
    config = EvaluateConfig(tasks=[named], limit=options.limit, data_dir=options.data_dir)
    (loaded,) = load_tasks(config)
    described: dict[str, Any] = {
        "name": task,
        "kind": loaded.task.kind,
        "prompts": [item.prompt for item in loaded.items],
        "choices": [item.choices for item in loaded.items],
        "delimiter": loaded.task.delimiter,
        "stop": loaded.task.stop,
        "max_tokens": loaded.task.max_tokens,
    }
    (folder / "tasks.json").write_text(json.dumps([described]), "utf-8")
    command = [options.harness, "-m", "tests.helpers.harness_folder", options.model]
    files = [str(folder / name) for name in ("tasks.json", "found.json")]
    return [*command, *files, "auto", str(options.most)]


def _timed(command: list[str], processes: Processes, folder: Path) -> Result:
    """Seconds of a command on the clock and of its processors, and its peak memory."""
    environment = processes.environment | {"PYTHONPATH": str(measuring.ROOT)}
    began = time.perf_counter()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        found = measuring.watch(process)
    if process.returncode:
        said = (folder / "log").read_text("utf-8")[-2000:]
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{said}")
    return found | {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    main()
