"""What the benchmarks share: fresh processes in turn, spreads, tables, and the JSON they leave.

It imports nothing heavy, so that the parent stays small: a child inherits its parent's peak
memory as `ru_maxrss`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared"
_PACKAGES = (
    "aift-ray",
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "ray",
    "vllm",
)

Result = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A comparison to show: how often `of` holds `to`, by `key`, and what is aimed at."""

    of: str
    to: str
    key: str
    aim: str = ""


class Processes:
    """Starts children with a scratch folder, a number of threads, and no network.

    Args:
        folder: for caches and whatever the children write.
        threads: of computation, a child.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def together(self, commands: Sequence[Sequence[str]]) -> list[Result]:
        """Run commands at the same time; what each prints as its last line, read as JSON.

        Raises:
            RuntimeError: one failed; with the end of what it said.
        """
        with tempfile.TemporaryFile("w+") as said:
            children = [
                subprocess.Popen(
                    list(command),
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    env=self.environment,
                    cwd=self.folder,
                )
                for command in commands
            ]
            outputs = [child.communicate()[0] for child in children]
            said.seek(0)
            errors = said.read()
        for child, output in zip(children, outputs, strict=True):
            if child.returncode:
                text = (output + errors)[-3000:]
                raise RuntimeError(f"{child.args} ended with {child.returncode}:\n{text}")
        return [json.loads(output.strip().splitlines()[-1]) for output in outputs]

    def contestant(self, name: str, **spec: Any) -> Result:
        """Run function `name` of contestants.py in a process of its own."""
        return self.contestants(name, [spec])[0]

    def contestants(self, name: str, specs: Sequence[dict[str, Any]]) -> list[Result]:
        """Run function `name` of contestants.py in several processes at once."""
        script = str(ROOT / "benchmarks" / "contestants.py")
        return self.together([[sys.executable, script, name, json.dumps(spec)] for spec in specs])


def watch(child: subprocess.Popen[Any], interval: float = 0.1) -> Result:
    """Wait for a child; the peak memory and the CPU seconds of it and all that it starts.

    Memory is what the processes hold together: a page that several share counts once.
    """
    peak, seconds = 0.0, {}
    while child.poll() is None:
        held = 0.0
        with suppress(psutil.Error):
            root = psutil.Process(child.pid)
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.Error, OSError):
                    times = process.cpu_times()
                    seconds[process.pid] = times.user + times.system
                    held += _proportional(process.pid)
        peak = max(peak, held)
        time.sleep(interval)
    return {"peak_gib": peak / 2**20, "cpu_s": sum(seconds.values())}


def _proportional(pid: int) -> float:
    """KiB of a process, its share of shared pages."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("Pss:"))


def alternate(
    contestants: dict[str, Callable[[int], Result]], rounds: int
) -> dict[str, list[Result]]:
    """Call the contestants in turn, a whole round after the other; each gets the round's index."""
    found: dict[str, list[Result]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, call in contestants.items():
            began = time.monotonic()
            found[name].append(call(number))
            seconds = time.monotonic() - began
            # a run that is cut off leaves what it has measured
            numbers = {k: round(v, 2) for k, v in found[name][-1].items() if isinstance(v, float)}
            print(f"round {number + 1}/{rounds} {name}: {seconds:.0f} s {numbers}", file=sys.stderr)
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of some values, and the values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def shown(values: Sequence[float], digits: int = 2) -> str:
    """`median (min-max)`."""
    found = spread(values)
    median, least, most = (f"{found[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({least}-{most})"


def compare(found: dict[str, list[Result]], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The ratio of each pair that was measured in every round, and its spread."""
    return [
        {
            "ratio": f"{pair.of} / {pair.to}",
            "of": pair.key,
            "aim": pair.aim,
            **spread(
                [
                    a[pair.key] / b[pair.key]
                    for a, b in zip(found[pair.of], found[pair.to], strict=True)
                ]
            ),
        }
        for pair in pairs
        if pair.of in found and pair.to in found
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns in line."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def ratio_table(ratios: Sequence[dict[str, Any]]) -> str:
    """What `compare` found, for people."""
    rows = [[r["ratio"], r["of"], shown(r["values"]), r["aim"]] for r in ratios]
    return table(["ratio, by round", "of", "median (min-max)", "aim"], rows)


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system of this machine."""
    model, flags = platform.processor(), ""
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.is_file():
        pairs = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line]
        found = {name.strip(): value.strip() for name, value in reversed(pairs)}
        model, flags = found.get("model name", model), found.get("flags", "")
    memory = int(meminfo.read_text().split()[1]) / 2**20 if meminfo.is_file() else None
    wide = [f for f in flags.split() if f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "flags": wide,
        "memory_gib": memory and round(memory, 1),
        "system": platform.platform(),
        "load": os.getloadavg(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _without_place(argument: str) -> str:
    """An argument; of a folder elsewhere on this machine its name."""
    known = any(argument.startswith(str(folder)) for folder in (ROOT, SHARED))
    return Path(argument).name if argument.startswith("/") and not known else argument


def write(path: Path, content: dict[str, Any]) -> None:
    """Write results with command, date, machine and versions."""
    about = {
        "command": " ".join(["python", *map(_without_place, sys.argv)]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about | content, ensure_ascii=False, indent=1, default=str)
    # results are kept with the project, which knows nothing of where it lies
    for folder, name in ((ROOT, "."), (SHARED, "../shared"), (Path(tempfile.gettempdir()), "TMP")):
        text = text.replace(str(folder), name)
    path.write_text(text + "\n", "utf-8")
    print(f"\nwritten: {path}")
