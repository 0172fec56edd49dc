"""The bytes of a data file as UTF-8 text, in lines or in pieces; other encodings are named."""

from __future__ import annotations

import codecs
import gzip
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

_JAPANESE = re.compile("[\u3001\u3002\u3041-\u30ff\u4e00-\u9fff]")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_SAMPLE_BYTES = 400


class WrongFile(Exception):
    """A file that can't be read as a whole; the rest of it is not read.

    Args:
        reason: what was found and what was expected, with the line where one is known.
        remedy: what to do about it; may be empty.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz.

    Raises:
        OSError: it can't be opened.
    """
    return cast(BinaryIO, gzip.open(path)) if is_packed(path) else path.open("rb")


def is_packed(path: Path) -> bool:
    """Whether the name says gzip."""
    return path.name.lower().endswith(".gz")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Lines with their number from 1 and their line end; only \n ends a line.

    Raises:
        WrongFile: a line is not UTF-8.
        OSError, EOFError, zlib.error: the file can't be read or unpacked.
    """
    offset = 0
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            data = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                yield number, data.decode("utf-8")
            except UnicodeDecodeError as error:
                start = error.start + len(raw) - len(data)
                raise _not_utf8(path, raw, start, number, offset) from None
            offset += len(raw)


def read_pieces(path: Path, size: int) -> Iterator[str]:
    """The text in pieces of about `size` bytes, for files whose lines have no bound.

    Raises:
        WrongFile: a piece is not UTF-8.
        OSError, EOFError, zlib.error: the file can't be read or unpacked.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line, offset = 1, 0
    with open_bytes(path) as stream:
        data = b"more"
        while data:
            data = stream.read(size)
            kept = decoder.getstate()[0]
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                whole = kept + data
                # utf-8-sig counts from behind the byte order mark
                start = error.start + len(whole) - len(error.object)
                number = line + whole[:start].count(b"\n")
                raise _not_utf8(path, whole, start, number, offset - len(kept)) from None
            line, offset = line + text.count("\n"), offset + len(data)
            yield text


def _not_utf8(path: Path, data: bytes, start: int, line: int, offset: int) -> WrongFile:
    found = f"line {line}: byte 0x{data[start]:02x} at offset {offset + start} is not UTF-8"
    if not offset and data.startswith(b"\x1f\x8b"):
        return WrongFile(f"{found}; the file is packed with gzip", "end its name in .gz")
    encoding = _guess(data, start)
    if encoding == "UTF-8":
        return WrongFile(
            f"{found}; the text around it is, so the file is damaged or cut off there",
            "mend that place, or make the file again",
        )
    source = shlex.quote(str(path))
    target = shlex.quote(f"utf8_{re.sub('(?i)[.]gz$', '', path.name)}")
    convert = f"iconv -f {encoding} -t UTF-8"
    command = f"gzip -dc {source} | {convert}" if is_packed(path) else f"{convert} {source}"
    return WrongFile(f"{found}; it looks like {encoding}", f"convert it: {command} > {target}")


def _guess(data: bytes, start: int) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    if data.count(0) * 5 > len(data):
        return "UTF-16BE" if data[0] == 0 else "UTF-16LE"
    sample = data[start : start + _SAMPLE_BYTES]
    scores = {name: _score(sample, name) for name in ("UTF-8", "CP932", "EUC-JP")}
    best = max(scores, key=scores.__getitem__)
    # a sequence that the end of the file cuts is UTF-8 up to there
    cut = start + len(sample) == len(data) and len(sample) < 4 and sample[0] >= 0xE0
    if scores[best] <= 0:
        return "UTF-8" if cut else "WINDOWS-1252"
    return best


def _score(sample: bytes, encoding: str) -> int:
    text = sample.decode(encoding, errors="replace")
    return len(_JAPANESE.findall(text)) - 3 * text.count("\ufffd")
