"""The text of a data file, in lines or in pieces, unpacked and decoded."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from aift_ray.data import memory_rows
from aift_ray.data.readers.reader_options import PLAIN, Reading
from aift_ray.data.readers.text_encoding import (
    WrongEncoding,
    WrongFile,
    codec_of,
    decoder,
    detect,
    wrong_bytes,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PACKED", "WrongEncoding", "WrongFile", "open_bytes", "read_lines", "read_pieces"]

# what the last suffix of a packed file may be
PACKED = (".gz", ".zst")


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz or .zst.

    Raises:
        OSError: it can't be opened.
    """
    held = memory_rows.content(path)
    if held is not None:
        return io.BytesIO(held)
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path))
    return _open_zstd(path) if name.endswith(".zst") else path.open("rb")


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow as pa

    # pyarrow knows a file by its number alone where it is none of its own
    with path.open("rb") as stream:
        head = stream.read(4)
    if head != b"\x28\xb5\x2f\xfd":
        raise WrongFile(
            "can't be unpacked as zstd: it doesn't begin like such a file",
            "pack the file again, or name it without .zst",
        )
    source: Any = _Zstd(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return io.BufferedReader(source, 1 << 17)


class _Zstd(io.RawIOBase):
    """Bytes of a stream of pyarrow, whose errors are told as those of the file."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = self._stream.read(len(view))
        except OSError as error:
            remedy = "pack the file again, or name it without .zst"
            raise WrongFile(f"can't be unpacked as zstd: {error}", remedy) from None
        view[: len(data)] = data
        return len(data)


def _encoding(path: Path, reading: Reading) -> str:
    if reading.encoding != "auto":
        return reading.encoding
    found = detect(path, open_bytes)
    if found != "utf-8":
        reading.remark(f"{path}: read as --data.encoding {found}")
    return found


def read_lines(path: Path, reading: Reading = PLAIN) -> Iterator[tuple[int, str]]:
    r"""Lines with their number from 1 and their line end; only \n ends a line.

    Raises:
        WrongFile: a line is not in the encoding, or the file can't be unpacked as zstd.
        OSError, EOFError, zlib.error: the file can't be read or unpacked.
    """
    encoding, offset = _encoding(path, reading), 0
    codec = codec_of(encoding)
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            first = number == 1 and encoding == "utf-8"
            data = raw.removeprefix(codecs.BOM_UTF8) if first else raw
            try:
                yield number, data.decode(codec)
            except UnicodeDecodeError as error:
                start = error.start + len(raw) - len(data)
                raise wrong_bytes(path, raw, start, number, offset, error, encoding) from None
            offset += len(raw)


def read_pieces(path: Path, size: int, reading: Reading = PLAIN) -> Iterator[str]:
    """The text in pieces of about `size` bytes, for files whose lines have no bound.

    Raises:
        WrongFile: a piece is not in the encoding, or the file can't be unpacked as zstd.
        OSError, EOFError, zlib.error: the file can't be read or unpacked.
    """
    encoding = _encoding(path, reading)
    decode = decoder(encoding)
    line, offset = 1, 0
    with open_bytes(path) as stream:
        data = b"more"
        while data:
            data = stream.read(size)
            kept = decode.getstate()[0]
            try:
                text = decode.decode(data, final=not data)
            except UnicodeDecodeError as error:
                whole = kept + data
                # utf-8-sig counts from behind the byte order mark
                start = error.start + len(whole) - len(error.object)
                number, before = line + whole[:start].count(b"\n"), offset - len(kept)
                raise wrong_bytes(path, whole, start, number, before, error, encoding) from None
            line, offset = line + text.count("\n"), offset + len(data)
            yield text
