"""A prepared run from the start of its workers to its whole summary, and how it is stopped."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from aift_ray.config import RunConfig
from aift_ray.engine import checkpoint
from aift_ray.engine.job import Job
from aift_ray.errors import Interrupted, TrainingError, WorkersLost
from aift_ray.planning.candidates import remedy
from aift_ray.planning.memory_estimate import Memory
from aift_ray.runs import run_dir, terminal
from aift_ray.runs.restart_causes import FAILURES, read_failures


@contextmanager
def execution(job: Job, ended: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The time in which workers do `job`, whichever they are; its summary is whole afterwards.

    Args:
        ended: called when the workers are done, while all that they wrote down is there.

    Raises:
        AiftError: what stopped the workers, with what is left of the run.
    """
    folder, status = job.output, "failed"
    try:
        yield
        ended()
        run_dir.bring(job.config, folder)
        status = run_dir.summary(folder).get("status", "failed")
    except Interrupted:
        status = "interrupted"
        raise
    except TrainingError as error:
        raise type(error)(f"{error}\n  {_left(folder)}") from error
    except OSError as error:
        raise TrainingError(f"{error}\n  {_left(folder)}") from error
    finally:
        causes = read_failures(folder / FAILURES)
        failed_at_last = 1 if status == "failed" and causes else 0
        values: dict[str, Any] = {"causes": causes, "restarts": len(causes) - failed_at_last}
        if status in ("failed", "interrupted"):
            values["status"] = status
        values["wall_s"] = time.time() - job.started
        # a full disk takes no summary either; what filled it is told all the same
        with suppress(OSError):
            run_dir.finish(folder, **values)
            run_dir.copy(job.config, folder)


def show_end(summary: dict[str, Any], folder: Path, code: int) -> dict[str, Any]:
    """Show the summary; Interrupted, with exit status `code`, where the run was stopped."""
    terminal.show_summary(summary, folder)
    for problem in summary.get("not_copied", ()):
        terminal.console.print(f"not copied to the storage path: {problem}", markup=False)
    for problem in summary.get("not_reported", ()):
        terminal.console.print(f"not reported to {problem}", markup=False)
    if summary["status"] == "interrupted":
        text = f"stopped after step {summary['steps']} with a checkpoint; "
        raise Interrupted(text + run_dir.how_to_go_on(folder), code)
    return summary


def _left(folder: Path) -> str:
    steps = checkpoint.steps(folder / "checkpoints")
    if not steps:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is checkpoints/step-{steps[-1]}"


def give_up(
    config: RunConfig, folder: Path, started: float, causes: list[str], memory: str
) -> NoReturn:
    """End a run whose only worker was lost more often than is tried again.

    Args:
        causes: why, an entry a loss.
        memory: computed need of the worker, where it was ended because memory ran out; else "".

    Raises:
        WorkersLost: always.
    """
    text = f"training failed: {causes[-1]}"
    if memory:
        text = out_of_memory(text, "", memory, config)
    ended: dict[str, Any] = {"status": "failed", "wall_s": time.time() - started}
    with suppress(OSError):
        run_dir.finish(folder, causes=causes, restarts=len(causes) - 1, **ended)
        run_dir.copy(config, folder)
    raise WorkersLost(f"{text}\n  {_left(folder)}")


def in_words(memory: Memory | None) -> str:
    """The computed need of a worker; "" where it is not known."""
    return f"{memory.total / 2**30:.2f} GiB ({memory.parts})" if memory else ""


def out_of_memory(what: str, used: str, memory: str, config: RunConfig) -> str:
    """What to tell where the memory of a machine ran out.

    Args:
        used: how much there was.
        memory: computed need of a worker, in words; "": not known.
    """
    text = f"{what} ({used})" if used else what
    if memory:
        text += f"\n  computed for a worker: {memory}"
    return f"{text}\n  try {remedy(config)}, or fewer workers on a machine"


@contextmanager
def stop_signals(stop: Callable[[int], None]) -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into a call of `stop` with the signal; a second one is final."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            sys.exit(130)
        stop(number)

    if threading.current_thread() is not threading.main_thread():
        # only the main thread may take signals
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(asked: list[int]) -> int:
    """Of a run that was stopped by the first of these signals, or by its time limit."""
    return 130 if asked[:1] == [signal.SIGINT] else 75
