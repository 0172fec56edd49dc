"""Python's garbage collection while a process starts, and while it trains."""

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


@contextmanager
def of_new_objects() -> Iterator[None]:
    """A time in which garbage collection leaves out the objects that were there before it.

    Libraries, model and tokenizer are half a million: a full collection of them takes as long as a
    step of a small model.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
