"""A run of one worker on this machine: a child of the command, watched and started again.

Ray has nothing to spread here. The command forks while it is small, before torch or any thread:
the child prepares the run, shows it and trains. The command passes signals on, and where the child
is lost it starts another one, which goes on from the newest checkpoint
(`docs/decisions/0015-one-worker-without-ray.md`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from aift_ray.config import RunConfig
from aift_ray.runs.restart_causes import FAILURES, add_failure

# exit status of a child that another one may do better, as Ray tries again when a worker is lost
LOST = 76
# share of the memory in use at which the child is ended, before the system ends something else
_FULL = 0.95
_INTERVAL = 0.1
_HEAVY = ("torch", "ray", "pyarrow")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Attempt:
    """A child, as it sees itself.

    Attributes:
        number: from 0; later ones go on with the run of the first.
    """

    def __init__(self, number: int, facts: int) -> None:
        self.number, self._facts = number, facts

    def tell(self, **facts: str) -> None:
        """Let the command know what it needs when this child is lost.

        Args:
            memory: computed need of the worker, in words; with it the child trains by itself.
            cause: why it is about to end with status LOST.
        """
        os.write(self._facts, (json.dumps(facts) + "\n").encode())


def possible(config: RunConfig) -> bool:
    """Whether this process is small enough to fork, and the run may be one of a single worker."""
    if os.name != "posix" or threading.active_count() > 1 or any(n in sys.modules for n in _HEAVY):
        return False
    elsewhere = "RAY_ADDRESS" in os.environ or config.training.local_rank >= 0
    asks_ray = config.data.prepare == "ray" or bool(config.ray.resources_per_worker)
    asks_ray |= config.generates_beside
    return not (elsewhere or asks_ray) and config.worker_range(0) == (1, 1)


def fork(config: RunConfig, folder: Path, started: float) -> Attempt:
    """Return in a child, as `os.fork` does; the command watches children until one ends by itself.

    Args:
        folder: of the run.
        started: when the run was asked for, as time.time() counts.

    Raises:
        SystemExit: in the command, with the child's exit status.
        WorkersLost: in the command; children were lost more often than `ray.max_failures` allows.
    """
    lost: list[str] = []
    while True:
        facts, alive = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(facts[0])
            os.close(alive[1])
            _be_child(alive[0])
            return Attempt(len(lost), facts[1])
        child = _Child(pid, facts, alive)
        status = child.wait()
        if status != LOST and status >= 0:
            sys.exit(status)
        if "memory" not in child.facts:
            # it has not begun to train, or has workers on Ray, which end with it
            os.kill(os.getpid(), -status)
        cause = child.cause(status)
        lost.append(cause)
        if child.asked or 0 <= config.ray.max_failures < len(lost):
            from aift_ray.runs.execution import give_up

            give_up(config, folder, started, lost, child.full and child.facts["memory"])
        print(f"workers lost: {cause}", flush=True)
        add_failure(folder / FAILURES, [cause])


class _Child:
    """One child, from the parent's side.

    Args:
        facts: the pipe by which it tells what it knows.
        alive: the pipe that it watches, open as long as the command is there.

    Attributes:
        asked: signals that were passed on.
        facts: what it has told.
        full: what memory was in use when it was ended for that; empty: it was not.
    """

    def __init__(self, pid: int, facts: tuple[int, int], alive: tuple[int, int]) -> None:
        self.asked: list[int] = []
        self.facts: dict[str, str] = {}
        self.full = ""
        self.pid, self._told, self._alive = pid, facts[0], alive[1]
        with suppress(OSError):
            # as the child does: whoever comes first
            os.setpgid(pid, pid)
        os.close(facts[1])
        os.close(alive[0])
        os.set_blocking(self._told, False)

    def wait(self) -> int:
        """Pass signals on until it ends; its exit status, minus the signal that ended it."""
        before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        try:
            while True:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended:
                    break
                self._listen()
                self._spare_the_machine()
                time.sleep(_INTERVAL)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._listen()
            os.close(self._told)
            # what it has started and left behind
            self._signal(signal.SIGKILL)
            os.close(self._alive)
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, number: int, frame: object) -> None:
        self.asked.append(number)
        # the first asks for a checkpoint, the second for the end
        self._signal(number if len(self.asked) < 3 else signal.SIGKILL)

    def _listen(self) -> None:
        with suppress(BlockingIOError):
            # a line is short enough to be written in one piece
            for line in os.read(self._told, 1 << 16).splitlines():
                self.facts |= json.loads(line)

    def _spare_the_machine(self) -> None:
        if "memory" not in self.facts or self.full:
            return
        from aift_ray.utils.host_memory import in_use

        used, total = in_use()
        if used > _FULL * total:
            self.full = f"{used / 1e9:.2f}GB used / {total / 1e9:.2f}GB"
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)

    def cause(self, status: int) -> str:
        """Why it was lost."""
        if self.full:
            return f"worker 0: ended, for the machine ran low on memory ({self.full})"
        if "cause" in self.facts:
            return self.facts["cause"]
        return f"worker 0: killed by {signal.Signals(-status).name}"


def _be_child(watched: int) -> None:
    # Ctrl-C on a terminal reaches the command, which passes it on once
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with suppress(OSError):
        # where memory runs out all the same, the system is to end this one, not the command
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    threading.Thread(target=_end_with_command, args=(watched,), daemon=True).start()


def _end_with_command(watched: int) -> None:
    # nothing is ever written: this returns when the command is gone
    os.read(watched, 1)
    os.killpg(0, signal.SIGKILL)


def process_start() -> float:
    """When this process began, as time.time() counts."""
    if sys.platform != "linux":
        import psutil

        return float(psutil.Process().create_time())
    # psutil adds the start to a boot time that is known to whole seconds only
    ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    since_boot = int(ticks) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
