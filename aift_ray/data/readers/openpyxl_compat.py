"""Private interfaces of openpyxl, read from openpyxl 3.1.5."""

from __future__ import annotations

from contextlib import closing
from typing import IO, Any


def sheet_xml(sheet: Any) -> closing[IO[bytes]]:
    """The XML of a sheet of a workbook that is read row by row, as a stream to be closed.

    Missing: such a sheet does not tell which of its cells are merged.
    """
    return closing(sheet._get_source())
