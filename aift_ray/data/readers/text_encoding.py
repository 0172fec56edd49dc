"""Encodings of text files: which one a file is in, and what is said of one that is in another."""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_JAPANESE = re.compile("[\u3001\u3002\u3041-\u30ff\u4e00-\u9fff]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
_SAMPLE_BYTES = 400
_PIECE_BYTES = 1 << 20
_PACKED = re.compile("(?i)[.](gz|zst)$")
# by their names on the command line; JIS X 0213 holds all of EUC-JP, and the signs of NEC's row 13
_CODECS = {"utf-8": "utf-8", "cp932": "cp932", "euc-jp": "euc_jis_2004"}


class WrongFile(Exception):
    """A file that can't be read as a whole; the rest of it is not read.

    Args:
        reason: what was found and what was expected, with the line where one is known.
        remedy: what to do about it; may be empty.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)


class WrongEncoding(WrongFile):
    """A file that is not in the encoding in which it is read.

    Attributes:
        flag: the value of data.encoding that it seems to need, "" where there is none.
    """

    def __init__(self, reason: str, remedy: str, flag: str = "") -> None:
        super().__init__(reason, remedy)
        self.flag = flag


def codec_of(encoding: str) -> str:
    """Python's name of a value of data.encoding."""
    return _CODECS[encoding]


def decoder(encoding: str) -> codecs.IncrementalDecoder:
    """An incremental decoder, which leaves out a byte order mark."""
    name = "utf-8-sig" if encoding == "utf-8" else codec_of(encoding)
    return codecs.getincrementaldecoder(name)()


def detect(path: Path, opened: Callable[[Path], BinaryIO]) -> str:
    """UTF-8, or CP932 where it can't be anything else: what `auto` stands for.

    A file is CP932 when all of it can be read so and holds kana, and neither UTF-8 nor EUC-JP
    can be made of it. Where that is not sure it is UTF-8, whose reader then says what is wrong.
    """
    if _reads(path, opened, "utf-8") is not None:
        return "utf-8"
    kana = _reads(path, opened, "cp932")
    return "cp932" if kana and _reads(path, opened, "euc-jp") is None else "utf-8"


def _reads(path: Path, opened: Callable[[Path], BinaryIO], encoding: str) -> int | None:
    """How many kana all of the file holds in an encoding; None where it can't be read in it."""
    decode, kana = decoder(encoding), 0
    with opened(path) as stream:
        data = b"more"
        while data:
            data = stream.read(_PIECE_BYTES)
            try:
                text = decode.decode(data, final=not data)
            except UnicodeDecodeError:
                return None
            if encoding != "utf-8" and "\0" in text:
                return None
            kana += len(_KANA.findall(text)) if encoding == "cp932" else 0
    return kana


def wrong_bytes(
    path: Path,
    data: bytes,
    start: int,
    line: int,
    offset: int,
    error: UnicodeDecodeError,
    encoding: str,
) -> WrongFile:
    """What is wrong at data[start]; `offset` is that of data[0] in the file."""
    name = encoding.upper()
    found = f"line {line}: byte 0x{data[start]:02x} at offset {offset + start} is not {name}"
    if not offset and data.startswith(b"\x1f\x8b"):
        return WrongFile(f"{found}; the file is packed with gzip", "end its name in .gz")
    if not offset and data.startswith(b"\x28\xb5\x2f\xfd"):
        return WrongFile(f"{found}; the file is packed with zstd", "end its name in .zst")
    cut_off = ("unexpected end of data", "incomplete multibyte sequence")
    if error.reason in cut_off and (encoding == "utf-8" or not data[start + 2 :]):
        return WrongFile(f"{found}; the file ends within a character", "copy or make it again")
    # read as another encoding, the text may be wrong from its start on
    begin = start if encoding == "utf-8" else data.rfind(b"\n", 0, start) + 1
    looks = _guess(data, begin, offset)
    if looks == name:
        reason = f"{found}; the text around it is, so the file is damaged there"
        return WrongFile(reason, "mend that place, or make the file again")
    convert = f"convert it: {_converted(path, looks)}"
    flag = looks.lower() if looks.lower() in _CODECS else ""
    remedy = f"give --data.encoding {flag}, or {convert}" if flag else convert
    return WrongEncoding(f"{found}; it looks like {looks}", remedy, flag)


def _converted(path: Path, encoding: str) -> str:
    """The command that makes a file in UTF-8."""
    source, packed = shlex.quote(str(path)), path.name.lower().endswith((".gz", ".zst"))
    target = shlex.quote(f"utf8_{_PACKED.sub('', path.name)}")
    convert = f"iconv -f {encoding} -t UTF-8"
    unpack = "gzip" if path.name.lower().endswith(".gz") else "zstd"
    command = f"{unpack} -dc {source} | {convert}" if packed else f"{convert} {source}"
    return f"{command} > {target}"


def _guess(data: bytes, start: int, offset: int) -> str:
    if not offset and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    if data.count(0) * 20 > len(data):
        # the zero half of an ASCII letter comes first in big endian, at even offsets
        even, odd = data[offset % 2 :: 2].count(0), data[1 - offset % 2 :: 2].count(0)
        return "UTF-16BE" if even > odd else "UTF-16LE"
    sample = data[start : start + _SAMPLE_BYTES]
    with suppress(UnicodeDecodeError):
        # a character may be cut off at the end
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "UTF-8"
    scores = {name: _score(sample, name) for name in ("UTF-8", "CP932", "EUC-JP")}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0 else "WINDOWS-1252"


def _score(sample: bytes, encoding: str) -> int:
    """How much like Japanese text the sample reads in that encoding."""
    text = sample.decode(encoding, errors="replace")
    return len(_JAPANESE.findall(text)) - 3 * text.count("\ufffd")
