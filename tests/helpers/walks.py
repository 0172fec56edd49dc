"""The functions of the package that are passed on the way from one call of a library to another."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, TypeVar

from tests.conftest import ROOT

PACKAGE = f"{ROOT / 'aift_ray'}/"
T = TypeVar("T")
# a library's function by its qualified name, and whether a call is one of the walk: by its frame
# (for a function in C that of its caller) and the functions of the package on the stack
Place = Callable[[FrameType, list[str]], bool]


def anywhere(frame: FrameType, passed: list[str]) -> bool:
    """Each call counts."""
    return True


def within(function: str) -> Place:
    """Calls below a function of the package count."""
    return lambda _, passed: function in passed


def given(text: str) -> Place:
    """Calls count whose frame holds a text in one of its values."""
    return lambda frame, _: any(text in repr(value) for value in [*frame.f_locals.values()])


class Walk:
    """Records which functions are on the stack at the places of a walk.

    Attributes:
        found: for each place that was reached, the functions on its stacks as (file, name).
    """

    def __init__(self) -> None:
        self.found: dict[str, set[tuple[str, str]]] = {}
        self._places: Mapping[str, Place] = {}

    def over(self, act: Callable[[], T], places: Mapping[str, Place]) -> T:
        """Call `act`, and record what is passed on the way to the places, in new threads too."""
        self._places = places
        threading.setprofile(self._look)
        sys.setprofile(self._look)
        try:
            return act()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _look(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "call":
            name = frame.f_code.co_qualname
        elif event == "c_call":
            name = getattr(called, "__qualname__", "")
        else:
            return
        counts = self._places.get(name)
        if counts is None or (event == "call" and frame.f_code.co_filename.startswith(PACKAGE)):
            return
        passed: list[tuple[str, str]] = []
        at: FrameType | None = frame
        while at is not None:
            file, function = at.f_code.co_filename, at.f_code.co_qualname
            # a comprehension is no call
            if file.startswith(PACKAGE) and not function.endswith(">"):
                passed.append((file.removeprefix(PACKAGE), function))
            at = at.f_back
        if passed and counts(frame, [function for _, function in passed]):
            self.found.setdefault(name, set()).update(passed)

    @property
    def functions(self) -> set[tuple[str, str]]:
        """All functions that were passed."""
        return set().union(*self.found.values())

    def check(self, places: int, calls: int, files: int) -> None:
        """All places were reached, by so many functions in so many files at most."""
        assert len(self.found) == places, sorted(self.found)
        listed = "\n".join(" ".join(each) for each in sorted(self.functions))
        assert len(self.functions) <= calls, listed
        assert len({file for file, _ in self.functions}) <= files, listed
