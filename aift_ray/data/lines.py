"""The bytes of a data file as UTF-8 text, in lines or in pieces; other encodings are named."""

from __future__ import annotations

import codecs
import gzip
import re
import shlex
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from aift_ray.data import memory

_JAPANESE = re.compile("[\u3001\u3002\u3041-\u30ff\u4e00-\u9fff]")
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
    held = memory.content(path)
    if held is not None:
        return BytesIO(held)
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
                raise _not_utf8(path, raw, start, number, offset, error) from None
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
                raise _not_utf8(path, whole, start, number, offset - len(kept), error) from None
            line, offset = line + text.count("\n"), offset + len(data)
            yield text


def _not_utf8(
    path: Path, data: bytes, start: int, line: int, offset: int, error: UnicodeDecodeError
) -> WrongFile:
    """What is wrong at data[start]; `offset` is that of data[0] in the file."""
    found = f"line {line}: byte 0x{data[start]:02x} at offset {offset + start} is not UTF-8"
    if not offset and data.startswith(b"\x1f\x8b"):
        return WrongFile(f"{found}; the file is packed with gzip", "end its name in .gz")
    if error.reason == "unexpected end of data":
        return WrongFile(f"{found}; the file ends within a character", "copy or make it again")
    encoding = _guess(data, start, offset)
    if encoding == "UTF-8":
        reason = f"{found}; the text around it is, so the file is damaged there"
        return WrongFile(reason, "mend that place, or make the file again")
    source = shlex.quote(str(path))
    target = shlex.quote(f"utf8_{re.sub('(?i)[.]gz$', '', path.name)}")
    convert = f"iconv -f {encoding} -t UTF-8"
    command = f"gzip -dc {source} | {convert}" if is_packed(path) else f"{convert} {source}"
    return WrongFile(f"{found}; it looks like {encoding}", f"convert it: {command} > {target}")


def _guess(data: bytes, start: int, offset: int) -> str:
    if not offset and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    if data.count(0) * 20 > len(data):
        # the zero half of an ASCII letter comes first in big endian, at even offsets
        even, odd = data[offset % 2 :: 2].count(0), data[1 - offset % 2 :: 2].count(0)
        return "UTF-16BE" if even > odd else "UTF-16LE"
    sample = data[start : start + _SAMPLE_BYTES]
    scores = {name: _score(sample, name) for name in ("UTF-8", "CP932", "EUC-JP")}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0 else "WINDOWS-1252"


def _score(sample: bytes, encoding: str) -> int:
    """How much like Japanese text the sample reads in that encoding."""
    text = sample.decode(encoding, errors="replace")
    return len(_JAPANESE.findall(text)) - 3 * text.count("\ufffd")
