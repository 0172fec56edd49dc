"""Rows of .csv and .tsv files, whose header names the keys of every row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from aift_ray.data.examples import Fault
from aift_ray.data.readers import column_names
from aift_ray.data.readers.reader_options import PLAIN, RawRow, Reading
from aift_ray.data.readers.row_kinds import find_columns_form, is_form
from aift_ray.data.readers.row_schema import ROW_KEYS, RowFormat, WrongRow, shown
from aift_ray.data.readers.text_lines import WrongEncoding, WrongFile, open_bytes, read_lines

_CELL_CHARACTERS = 1 << 26
_SEPARATORS = {"\t": "tabs", ";": "semicolons", "，": "full-width commas", "、": "Japanese commas"}


def read_csv(path: Path, reading: Reading = PLAIN) -> Iterator[RawRow | Fault]:
    """Rows of a CSV file with a header; a row is named by the line in which it starts.

    Raises:
        WrongFile: another encoding, a header that names no kind of row, or a quote that is never
            closed.
        OSError, EOFError, zlib.error: the file can't be read or unpacked.
    """
    return _read_separated(path, reading, ",")


def read_tsv(path: Path, reading: Reading = PLAIN) -> Iterator[RawRow | Fault]:
    """Rows of a file as `read_csv` takes, with tabs for commas."""
    return _read_separated(path, reading, "\t")


def _read_separated(path: Path, reading: Reading, sign: str) -> Iterator[RawRow | Fault]:
    rows, file = _csv_rows(path, reading, sign), str(path)
    try:
        first = next(rows, None)
        if first is None:
            return
        header_line, header = first
        if isinstance(header, csv.Error):
            raise _no_header(header_line, header, path)
        names, taken = table_form(header, path, reading, f"line {header_line}: ")
        places = {names.index(key): key for key in taken}
        for line, cells in rows:
            if isinstance(cells, csv.Error):
                yield Fault(file, line, f"not CSV: {cells}", 'write a quote within quotes as ""')
            elif len(cells) != len(names):
                number = f"{len(cells)} cell{'s' if len(cells) != 1 else ''}"
                what = "tabs" if sign == "\t" else "commas"
                remedy = f"put cells that hold {what} or line ends in double quotes"
                reason = f"{number}, expected {len(names)} as in the header"
                yield Fault(file, line, reason, remedy)
            elif any("\0" in cell for cell in cells):
                yield Fault(file, line, "the row holds NUL bytes", "remove them")
            else:
                yield RawRow(line, {key: cells[place] for place, key in places.items()})
    except WrongEncoding as wrong:
        raise _with_columns(wrong, path, sign) from None


def _no_header(line: int, error: csv.Error, path: Path) -> WrongFile:
    if "new-line character" in str(error):
        reason = f"line {line}: its lines end with CR alone, as on old Macintosh computers"
        return WrongFile(reason, f"convert it: tr '\\r' '\\n' < {path} > lf_{path.name}")
    return WrongFile(f"line {line}: not a CSV header: {error}", 'write a quote within quotes as ""')


def _with_columns(wrong: WrongEncoding, path: Path, sign: str) -> WrongFile:
    """The same, with how the columns are read once the encoding is given."""
    with open_bytes(path) as stream:
        head = stream.readline(1 << 16).decode(wrong.flag or "utf-8", errors="ignore")
    names = [name.strip().strip('"') for name in head.split(sign)]
    flag = "" if not wrong.flag or is_form(names) else column_names.suggestion(names)
    first, _, rest = wrong.remedy.partition(", or ")
    remedy = f"{first} {flag}, or {rest}" if flag else wrong.remedy
    return WrongFile(wrong.reason, remedy)


def _csv_rows(
    path: Path, reading: Reading, sign: str
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Rows that are not blank, or what is wrong with them, with the line in which they start."""
    # the default limit is below the length of a long document
    csv.field_size_limit(max(csv.field_size_limit(), _CELL_CHARACTERS))
    lines = (text for _, text in read_lines(path, reading))
    reader = csv.reader(lines, strict=True, delimiter=sign)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "field limit" in str(error):
                reason = f"line {line}: a quoted cell of the row that starts here is never closed"
                raise WrongFile(reason, 'close it, and write a quote within quotes as ""') from None
            yield line, error
            continue
        blank = not cells or (len(cells) == 1 and cells[0] and not cells[0].strip())
        if not blank:
            yield line, cells


def table_form(
    header: Sequence[str], path: Path, reading: Reading, where: str
) -> tuple[list[str], list[str]]:
    """The columns of a table without nested values by the keys of a row, and those to be read.

    Args:
        where: what is put before the reason of an error.

    Raises:
        WrongFile: they are no kind of row.
    """
    names = [name.strip() for name in header]
    if reading.any_row:
        refuse_double(names)
        return names, [name for name in names if name]
    try:
        names, form = find_columns(names, path, reading)
    except WrongFile as wrong:
        remedy = _other_format(names, path) or wrong.remedy
        raise WrongFile(f"{where}{wrong.reason}", remedy) from None
    if form.kind == "messages":
        reason = f"{where}{form.required[0]} has no {_suffix(path)[1:].upper()} form"
        raise WrongFile(reason, "use .jsonl, .json or .parquet")
    return names, [key for key in (*form.keys, *ROW_KEYS) if key in names]


def _suffix(path: Path) -> str:
    return next((s.lower() for s in path.suffixes[::-1] if s.lower() not in (".gz", ".zst")), "")


def _other_format(names: Sequence[str], path: Path) -> str:
    if names[0].startswith(("{", "[")):
        return "the file looks like JSON: name it .jsonl or .json"
    for sign, called in _SEPARATORS.items():
        if len(names) == 1 and sign in names[0]:
            mend = "name the file .tsv" if sign == "\t" else "use commas"
            mend = "name the file .csv" if sign == "," else mend
            return f"the columns seem to be separated by {called}: {mend}"
    return ""


def find_columns(
    header: Sequence[str], path: Path, reading: Reading
) -> tuple[list[str], RowFormat]:
    """The columns by the keys of a row, and the kind of row that they are.

    Raises:
        WrongFile: a column that stands there twice, or columns that are no kind of row.
    """
    refuse_double(header)
    names = column_names.renamed(header, reading, is_form(header, reading))
    try:
        form = find_columns_form(names, reading)
    except WrongRow as wrong:
        flag = column_names.suggestion([name for name in header if name])
        remedy = wrong.remedy
        if flag and flag not in remedy:
            remedy += f"; or name them: {flag}"
        raise WrongFile(wrong.reason, remedy) from None
    pairs = zip(names, header, strict=True)
    found = {key: column for key, column in pairs if key and key != column}
    if found and not reading.columns:
        reading.remark(f"{path}: read as {column_names.flag(found)}")
    _tell_unread(names, form, reading)
    return names, form


def _tell_unread(names: Sequence[str], form: RowFormat, reading: Reading) -> None:
    last = max(place for place, name in enumerate(names) if name)
    nameless = names[:last].count("")
    told = [", ".join(name for name in names if name and name not in (*form.keys, *ROW_KEYS))]
    told += [f"{nameless} without a name"] if nameless else []
    if any(told):
        reading.remark(f"columns not read: {' and '.join(filter(None, told))}")


def refuse_double(names: Sequence[str]) -> None:
    """Raise WrongFile for a column that stands there twice."""
    double = sorted({name for name in names if name and names.count(name) > 1})
    if double:
        listed = ", ".join(shown(name) for name in double)
        raise WrongFile(f"duplicate column {listed}", "keep one of each")
