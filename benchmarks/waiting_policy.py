"""Milliseconds of a training step by threads and OMP_WAIT_POLICY, on an idle and on a busy machine.

    python benchmarks/waiting_policy.py [--rounds N] [--steps N] [--busy 0 4] [--threads 1 2]

hina-4m, fp32, 4 rows of 128 tokens, forward, backward and SGD, each combination in a process of its
own, in turn. `--busy` gives numbers of other processes that compute all the time; 0 is an idle
machine if nothing else runs. Beside the clock stand the milliseconds of a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import measuring

MODEL = measuring.ROOT / "aift_ray" / "models" / "assets" / "hina-4m"
POLICIES = (None, "ACTIVE", "PASSIVE")
_SPIN = "while True: sum(range(10**6))"


def child(steps: int, threads: int) -> None:
    """Take steps; print the medians as JSON."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 1000, (4, 128), generator=torch.Generator().manual_seed(0))
    clock, computed = [], []
    for _ in range(steps + 2):
        began, used = time.perf_counter(), time.process_time()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.append(time.perf_counter() - began)
        computed.append(time.process_time() - used)
    # the first two allocate
    medians = [statistics.median(each[2:]) * 1e3 for each in (clock, computed)]
    print(json.dumps(dict(zip(("ms", "cpu_ms"), medians, strict=True))))


def run(steps: int, threads: int, policy: str | None) -> measuring.Result:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment["OMP_NUM_THREADS"] = str(threads)
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    command = [
        sys.executable,
        __file__,
        "--child",
        "--steps",
        str(steps),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: measuring.Result = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def busy(number: int) -> Iterator[None]:
    """While this lasts, so many processes compute."""
    others = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--child", action="store_true")
    given = parser.parse_args()
    if given.child:
        child(given.steps, given.threads[0])
        return
    lines, rows = [], []
    for others in given.busy:
        contestants = {
            f"{threads}, {policy or 'not set'}": lambda _, t=threads, p=policy: run(
                given.steps, t, p
            )
            for threads in given.threads
            for policy in (POLICIES if threads > 1 else POLICIES[:1])
        }
        with busy(others):
            found = measuring.alternate(contestants, given.rounds)
        for name, each in found.items():
            lines.append({"busy": others, "case": name, "rounds": each})
            figures = [measuring.shown([r[key] for r in each], 0) for key in ("ms", "cpu_ms")]
            rows.append([str(others), name, *figures])
    header = ["other processes", "threads, OMP_WAIT_POLICY", "ms a step", "CPU ms"]
    print(measuring.table(header, rows))
    measuring.write(measuring.RESULTS / "waiting_policy.json", {"found": lines})


if __name__ == "__main__":
    main()
