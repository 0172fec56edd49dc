"""Two processes between a worker and what started it: they end all that a reward has started.

They are what the kernel hands orphans to (child subreapers), so that no process of a reward gets
away from them, whatever session or group it moves to. Where one of them is killed, the other ends
what is left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# processes that a reward may have at a time, with its own
MOST = 256
# exit statuses, where processes were too many, and where they held too much together
TOO_MANY, TOO_LARGE = 97, 98
# seconds between two looks at what there is; seconds after which what does not end is left
_LOOK, _PATIENCE = 0.1, 10.0
# so many more processes and threads on the machine since the last look are looked at closely
_SUDDEN = 32
_WAITED = {signal.SIGTERM, signal.SIGCHLD}


def split(parent: int, memory: int | None) -> None:
    """Split in three: the last child returns, and the others guard it until `parent` ends.

    Args:
        memory: bytes that the child and what it starts may hold together; None: any number.
    """
    outer = _split(parent, _wait)
    _split(outer, partial(_watch, memory=memory))


def _split(parent: int, status_of: Callable[[int], int]) -> int:
    """Split in two: the child returns, with the number of the process that guards it.

    Args:
        status_of: waits for a child's end, or a reason to end it; the status to end with.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    _end_with(parent, signal.SIGTERM)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    own, child = os.getpid(), os.fork()
    if child:
        # the other side of the socket is to see that the child has ended
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        status = status_of(child)
        _end_all(child)
        _end_as(status)
    # a group of its own, which is killed in one call: no fork gets away from that
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED)
    _end_with(own, signal.SIGKILL)
    return own


def _wait(child: int) -> int:
    """The status that the child ended with; 0 where this process is asked to end."""
    while signal.sigwait(_WAITED) != signal.SIGTERM:
        status = _reap().get(child)
        if status is not None:
            return status
    return 0


def _watch(child: int, memory: int | None) -> int:
    """The status that the child ended with, or for which it is to be ended."""
    known = _tasks()
    while True:
        told = signal.sigtimedwait(_WAITED, _LOOK)
        if told is not None and told.si_signo == signal.SIGTERM:
            return 0
        status = _reap().get(child)
        if status is not None:
            return status
        there = _tasks()
        sudden = there - known > _SUDDEN
        if sudden:
            # what forks without end leaves no time to count it
            os.killpg(child, signal.SIGSTOP)
        below = _below(os.getpid())
        if len(below) > MOST:
            return TOO_MANY
        if sudden:
            os.killpg(child, signal.SIGCONT)
        known = there if sudden else min(known, there)
        if memory is not None and len(below) > 1 and _held(below, memory) > memory:
            return TOO_LARGE


def _tasks() -> int:
    """How many processes and threads the machine has; 0: not known."""
    with suppress(OSError):
        return int(Path("/proc/loadavg").read_text("ascii").split()[3].partition("/")[2])
    return 0


def _below(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have; `MOST` or a few more."""
    found = [pid]
    for each in found:
        if len(found) > MOST + 1:
            break
        # it may have ended meanwhile
        with suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text("ascii").split())
    return found[1:]


def _held(pids: Iterable[int], limit: int) -> int:
    """Bytes that processes hold, those that several share counted once.

    Args:
        limit: what is known to be less is not looked at closely.
    """
    resident = 0
    for pid in pids:
        with suppress(OSError):
            pages = Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]
            resident += int(pages) * os.sysconf("SC_PAGE_SIZE")
    if resident <= limit:
        return resident
    shares = 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
            shares += sum(int(line.split()[1]) << 10 for line in lines if line[:4] == "Pss:")
    return shares


def _reap() -> dict[int, int]:
    """The exit statuses of children that have ended."""
    found = {}
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    return found


def _end_all(child: int) -> None:
    """Kill the group of the child, and all else that is below this process, until nothing is."""
    until = time.monotonic() + _PATIENCE
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    while (below := _below(os.getpid())) and time.monotonic() < until:
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap()


def _end_as(status: int) -> NoReturn:
    """End with the exit status of another process, or by the signal that ended it."""
    if status < 0:
        with suppress(OSError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(abs(status))


def _end_with(parent: int, number: int) -> None:
    """Have this process get a signal when the thread that started it ends, on Linux."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
