"""What the C library holds of memory that was freed."""

from __future__ import annotations

import ctypes
import gc


def trim() -> None:
    """Give pages that nothing is on back to the system; 20 ms for some hundred MB.

    Of its own accord glibc gives back only what is free at the heap's end: between pieces that
    live long, such as kernels made for shapes, tensors of all sizes leave ever more holes. Nothing
    is done where the C library is another.
    """
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back:
        give_back(0)


def make_room() -> None:
    """Give back what nobody needs any more, before much is loaded."""
    gc.collect()
    trim()
