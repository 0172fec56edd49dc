"""Runs a verb: its errors become one message and an exit status.

Imports little, so that Ctrl-C while the settings are imported is told in words too.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import NoReturn

from aift_ray.errors import AiftError, UserError

# as a shell tells of a program that SIGPIPE or SIGINT has ended
_BROKEN_PIPE, _INTERRUPTED = 141, 130


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call a verb; its errors become one message and the contract's exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that can't show a character gets a question mark
            stream.reconfigure(errors="replace")
    try:
        status = run(argv)
        sys.stdout.flush()
        return status
    except AiftError as error:
        label = "error" if isinstance(error, UserError) or error.exit_status == 1 else "note"
        text = f"{label}: {error}"
        print(_fitted(text) if sys.stderr.isatty() else text, file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # who read the output has gone, as `| head` does; what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted before anything began", file=sys.stderr)
        return _INTERRUPTED


def leave(status: int) -> NoReturn:
    """End the process; after Ctrl-C at once, for torch and Ray take seconds to be unloaded."""
    if status == _INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _fitted(text: str) -> str:
    """The text in lines that end at blanks and not inside a word, as wide as the terminal."""
    width, lines = shutil.get_terminal_size().columns, []
    for line in text.split("\n"):
        words = line.lstrip(" ").split(" ")
        indent = len(line) - len(line.lstrip(" "))
        now = " " * indent + words[0]
        for word in words[1:]:
            if _cells(now) + 1 + _cells(word) > width:
                lines.append(now)
                now = " " * (indent + 2) + word
            else:
                now += f" {word}"
        lines.append(now)
    return "\n".join(lines)


def _cells(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(each) in "WF") for each in text)
