"""What ends a run: an error of its code, at once and with the reason, or the loss of a worker.

Nothing here needs torch at import: Ray's controller asks which failures are tried again.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aift_ray.errors import AiftError, TrainingError

if TYPE_CHECKING:
    from aift_ray.engine.job import Job
    from aift_ray.engine.worker_run import Run
    from aift_ray.parallel.group import Group

LOG = "error.log"
# what gloo, NCCL and sockets say of a peer that left; gloo's own type is RuntimeError
_PEER_LEFT = re.compile(
    r"connection (closed|reset) by peer|connection (refused|timed out)|broken pipe|socket closed"
    r"|no route to host|network is unreachable|timed out waiting|application timeout"
    r"|ncclremoteerror|ncclsystemerror|nccl communicator was aborted|remote process exited"
    r"|uncorrectable ecc error",
    re.IGNORECASE,
)


def is_worker_loss(error: BaseException | None) -> bool:
    """Whether an error comes of a worker, a machine or a connection that is gone.

    Those are Ray's own errors, torch.distributed's, and what a backend says of a peer that left.
    All others come of the code that a second attempt would run again.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kinds = type(error).__mro__
        if type(error).__module__.partition(".")[0] == "ray":
            return True
        # torch's DistError, of which its network, store and backend errors are kinds
        if any(kind.__name__ == "DistError" for kind in kinds):
            return True
        if isinstance(error, (ConnectionError, TimeoutError)) or _PEER_LEFT.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass
class Reached:
    """How far a worker has come; no run: it is yet to be built."""

    run: Run | None = None


@contextmanager
def told(job: Job, group: Group) -> Iterator[Reached]:
    """Make an error of the code within one that says where it was, and tell the other workers.

    Raises:
        AiftError: the error, where it is not the loss of a worker.
    """
    reached = Reached()
    try:
        yield reached
    except AiftError:
        group.leave()
        raise
    except Exception as error:
        if is_worker_loss(error):
            raise
        group.leave()
        raise TrainingError(_reason(error, reached.run, job.output, group)) from error


def short(error: BaseException) -> str:
    """The kind of an error, and the last line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


def _reason(error: Exception, run: Run | None, output: Path, group: Group) -> str:
    place = f"step {run.state.step + 1}" if run else "building the model"
    if type(error).__name__ == "OutOfMemoryError":
        from aift_ray.engine import device_memory

        if run is None:
            return device_memory.out_of_memory_before_steps(group.device, error, place)
        return device_memory.out_of_memory(run, error, place)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{place}: {short(error)} ({Path(frame.filename).name}:{frame.lineno}, {frame.name})"
    log = output / LOG
    with suppress(OSError):
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        text += f"\n  the whole of it is in {log}"
    return text
