"""A run in this process alone: its steps, and what shows them meanwhile."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aift_ray.engine.job import Job
from aift_ray.engine.run_errors import short
from aift_ray.errors import AiftError
from aift_ray.runs import supervise
from aift_ray.runs.execution import in_words
from aift_ray.utils.malloc_trim import trim

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from aift_ray.engine.worker_run import Run


def make_room() -> None:
    """Give back what nobody needs any more, before the weights are loaded."""
    gc.collect()
    trim()


def work_here(
    job: Job,
    device: torch.device,
    show: Callable[[], None],
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_metrics: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Run:
    """Do `job`; a thread calls `show` again and again, and each step calls `on_metrics`."""
    from aift_ray.engine.worker import work
    from aift_ray.parallel.group import Group

    with _again_and_again(show):
        return work(job, Group(0, 1, device), on_metrics=on_metrics, tokenizer=tokenizer)


def attempt_it(
    job: Job,
    gpu: bool,
    tokenizer: PreTrainedTokenizerBase,
    attempt: supervise.Attempt,
    show: Callable[[], None],
) -> None:
    """Do `job` as a child of the command, which starts another one where this one is lost.

    Raises:
        AiftError: what another attempt would not mend.
    """
    import torch

    attempt.tell(memory=in_words(job.memory))
    torch.set_num_threads(max(1, int(job.config.ray.cpus_per_worker or 1)))
    # what reads the tokenizer from here on reads little at a time, and may fork
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        work_here(job, torch.device("cuda", 0) if gpu else torch.device("cpu"), show, tokenizer)
    except AiftError:
        raise
    except Exception as error:
        # an error of the code has been made one of this package
        attempt.tell(cause=f"worker 0: {short(error)}")
        sys.exit(supervise.LOST)


@contextmanager
def _again_and_again(act: Callable[[], None]) -> Iterator[None]:
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
