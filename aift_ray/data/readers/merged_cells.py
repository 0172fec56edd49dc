"""Merged cells of an Excel sheet: all but the first of them hold no text of their own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import IO, Any, NamedTuple

from aift_ray.data.readers.openpyxl_compat import sheet_xml

_AREA = re.compile(rb"<(?:\w+:)?mergeCell\s[^>]*?\bref=[\"']([A-Z]+\d+:[A-Z]+\d+)[\"']")
# bytes that are read at once, and those of an element that two readings may share
_PIECE, _ELEMENT = 1 << 20, 1 << 8


class _Area(NamedTuple):
    """An area; rows and columns from 1."""

    name: str
    left: int
    top: int
    right: int
    bottom: int


class MergedCells:
    """Where cells of a sheet are merged.

    Args:
        sheet: of a workbook that openpyxl reads row by row.
    """

    def __init__(self, sheet: Any) -> None:
        from openpyxl.utils import range_boundaries

        with sheet_xml(sheet) as stream:
            names = dict.fromkeys(_areas(stream))
        areas = [_Area(name, *range_boundaries(name)) for name in names]
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
                return f"the cells {area.name} are merged: their text stands in {first} alone"
        return ""


def _areas(stream: IO[bytes]) -> Iterator[str]:
    """The merged areas of a sheet, such as A2:B4; some of them twice."""
    kept = b""
    while piece := stream.read(_PIECE):
        text = kept + piece
        yield from (match[1].decode("ascii") for match in _AREA.finditer(text))
        kept = text[-_ELEMENT:]
