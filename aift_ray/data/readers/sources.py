"""Data files: which ones a pattern names, and the examples and faults that they hold."""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import dropwhile, groupby, takewhile
from pathlib import Path

from aift_ray.data import memory_rows
from aift_ray.data.examples import Example, Fault
from aift_ray.data.readers.arrow_tables import read_arrow, read_parquet
from aift_ray.data.readers.excel import read_xlsx
from aift_ray.data.readers.json_rows import read_json, read_jsonl
from aift_ray.data.readers.reader_options import PLAIN, RawRow, Reading, TextUnit
from aift_ray.data.readers.row_kinds import read_row
from aift_ray.data.readers.tabular import read_csv, read_tsv
from aift_ray.data.readers.text_lines import PACKED, WrongFile, read_lines
from aift_ray.errors import DataError, Problem

Reader = Callable[[Path, Reading], Iterator[RawRow | Fault]]

# text, so that it may be packed
_TEXT: dict[str, Reader] = {".jsonl": read_jsonl, ".json": read_json}
_TEXT |= {".csv": read_csv, ".tsv": read_tsv}
_BINARY: dict[str, Reader] = {".parquet": read_parquet, ".arrow": read_arrow, ".xlsx": read_xlsx}
SUFFIXES = (*_TEXT, ".txt", *_BINARY, *(f"{s}{p}" for s in (*_TEXT, ".txt") for p in PACKED))
_ALLOWED = (
    "allowed are .jsonl, .json, .csv, .tsv, .txt (each also ending in .gz or .zst), .parquet, "
    ".arrow, .xlsx, and a folder of datasets.save_to_disk"
)
# what a program can write instead
_OTHERS = {".xls": "save it as .xlsx", ".xlsm": "save it as .xlsx", ".ods": "save it as .xlsx"}
# beside the rows in a folder of datasets.save_to_disk
_STATE, _SPLITS = "state.json", "dataset_dict.json"
ABOUT = (_STATE, _SPLITS, "dataset_info.json")


def expand_files(patterns: Sequence[str]) -> list[Path]:
    """The data files that `patterns` name: files, folders (those directly inside), globs.

    Files come in the order of the patterns, those of one pattern sorted, each file once.

    Raises:
        DataError: patterns that match nothing, files that are missing or unreadable or have
            an unknown suffix; all of them at once.
    """
    problems: list[Problem] = []
    files: dict[str, Path] = {}
    for pattern in patterns:
        try:
            for path in _matches(pattern):
                problem = _problem(path)
                if problem:
                    problems.append(problem)
                else:
                    files.setdefault(os.path.realpath(path), path)
        except WrongFile as wrong:
            problems.append(Problem(pattern or '""', wrong.reason, wrong.remedy))
    if problems:
        raise DataError(dict.fromkeys(problems))
    return list(files.values())


def read_examples(files: Sequence[Path], reading: Reading = PLAIN) -> Iterator[Example | Fault]:
    """The rows of `files` in their order, each an Example or a Fault; no file is held in memory.

    A Fault with line None is a wrong file: the rest of it is not read, the next files are.
    """
    for path in files:
        for item in read_raw(path, reading):
            if isinstance(item, RawRow):
                found = read_row(item.value, str(path), item.line, reading)
                if isinstance(found, Fault):
                    found = replace(found, reason=item.where + found.reason)
                yield found
            else:
                yield item


def read_raw(path: Path, reading: Reading = PLAIN) -> Iterator[RawRow | Fault]:
    """The rows of a file as it has them, with all their fields where `reading.any_row`.

    A Fault with line None is a wrong file: the rest of it is not read.
    """
    rows = 0
    try:
        for item in _open(path, reading):
            rows += 1
            yield item
        if not rows:
            raise WrongFile("the file holds no row", "write rows into it, or leave the file out")
    except WrongFile as wrong:
        yield Fault(str(path), None, wrong.reason, wrong.remedy)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = f"can't be unpacked as gzip: {error}"
        yield Fault(str(path), None, reason, "pack the file again, or name it without .gz")
    except OSError as error:
        yield Fault(str(path), None, f"can't be read: {error.strerror or error}")


def _open(path: Path, reading: Reading) -> Iterator[RawRow | Fault]:
    suffix = _suffix(path)
    if suffix == ".txt":
        return _read_txt(path, reading)
    reader = (_TEXT | _BINARY).get(suffix)
    if reader is None:
        raise WrongFile(*_unknown(path))
    return reader(path, reading)


def is_text(path: Path) -> bool:
    """Whether a file holds text, packed or not."""
    return _suffix(path) not in ("", *_BINARY)


def _suffix(path: Path) -> str:
    """The suffix in lower case that chooses the reader, "" where none does."""
    name = path.name.lower()
    packed = next((each for each in PACKED if name.endswith(each)), "")
    suffix = Path(name.removesuffix(packed)).suffix
    known = suffix == ".txt" or suffix in _TEXT or (suffix in _BINARY and not packed)
    return suffix if known else ""


def _unknown(path: Path) -> tuple[str, str]:
    """What is wrong with a file of another suffix, and what to do."""
    remedy = _OTHERS.get(path.suffix.lower(), _ALLOWED)
    return f"unknown suffix {path.suffix!r}", remedy


def _read_txt(path: Path, reading: Reading) -> Iterator[RawRow | Fault]:
    for line, text in _documents(path, reading):
        if "\0" in text:
            yield Fault(str(path), line, "the text holds NUL bytes", "remove them")
        else:
            yield RawRow(line, {"text": text})


def _documents(path: Path, reading: Reading) -> Iterator[tuple[int, str]]:
    unit: TextUnit = reading.text_unit
    ended = ((number, _without_end(text)) for number, text in read_lines(path, reading))
    if unit == "line":
        yield from (line for line in ended if not _is_blank(line))
    elif unit == "paragraph":
        for blank, group in groupby(ended, _is_blank):
            if not blank:
                yield _joined(list(group))
    else:
        lines = list(dropwhile(_is_blank, ended))
        while lines and _is_blank(lines[-1]):
            lines.pop()
        if lines:
            yield _joined(lines)


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _is_blank(line: tuple[int, str]) -> bool:
    return not line[1].strip()


def _joined(lines: list[tuple[int, str]]) -> tuple[int, str]:
    return lines[0][0], "\n".join(text for _, text in lines)


def _matches(pattern: str) -> list[Path]:
    """Files that a pattern names, good or not; WrongFile where it names none."""
    if not pattern.strip():
        what = "the name is empty, expected a file, a folder or a glob"
        raise WrongFile(what, "give --train-file rows.jsonl")
    name = os.path.expanduser(pattern)
    if os.path.isdir(name):
        return _folder(Path(name))
    if os.path.lexists(name) or not glob.has_magic(name):
        return [Path(name)]
    found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
    found = [path for path in found if not path.is_dir()]
    if not found:
        raise WrongFile("the pattern matches no file", f"see what is there: ls {_before(name)}")
    return found


def _before(pattern: str) -> str:
    """The folder of a pattern, up to the first part that is one."""
    parts = Path(pattern).parts
    plain = [*takewhile(lambda part: not glob.has_magic(part), parts)]
    return str(Path(*plain))


def _folder(folder: Path) -> list[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        what = f"the folder can't be read: {error.strerror}"
        raise WrongFile(what, f"chmod +rx {folder}") from None
    names = {path.name for path in inside}
    if _STATE in names:
        return _saved(folder)
    if _SPLITS in names:
        splits = [str(path) for path in inside if (path / _STATE).is_file()]
        reason = "the folder holds several splits of datasets.save_to_disk"
        raise WrongFile(reason, f"name one of them: {', '.join(splits)}")
    files = [
        path
        for path in inside
        if _suffix(path) and not path.name.startswith(".") and not path.is_dir()
    ]
    if not files:
        raise WrongFile("the folder holds no data file directly inside", _ALLOWED)
    return files


def _saved(folder: Path) -> list[Path]:
    """The files of a folder that datasets.save_to_disk has made, in their order."""
    try:
        state = json.loads((folder / _STATE).read_text("utf-8"))
        files = [folder / each["filename"] for each in state["_data_files"]]
        indices = state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{_STATE} is not that of datasets.save_to_disk: {type(error).__name__}: {error}"
        raise WrongFile(reason, "save the data set again") from None
    if indices:
        # written by datasets before 2.0 of a set that was filtered or sorted
        remedy = "save it again: dataset.flatten_indices().save_to_disk(...)"
        raise WrongFile("the folder holds a selection by indices, which is not read", remedy)
    if not files:
        raise WrongFile("the data set that was saved there holds no row", "save one with rows")
    return files


def _problem(path: Path) -> Problem | None:
    where = str(path)
    if memory_rows.content(path) is not None:
        return None
    if memory_rows.is_memory(path):
        what = "rows given in Python are not kept"
        return Problem(where, what, "give them again in Python, or name files with --train-file")
    if not os.path.exists(path):
        return Problem(where, "there is no such file", _near_name(path))
    if not os.path.isfile(path):
        what = "not a regular file, expected a file, a folder or a glob"
        return Problem(where, what, f"copy what it holds: cat {where} > rows.jsonl")
    if not _suffix(path):
        return Problem(where, *_unknown(path))
    if not os.access(path, os.R_OK):
        return Problem(where, "the file may not be read", f"chmod +r {where}")
    return None


def _near_name(path: Path) -> str:
    try:
        near = get_close_matches(path.name, os.listdir(path.parent), n=1)
    except (OSError, ValueError):
        return ""
    return f"did you mean {path.with_name(near[0])}?" if near else ""
