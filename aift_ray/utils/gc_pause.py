"""Python's garbage collection while a process starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def later() -> Iterator[None]:
    """A time without garbage collection, whose objects are left out of it from then on.

    A large tokenizer makes millions of objects, none of them garbage: going through them over and
    over is half of the time that it takes to load, and a pause in every later collection.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
