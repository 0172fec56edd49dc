"""A reward function of a user's file: imported, its signature checked, called as TRL calls it."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
import numbers
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# what TRL gives beside the prompts, the completions and the columns of the rows
GIVEN = ("completion_ids", "trainer_state", "log_extra", "log_metric")
NO_MEMORY = "it needs more memory than its limit"
MORE_MEMORY = "raise --grpo.reward_memory"
_SIGNATURE = "def {name}(prompts, completions, **kwargs): ..."


class Refused(Exception):
    """A function that can't be used, or a call that failed.

    Args:
        what: one sentence.
        row: the row of the call that it is about; None: not known, or all.
        remedy: what to do; may be empty.
        always: what is wrong is the reward itself, whatever the rows.
    """

    def __init__(
        self, what: str, row: int | None = None, remedy: str = "", always: bool = False
    ) -> None:
        super().__init__(what)
        self.what, self.row, self.remedy, self.always = what, row, remedy, always


def load(file: str, name: str) -> Callable[..., Any]:
    """The function of a file.

    Raises:
        Refused: the import fails, or what has the name can't be called as a reward.
    """
    function = attribute(file, name)
    _check_signature(file, name, function, None)
    return function


def attribute(file: str, name: str) -> Callable[..., Any]:
    """What a file calls `name`; it is imported with its folder on the path.

    Raises:
        Refused: the import fails, or it can't be called.
    """
    path = Path(file)
    module_name = f"aift_reward_{path.stem}"
    module = sys.modules.get(module_name)
    if module is None or getattr(module, "__file__", None) != file:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[module_name]
            raise Refused(f"{file} can't be imported: {_told(error, file)}") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise Refused(f"{file}: {name} is a {type(function).__name__}, expected a function")
    return function


def guarded(file: str, function: Callable[..., Any], *given: object, **named: object) -> Any:
    """What a function of a user's file returns.

    Raises:
        Refused: it raised an exception.
    """
    try:
        found = function(*given, **named)
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found))
        return found
    except MemoryError as error:
        raise Refused(f"{_told(error, file)}: {NO_MEMORY}", remedy=MORE_MEMORY) from error
    except SystemExit as error:
        raise Refused(f"it called sys.exit({error.code!r})") from error
    except BaseException as error:
        # KeyboardInterrupt, say, and what test libraries raise
        raise Refused(_told(error, file)) from error


def check_columns(
    file: str, name: str, function: Callable[..., Any], columns: Iterable[str]
) -> None:
    """Raise Refused where a function can't be called with the columns of the rows."""
    _check_signature(file, name, function, list(columns))


def call(
    function: Callable[..., Any],
    file: str,
    name: str,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    further: Mapping[str, Any],
) -> list[float | None]:
    """The rewards of some rows.

    Raises:
        Refused: the function raised an exception, or returned something else than one finite
            number or None for each row.
    """
    found = guarded(file, function, prompts=prompts, completions=completions, **further)
    return checked(name, found, len(prompts))


def checked(name: str, found: object, rows: int) -> list[float | None]:
    """What a function returned, as numbers.

    Raises:
        Refused: it is something else than one finite number or None for each row.
    """
    if hasattr(found, "tolist"):
        # a tensor or an array
        found = found.tolist()
    if not isinstance(found, (list, tuple)):
        what = f"it returned a {type(found).__name__}, expected a list of {rows} numbers"
        raise Refused(what, always=True)
    if len(found) != rows:
        what = f"it returned {len(found)} rewards, expected {rows}: one for each completion"
        raise Refused(what, always=True)
    return [_number(value, row) for row, value in enumerate(found)]


def _number(value: object, row: int) -> float | None:
    if value is None:
        return None
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if not isinstance(value, numbers.Real):
        what = f"it returned {value!r:.80}, a {type(value).__name__}, expected a number or None"
        raise Refused(what, row)
    number = float(value)
    if not math.isfinite(number):
        raise Refused(f"it returned {number}, expected a finite number, or None for no reward", row)
    return number


async def _awaited(found: Awaitable[object]) -> object:
    return await found


def _check_signature(
    file: str, name: str, function: Callable[..., Any], columns: list[str] | None
) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # of a compiled function nothing is known before the call
        return
    remedy = f"write it as {_SIGNATURE.format(name=name)}"
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = {p.name for p in by_name}
    alone = [p.name for p in parameters if p.kind == p.POSITIONAL_ONLY and p.default is p.empty]
    if alone:
        what = f"its parameter {alone[0]} can't be given by name"
        raise Refused(f"{file}: {name}: {what}", remedy=remedy)
    given = {"prompts", "completions", *GIVEN, *(columns or ())}
    if not any(p.kind == p.VAR_KEYWORD for p in parameters) and not given <= known:
        missing = ", ".join(sorted(given - known))
        what = f"it takes no {missing}, which it is given by name as in TRL"
        raise Refused(f"{file}: {name}: {what}", remedy=remedy)
    if columns is None:
        return
    unknown = [p.name for p in by_name if p.default is p.empty and p.name not in given]
    if unknown:
        what = f"it needs {', '.join(unknown)}, which no column of the rows has"
        shown = ", ".join(sorted(columns)) or "none"
        raise Refused(f"{file}: {name}: {what}", remedy=f"columns are: {shown}")


def _told(error: BaseException, file: str) -> str:
    """An exception in a line, with the last place in the user's file where it passed."""
    kind = type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{kind} in {error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file]
    place = f" (line {own[-1].lineno} of {Path(file).name})" if own else ""
    return f"{kind}: {error}{place}" if str(error) else f"{kind}{place}"
