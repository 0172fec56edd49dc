"""Rows of .jsonl and .json files, read without holding the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from aift_ray.data.examples import Fault
from aift_ray.data.readers.column_names import corrected, missing, renamed_row
from aift_ray.data.readers.reader_options import PLAIN, RawRow, Reading
from aift_ray.data.readers.row_kinds import is_form
from aift_ray.data.readers.row_schema import COMPARING_KEYS, FORM_OF_KEY, WrongRow, shown
from aift_ray.data.readers.text_lines import WrongFile, open_bytes, read_lines, read_pieces
from aift_ray.data.readers.wrong_row import LEAVE_OUT, listed

_PIECE_BYTES = 1 << 18
_HEAD_BYTES = 1 << 16
# no token of JSON but a string is longer, escapes in strings included
_LONGEST_TOKEN = 16
_BLANKS = re.compile(r"\s*")
_LINE_END = " \t\r\n"
_MEND = "mend it there, or write one row a line in a .jsonl file, where other rows stay readable"


# by which a row is told from an object that holds rows
_KEYS = (*FORM_OF_KEY, *COMPARING_KEYS)
# what begins a file, and no line of it
_MARK = "\ufeff"
_PLAIN = {
    "Invalid control character at": "a string is not closed, or holds a raw tab or line end",
    "Unterminated string starting at": "a string is not closed",
    "Expecting property name enclosed in double quotes": (
        "expected a key in double quotes (no single quotes, no comma before a closing brace)"
    ),
}


class _Decoder:
    """Strict JSON: notes NaN, Infinity and repeated keys, which Python would take."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.constants, self.repeated = list[str](), list[str]()
        self._decoder = json.JSONDecoder(
            parse_constant=self.constants.append, object_pairs_hook=self._object
        )

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self.repeated.append(next(key for key in keys if keys.count(key) > 1))
        return found

    def decode(self, text: str, start: int) -> tuple[object, int]:
        """The value at `start` and where it ends.

        Raises:
            json.JSONDecodeError: no value there, or not all of it.
            WrongRow: a value beyond Python's limits.
        """
        self.constants.clear()
        self.repeated.clear()
        try:
            return self._decoder.raw_decode(text, start)
        except RecursionError:
            raise WrongRow("lists or objects are nested too deeply", LEAVE_OUT) from None
        except json.JSONDecodeError:
            raise
        except ValueError:
            raise WrongRow("a number has too many digits", "write it in quotes") from None

    def row(self, value: object, file: str, line: int, where: str = "") -> RawRow | Fault:
        """What the value decoded last is as a row."""
        if self.constants:
            reason = f"{where}the row holds {self.constants[0]}, which is not JSON"
            return Fault(file, line, reason, "write null or leave the key out")
        if self.repeated:
            reason = f"{where}the key {shown(self.repeated[0])} is repeated in one object"
            return Fault(file, line, reason, "keep one of them")
        named = renamed_row(value, self._reading)
        if isinstance(value, dict) and isinstance(named, dict):
            absent = missing(self._reading, value)
            if absent and not (self._reading.any_row or is_form(named, self._reading)):
                reason = f"{where}there is no key {' and '.join(absent)}; found {listed(value)}"
                return Fault(file, line, reason, corrected(self._reading.columns, value))
        return RawRow(line, named, where)


def read_jsonl(path: Path, reading: Reading = PLAIN) -> Iterator[RawRow | Fault]:
    """Rows of JSON Lines; blank lines are skipped.

    Raises:
        WrongFile: not UTF-8.
        OSError, EOFError, zlib.error: the file can't be read or unpacked.
    """
    decoder, file = _Decoder(reading), str(path)
    for number, text in read_lines(path, reading):
        if not text.strip():
            continue
        try:
            yield decoder.row(_only_value(decoder, text), file, number)
        except WrongRow as wrong:
            yield Fault(file, number, wrong.reason, wrong.remedy)


def _only_value(decoder: _Decoder, text: str) -> object:
    if "\0" in text:
        reason = "the line holds NUL bytes, as after a crash or an unfinished copy"
        raise WrongRow(reason, "remove the line, or make the file again")
    if text.startswith(_MARK):
        reason = "a byte order mark within the file, as after files were joined"
        raise WrongRow(reason, "remove it: sed -i 's/^\\xef\\xbb\\xbf//' FILE")
    try:
        value, end = decoder.decode(text, len(text) - len(text.lstrip(_LINE_END)))
    except json.JSONDecodeError as error:
        listed = text.strip() in ("[", "]") or text.rstrip().endswith("},")
        remedy = "a list of rows belongs in a file named .json" if listed else LEAVE_OUT
        reason = f"not JSON: {_plain(error)} (column {error.pos + 1})"
        raise WrongRow(reason, remedy) from None
    rest = text[end:].lstrip(_LINE_END)
    if rest:
        column = len(text) - len(rest) + 1
        reason = f"not JSON Lines: more text after the row (column {column})"
        raise WrongRow(reason, "write one object a line, without commas between")
    return value


def _plain(error: json.JSONDecodeError) -> str:
    return _PLAIN.get(error.msg, error.msg)


def read_json(path: Path, reading: Reading = PLAIN) -> Iterator[RawRow | Fault]:
    """Rows of a JSON list, or of JSON Lines under the name .json.

    Raises:
        WrongFile: not UTF-8, neither of the two forms, or a list that breaks off.
        OSError, EOFError, zlib.error: the file can't be read or unpacked.
    """
    with open_bytes(path) as stream:
        head = stream.read(_HEAD_BYTES).decode("utf-8-sig", errors="ignore").lstrip()
    if head.startswith("["):
        return _read_list(path, reading)
    if head.startswith("{"):
        _check_object(head, reading)
    return read_jsonl(path, reading)


def _check_object(head: str, reading: Reading) -> None:
    try:
        value, end = json.JSONDecoder().raw_decode(head)
        is_row = any(key in _KEYS for key in value)
        key = next((key for key, held in value.items() if isinstance(held, list)), None)
        several_lines = "\n" in head[:end]
    except (ValueError, RecursionError):
        keys = _keys_to_first_list(head)
        is_row, several_lines = any(key in _KEYS for key in keys), False
        key = keys[-1] if keys else None
    if key is not None and not is_row and not reading.any_row:
        name = shown(key)
        raise WrongFile(
            f"the file is an object that holds a list under {name}, expected the list itself",
            f"take the list out: jq '.[{name}]' IN.json > OUT.json",
        )
    if several_lines:
        reason = "the file starts with one object over several lines"
        raise WrongFile(f"{reason}, expected a list of rows, or one row a line", "put it in [ ]")


def _keys_to_first_list(head: str) -> list[str]:
    """Keys of an object that goes on behind `head`, up to the first that holds a list."""
    decoder, keys, position = json.JSONDecoder(), list[str](), 1
    try:
        while True:
            key, position = decoder.raw_decode(head, _behind_blanks(head, position))
            keys.append(str(key))
            # behind the colon
            position = _behind_blanks(head, _behind_blanks(head, position) + 1)
            if head[position] == "[":
                return keys
            _, position = decoder.raw_decode(head, position)
            # behind the comma
            position = _behind_blanks(head, position) + 1
    except (ValueError, IndexError, RecursionError):
        return []


def _behind_blanks(text: str, position: int) -> int:
    found = _BLANKS.match(text, position)
    return found.end() if found else position


def _read_list(path: Path, reading: Reading) -> Iterator[RawRow | Fault]:
    decoder, file, number = _Decoder(reading), str(path), 0
    text = _Window(read_pieces(path, _PIECE_BYTES, reading))
    text.next_character()
    text.advance(text.position + 1)
    more = text.next_character() != "]"
    while more:
        number += 1
        text.next_character()
        line = text.line
        # a list on one line has no other way to name a row
        yield decoder.row(text.value(decoder, number), file, line, f"row {number}: ")
        sign = text.next_character()
        if sign not in (",", "]"):
            found = shown(sign) if sign else "the end of the file"
            reason = f"line {text.line}: found {found} after row {number} of the list"
            raise WrongFile(f"{reason}, expected a comma or ]", _MEND)
        more = sign == ","
        text.advance(text.position + 1)
    if not number:
        text.advance(text.position + 1)
    if text.next_character():
        reason = f"line {text.line}: more text after the end of the list"
        raise WrongFile(reason, "one file holds one list")


class _Window:
    """The part of a text that is being parsed.

    ijson, which reads lists twice as fast, tells neither the line of a row nor a repeated key.

    Attributes:
        text: the part that is held.
        position: where in it to go on.
        line: physical line of that position, from 1.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self.text, self.position, self.line = "", 0, 1

    def next_character(self) -> str:
        """Go behind blanks and give the character there, "" at the end of the file."""
        while True:
            self.advance(_behind_blanks(self.text, self.position))
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._grow():
                return ""

    def advance(self, position: int) -> None:
        """Go on to `position`."""
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def value(self, decoder: _Decoder, number: int) -> object:
        """The value at the position, row `number` of the list; goes behind it.

        Raises:
            WrongFile: there is none, or the file ends within it.
        """
        while True:
            try:
                value, end = decoder.decode(self.text, self.position)
            except json.JSONDecodeError as error:
                ends_here = self._ends_at(error)
                if ends_here and self._grow():
                    continue
                line = self.line + self.text.count("\n", self.position, error.pos)
                what = "the list is cut off here" if ends_here else "not JSON"
                reason = f"line {line}: row {number} of the list: {what}: {_plain(error)}"
                raise WrongFile(reason, _MEND) from None
            except WrongRow as wrong:
                reason = f"line {self.line}: row {number} of the list: {wrong.reason}"
                raise WrongFile(reason, _MEND) from None
            # a number that touches the end may go on behind it
            if end == len(self.text) and self._grow():
                continue
            self.advance(end)
            return value

    def _ends_at(self, error: json.JSONDecodeError) -> bool:
        if error.msg.startswith("Unterminated string"):
            return True
        return len(self.text[error.pos :].rstrip()) < _LONGEST_TOKEN

    def _grow(self) -> bool:
        # by its own length, so that a long row is parsed a few times only
        held = [self.text[self.position :]]
        wanted = len(held[0])
        grown = 0
        for piece in self._pieces:
            held.append(piece)
            grown += len(piece)
            if grown and grown >= wanted:
                break
        self.text, self.position = "".join(held), 0
        return grown > 0
