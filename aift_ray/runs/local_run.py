"""A run in this process alone: its steps, and what shows them meanwhile."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aift_ray.engine.job import Job
from aift_ray.engine.run_errors import short
from aift_ray.errors import AiftError
from aift_ray.runs import supervise
from aift_ray.runs.execution import in_words


@contextmanager
def supervised(job: Job, attempt: supervise.Attempt) -> Iterator[None]:
    """The time in which this child of the command does `job`; where it is lost, another one does.

    Raises:
        AiftError: what another attempt would not mend.
    """
    import torch

    attempt.tell(memory=in_words(job.memory))
    torch.set_num_threads(max(1, int(job.config.ray.cpus_per_worker or 1)))
    # what reads the tokenizer from here on reads little at a time, and may fork
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    except AiftError:
        raise
    except Exception as error:
        # an error of the code has been made one of this package
        attempt.tell(cause=f"worker 0: {short(error)}")
        sys.exit(supervise.LOST)


@contextmanager
def polling(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` twice a second in a thread of its own."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(0.5):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
