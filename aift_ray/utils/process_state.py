"""The user's process is after a run as it was before: nothing that is global stays changed."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# loggers whose level libraries change when they are used
_LOGGERS = ("ray", "ray.train", "ray.tune", "ray.data", "transformers", "datasets", "peft")


@contextmanager
def environment_kept() -> Iterator[None]:
    """Put the environment back as it was, and Python's own random numbers, which imports draw."""
    before, numbers = dict(os.environ), random.getstate()
    try:
        yield
    finally:
        random.setstate(numbers)
        for name in set(os.environ) - set(before):
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextmanager
def unchanged() -> Iterator[None]:
    """Put back environment, warnings, log levels, progress bars and random numbers."""
    import numpy as np
    import torch
    import transformers
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    logs, level = transformers.logging, transformers.logging.get_verbosity()
    bars, of_hub = logs.is_progress_bar_enabled(), are_progress_bars_disabled()
    loggers = {name: logging.getLogger(name).level for name in _LOGGERS}
    numbers = np.random.get_state()
    # Ray takes SIGTERM for itself
    main = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM) if main}
    with ExitStack() as stack:
        stack.enter_context(environment_kept())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.random.fork_rng(devices))
        try:
            yield
        finally:
            np.random.set_state(numbers)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for name, before in loggers.items():
                logging.getLogger(name).setLevel(before)
            logs.set_verbosity(level)
            if bars:
                logs.enable_progress_bar()
            if of_hub:
                disable_progress_bars()
