"""Tables and lines of plain text that fit a terminal; in a file they stay whole."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

_GAP = "  "


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None: it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def aligned(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The lines of a table; the first and the last column are texts, the others numbers.

    Args:
        rows: the head, then the rows.
        width: columns at most; of a wider table the columns come in blocks, each with the first
            column, and texts of the last one in several lines. None: no limit.
    """
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(sizes) - 1
    if width is None or sum(sizes) + len(_GAP) * last <= width:
        return _lines(rows, sizes, range(1, last + 1))
    blocks: list[list[int]] = [[]]
    for at in range(1, last + 1):
        used = sizes[0] + sum(len(_GAP) + sizes[each] for each in blocks[-1])
        # a long text is broken
        needed = len(_GAP) + min(sizes[at], max(len(rows[0][at]), 24))
        if blocks[-1] and used + needed > width:
            blocks.append([])
        blocks[-1].append(at)
    blocks[0] = blocks[0] or [last]
    found: list[str] = []
    for block in blocks:
        found += [*([""] if found else []), *_lines(rows, sizes, block, width)]
    return found


def _lines(
    rows: Sequence[Sequence[str]],
    sizes: list[int],
    columns: Sequence[int],
    width: int | None = None,
) -> list[str]:
    """The lines of the first and some more columns."""
    last, found = len(sizes) - 1, []
    for row in rows:
        cells = [row[0].ljust(sizes[0])]
        cells += [row[at].rjust(sizes[at]) for at in columns if at != last]
        start = len(_GAP.join(cells)) + len(_GAP)
        texts = [""]
        if last in columns:
            texts = wrapped(row[last], width and max(12, width - start)) or [""]
        found.append(_GAP.join([*cells, texts[0]]).rstrip())
        found += [" " * start + text for text in texts[1:]]
    return found


def wrapped(line: str, width: int | None, hang: int = 0) -> list[str]:
    """A line in several that end at blanks; words stay whole.

    Args:
        hang: columns by which the later lines are further in than the first.
    """
    if width is None or len(line) <= width:
        return [line]
    inner = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.lstrip(),
        width,
        initial_indent=inner,
        subsequent_indent=inner + " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


def command_lines(command: str, width: int | None) -> list[str]:
    """A shell command in lines that can be copied as they are, each flag beside its value."""
    joined = re.sub(r"(--\S+) (?!-)", "\\1\0", command)
    lines = wrapped(joined, None if width is None else width - 4)
    return " \\\n  ".join(lines).replace("\0", " ").split("\n")
