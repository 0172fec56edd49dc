"""Rows of .xlsx files: a header in the first row of a sheet, a row each below."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aift_ray.data.examples import Fault
from aift_ray.data.readers.reader_options import PLAIN, RawRow, Reading
from aift_ray.data.readers.sheet_layout import SheetLayout
from aift_ray.data.readers.tabular import table_form
from aift_ray.data.readers.text_lines import WrongFile

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.cell import Cell
    from openpyxl.worksheet.worksheet import Worksheet

_UNMERGE = "unmerge them (ホーム > セル結合の解除), write the text into each row, and save"
# a workbook with a password, and those of Excel before 2007
_OLD = b"\xd0\xcf\x11\xe0"
# how a workbook writes a carriage return and other control characters
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")
# formats in which a number shows as it is stored
_PLAIN_FORMATS = ("General", "0", "@", "標準")


class _WrongCell(Exception):
    """A cell whose text is not known."""


def read_xlsx(path: Path, reading: Reading = PLAIN) -> Iterator[RawRow | Fault]:
    """Rows of a sheet, numbered as Excel does; blank rows are skipped.

    Numbers are read as a cell in the format "General" shows them. A formula is read as the value
    that the program which saved the file has computed.

    Raises:
        WrongFile: no workbook, several sheets that hold rows, columns that are no kind of row, or
            openpyxl is not installed.
        OSError: the file can't be opened.
    """
    with closing(_workbook(path, values=True)) as book:
        sheet = _sheet(book, path, reading)
        with closing(_workbook(path, values=False)) as formulas:
            yield from _rows(path, reading, sheet, formulas[sheet.title])


def _workbook(path: Path, values: bool) -> Any:
    try:
        from openpyxl import load_workbook
    except ImportError:
        remedy = "pip install 'aift-ray[excel]', or save the sheet as .csv (UTF-8)"
        raise WrongFile("reading .xlsx needs the package openpyxl", remedy) from None
    with path.open("rb") as stream:
        head = stream.read(4)
    if not head:
        raise WrongFile("the file is empty (0 bytes)", "copy or save it again")
    if head == _OLD:
        reason = "the workbook has a password, or is one of Excel before 2007"
        raise WrongFile(reason, "save it as .xlsx without a password")
    try:
        book = load_workbook(path, read_only=True, data_only=values, keep_links=False)
    except (zipfile.BadZipFile, KeyError, ValueError, SyntaxError, EOFError) as error:
        reason = f"not an Excel workbook, or a damaged one: {error}"
        raise WrongFile(reason, "save it again as .xlsx") from None
    for sheet in book.worksheets:
        if sheet.max_row == sheet.max_column == 1:
            # some programs write this size whatever there is
            sheet.reset_dimensions()
    return book


def _sheet(book: Workbook, path: Path, reading: Reading) -> Worksheet:
    """The sheet that is meant."""
    names = [sheet.title for sheet in book.worksheets]
    if reading.sheet is not None:
        if reading.sheet in names:
            return book[reading.sheet]
        reason = f"there is no sheet {reading.sheet}; the sheets are {', '.join(names)}"
        raise WrongFile(reason, f"give --data.sheet {names[0] if names else 'NAME'}")
    filled = [sheet for sheet in book.worksheets if _filled(sheet)]
    if len(filled) > 1:
        filled.sort(key=lambda sheet: sheet.sheet_state != "visible")
        names = [
            f"{sheet.title}{'' if sheet.sheet_state == 'visible' else ' (hidden)'}"
            for sheet in filled
        ]
        reason = f"the sheets {', '.join(names)} hold rows, expected one"
        raise WrongFile(reason, f"name the one that is meant: --data.sheet {filled[0].title}")
    if filled and filled[0].sheet_state != "visible":
        reading.remark(f"{path}: the sheet {filled[0].title} is hidden, and is read")
    if not filled:
        raise WrongFile(
            "the file holds no row", "write a header in the first row, and a row below it"
        )
    return filled[0]


def _filled(sheet: Worksheet) -> bool:
    return any(cell.value not in (None, "") for row in sheet.iter_rows() for cell in row)


def _rows(
    path: Path, reading: Reading, sheet: Worksheet, formulas: Worksheet
) -> Iterator[RawRow | Fault]:
    names: list[str] = []
    keys: dict[int, str] = {}
    layout, hidden, seen = SheetLayout(sheet), 0, 0
    pairs = zip(sheet.iter_rows(), formulas.iter_rows(), strict=True)
    for number, (cells, written) in enumerate(pairs, sheet.min_row or 1):
        if all(_is_blank(cell) for cell in written):
            continue
        if not names:
            where = f"sheet {sheet.title}, row {number}: "
            names, taken = _header([_name(cell) for cell in cells], path, reading, where)
            keys = {names.index(key): key for key in taken}
            _tell_columns(path, reading, layout, keys)
            continue
        if number in layout.hidden_rows:
            hidden += 1
            if reading.hidden_rows == "skip":
                continue
        seen += 1
        apart = layout.covered(number, keys)
        if apart:
            yield Fault(str(path), number, apart, _UNMERGE)
            continue
        try:
            row = {}
            for place, key in keys.items():
                cell = cells[place] if place < len(cells) else None
                row[key] = "" if cell is None else _text(cell, written[place])
        except _WrongCell as wrong:
            yield Fault(str(path), number, str(wrong), "format the cell as text, and type it again")
            continue
        yield RawRow(number, row)
    _tell_rows(path, reading, hidden, seen)


def _tell_columns(
    path: Path, reading: Reading, layout: SheetLayout, keys: Mapping[int, str]
) -> None:
    for place, key in keys.items():
        if place in layout.hidden_columns:
            reading.remark(f"{path}: the column of {key} is hidden, and is read")


def _tell_rows(path: Path, reading: Reading, hidden: int, seen: int) -> None:
    """Say what became of hidden rows, as those that a filter leaves out.

    Raises:
        WrongFile: no row is left.
    """
    if not hidden:
        return
    rows = f"{hidden:,} hidden row{'s' if hidden > 1 else ''}"
    one = hidden == 1
    if reading.hidden_rows == "train":
        flag = "--data.hidden_rows skip leaves them out"
        reading.remark(f"{path}: {rows} {'is' if one else 'are'} read as the others; {flag}")
        return
    reading.remark(f"{path}: {rows} {'is' if one else 'are'} left out")
    if not seen:
        what = f"all of its {rows} are left out by --data.hidden_rows skip"
        raise WrongFile(what, "show them in Excel, or give --data.hidden_rows train")


def _header(
    texts: list[str], path: Path, reading: Reading, where: str
) -> tuple[list[str], list[str]]:
    try:
        return table_form(texts, path, reading, where)
    except WrongFile as wrong:
        if len(texts) > 1 and sum(map(bool, texts)) == 1:
            # a title over the table
            remedy = "the first row has to name the columns: remove the rows above them"
            raise WrongFile(wrong.reason, remedy) from None
        raise


def _name(cell: Cell) -> str:
    """The name of a column; a date is one as well as any other."""
    try:
        return _text(cell, cell)
    except _WrongCell:
        return str(cell.value or "")


def _is_blank(cell: Cell) -> bool:
    return cell.value is None or (isinstance(cell.value, str) and not cell.value.strip())


def _text(cell: Cell, written: Cell) -> str:
    """What a cell shows; `written` is the same cell with its formula.

    Raises:
        _WrongCell: that is not known.
    """
    value = cell.value
    if value is None:
        if written.value is None:
            return ""
        raise _WrongCell(f"{cell.coordinate} is a formula without a stored value")
    if isinstance(value, bool):
        return str(value).upper()
    if cell.data_type == "e":
        raise _WrongCell(f"{cell.coordinate} is the error {value}")
    if isinstance(value, str):
        return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value)
    if isinstance(value, (int, float)) and cell.number_format in _PLAIN_FORMATS:
        return str(int(value)) if float(value).is_integer() else repr(value)
    kind = "a number" if isinstance(value, (int, float)) else "a date or time"
    raise _WrongCell(f"{cell.coordinate} is {kind} in the format {cell.number_format}")
