"""What openpyxl does not tell of a sheet: merged cells, hidden rows and hidden columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import IO, Any, NamedTuple

from aift_ray.data.readers.openpyxl_compat import sheet_xml

_TAG = re.compile(rb"<(?:\w+:)?(row|col|mergeCell)\s([^>]*)")
_ATTRIBUTE = re.compile(rb"\b(r|ref|min|max|hidden)=[\"']([^\"']*)[\"']")
# bytes that are read at once
_PIECE = 1 << 20


class _Area(NamedTuple):
    """An area; rows and columns from 1."""

    name: str
    left: int
    top: int
    right: int
    bottom: int


class SheetLayout:
    """Which cells of a sheet are merged, and which of its rows and columns are hidden.

    Args:
        sheet: of a workbook that openpyxl reads row by row.

    Attributes:
        hidden_rows: numbers from 1, those that a filter leaves out among them.
        hidden_columns: numbers from 0.
    """

    def __init__(self, sheet: Any) -> None:
        from openpyxl.utils import range_boundaries

        self.hidden_rows, self.hidden_columns = set[int](), set[int]()
        areas, row = [], 0
        with sheet_xml(sheet) as stream:
            for tag, found in _tags(stream):
                hidden = found.get("hidden") in ("1", "true")
                if tag == "row":
                    row = int(found.get("r", row + 1))
                    if hidden:
                        self.hidden_rows.add(row)
                elif tag == "col" and hidden:
                    self.hidden_columns |= {*range(int(found["min"]) - 1, int(found["max"]))}
                elif tag == "mergeCell":
                    areas.append(_Area(found["ref"], *range_boundaries(found["ref"])))
        self._areas, self._open = sorted(areas, key=lambda area: area.top), list[_Area]()

    def covered(self, row: int, columns: Collection[int]) -> str:
        """What to say of the first cell of a row that lies in an area it does not begin; or "".

        Args:
            row: from 1, never before that of an earlier call.
            columns: those that are looked at, from 0.
        """
        while self._areas and self._areas[0].top <= row:
            self._open.append(self._areas.pop(0))
        self._open = [area for area in self._open if area.bottom >= row]
        for area in self._open:
            inside = (at for at in columns if area.left - 1 <= at < area.right)
            if any((at, row) != (area.left - 1, area.top) for at in inside):
                first = area.name.partition(":")[0]
                return f"the cells {area.name} are merged: their text is in {first} only"
        return ""


def _tags(stream: IO[bytes]) -> Iterator[tuple[str, dict[str, str]]]:
    """The elements of a sheet that say something of its layout, with their attributes."""
    kept = b""
    while piece := stream.read(_PIECE):
        text = kept + piece
        # an element is looked at when all of it is there
        whole = text.rfind(b"<")
        for match in _TAG.finditer(text, 0, max(whole, 0)):
            found = {name.decode(): value.decode() for name, value in _ATTRIBUTE.findall(match[2])}
            yield match[1].decode(), found
        kept = text[max(whole, 0) :]
