"""Seconds from the command to the first answer: `aift-ray serve` and `transformers serve`, in turn.

    python benchmarks/serve_start.py MODEL [--rounds N] [--dtype fp32|bf16] [--only NAME]

Ready is when a completion of one token was answered. Beside the seconds by the clock stand those of
a CPU, of all processes of a server together and by process, which other load on the machine changes
less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent))
import measuring
from serve_load import Contestant, ours, transformers_serve


class Usage(threading.Thread):
    """CPU seconds of a process and all below it, by name, until it is told to end."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended = root, threading.Event()
        self.seconds: dict[int, float] = {}
        self.began: dict[int, float] = {}
        self.names: dict[int, str] = {}

    def run(self) -> None:
        while not self._ended.wait(0.3):
            with suppress(psutil.Error):
                root = psutil.Process(self._root)
                for process in (root, *root.children(recursive=True)):
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        self.seconds[process.pid] = times.user + times.system
                        self.names[process.pid] = _name(process)
                        self.began[process.pid] = process.create_time() - root.create_time()

    def end(self) -> dict[str, tuple[float, float]]:
        """By name: seconds of a CPU, and when the first of that name began."""
        self._ended.set()
        self.join()
        found: dict[str, float] = defaultdict(float)
        began: dict[str, float] = {}
        for pid, seconds in self.seconds.items():
            found[self.names[pid]] += seconds
            first = began.get(self.names[pid], self.began[pid])
            began[self.names[pid]] = min(first, self.began[pid])
        order = sorted(found.items(), key=lambda x: -x[1])
        return {name: (round(each, 2), round(began[name], 1)) for name, each in order}


def _name(process: psutil.Process) -> str:
    name = process.name()
    if not name.startswith("python"):
        return name
    parts = [Path(part).stem for part in process.cmdline()[1:] if part.endswith(".py")]
    return parts[0] if parts else "command"


def started(who: Contestant) -> measuring.Result:
    """Start a server, ask it for a token, end it."""
    began = time.monotonic()
    environment = os.environ | {"XDG_STATE_HOME": str(who.log.parent)}
    with who.log.open("w") as log:
        who.process = subprocess.Popen(who.command, stdout=log, stderr=log, env=environment)
    usage = Usage(who.process.pid)
    usage.start()
    try:
        while not who.healthy():
            assert who.process.poll() is None, who.log.read_text("utf-8")
            assert time.monotonic() < began + 600, who.log.read_text("utf-8")[-2000:]
            time.sleep(0.2)
        ready = time.monotonic() - began
        told = who.log.read_text("utf-8")
        key = told.split("shown this once: ")[1].split()[0] if "shown this once" in told else "none"
        answer = httpx.post(
            f"http://127.0.0.1:{who.port}/v1/completions",
            json={"model": who.model, "prompt": "昔々、", "max_tokens": 1},
            headers={"Authorization": f"Bearer {key}"},
            timeout=300,
        )
        answer.raise_for_status()
        seconds = time.monotonic() - began
    finally:
        by_name = usage.end()
        who.stop()
    lines = [line for line in told.splitlines() if line.endswith(" s)")]
    found = {
        "ready_s": round(ready, 1), "answer_s": round(seconds, 1),
        "cpu_s": round(sum(each for each, _ in by_name.values()), 1),
        "by_process": by_name, "stages": lines,
    }  # fmt: skip
    print(who.name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1, help="of computation, a server")
    parser.add_argument("--only", choices=("aift-ray", "transformers"))
    given = parser.parse_args()
    given.engine, given.model = "transformers", str(Path(given.model).resolve())
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    with tempfile.TemporaryDirectory() as place:
        makers: dict[str, Any] = {"aift-ray": ours, "transformers": transformers_serve}
        contestants = {
            name: lambda _, make=make: started(make(given, Path(place)))
            for name, make in makers.items()
            if given.only in (None, name)
        }
        found = measuring.alternate(contestants, given.rounds)
    for name, rounds in found.items():
        medians = {key: statistics.median(each[key] for each in rounds)
                   for key in ("ready_s", "answer_s", "cpu_s")}  # fmt: skip
        print(name, "medians", medians)
    if len(found) == 2:
        pairs = zip(found["aift-ray"], found["transformers"], strict=True)
        ratios = [ours_["answer_s"] / theirs["answer_s"] for ours_, theirs in pairs]
        print("ratios of rounds", [round(each, 2) for each in ratios])
        content = {"model": Path(given.model).name, "dtype": given.dtype, "found": found}
        path = measuring.RESULTS / f"serve_start_{Path(given.model).name}.json"
        measuring.write(path, content)


if __name__ == "__main__":
    main()
