"""Bytes to text: other encodings, damage and gzip are named."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from tests.helpers.reading import ROW, Write, file_fault, outputs, read, writer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


class TestEncoding:
    TEXT = f'{{"text": "abc"}}\n{{"text": "{"日本語の文章です。" * 3}"}}\n'

    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt"])
    @pytest.mark.parametrize(
        ("encoding", "guess", "line"),
        [
            ("cp932", "CP932", 2),
            ("euc_jp", "EUC-JP", 2),
            ("utf-16", "UTF-16", 1),
            ("utf-16-le", "UTF-16LE", 2),
            ("utf-16-be", "UTF-16BE", 2),
        ],
    )
    def test_another_encoding_is_named_with_line_and_remedy(
        self, write: Write, suffix: str, encoding: str, guess: str, line: int
    ) -> None:
        path = write(f"a{suffix}", self.TEXT.encode(encoding))
        [fault] = [fault for fault in read(path)[1] if fault.line is None]
        assert fault.reason.startswith(f"line {line}: byte 0x")
        assert fault.reason.endswith(f"looks like {guess}")
        assert f"iconv -f {guess} -t UTF-8 {path} > utf8_a{suffix}" in fault.remedy

    @pytest.mark.parametrize(("encoding", "guess"), [("cp932", "CP932"), ("euc_jp", "EUC-JP")])
    def test_another_encoding_of_a_packed_csv_is_named(
        self, write: Write, encoding: str, guess: str
    ) -> None:
        path = write("a.csv.gz", gzip.compress("text\n日本語の文章\n".encode(encoding)))
        fault = file_fault(path)
        assert fault.reason.startswith("line 2: byte 0x")
        assert f"gzip -dc {path} | iconv -f {guess} -t UTF-8 > utf8_a.csv" in fault.remedy

    def test_the_place_is_exact_in_a_list_too(self, write: Write) -> None:
        good = f"[{ROW},\n" + f"{ROW},\n" * 20_000
        head = good.encode()
        path = write("a.json", head + '{"text": "日本語です"}]'.encode("cp932"))
        fault = read(path)[1][0]
        assert fault.reason.startswith(f"line 20002: byte 0x93 at offset {len(head) + 10} ")

    def test_latin1_is_guessed(self, write: Write) -> None:
        path = write("a.txt", "café naïveté\n".encode("latin-1"))
        assert "WINDOWS-1252" in file_fault(path).remedy

    def test_a_file_that_ends_within_a_character_is_cut_off(self, write: Write) -> None:
        assert "ends within a character" in file_fault(write("a.txt", "日本".encode()[:-1])).reason

    def test_one_damaged_byte_is_not_another_encoding(self, write: Write) -> None:
        data = ("日本語の文章。" * 5).encode()
        path = write("a.txt", data[:30] + b"\xff" + data[31:])
        assert "damaged" in file_fault(path).reason

    def test_the_next_file_is_read(self, write: Write) -> None:
        rows, faults = read(write("a.txt", b"\xff"), write("b.txt", "b"))
        assert (len(rows), len(faults)) == (1, 1)


class TestGzip:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.jsonl.gz", ROW),
            ("a.JSON.GZ", f"[{ROW}]"),
            ("a.txt.gz", "答"),
            ("a.csv.gz", "text\n答"),
        ],
    )
    def test_text_formats_may_be_packed(self, write: Write, name: str, text: str) -> None:
        assert outputs(write(name, gzip.compress(text.encode()))) == ["答"]

    @pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
    def test_a_damaged_archive_is_a_wrong_file(self, write: Write, name: str) -> None:
        packed = gzip.compress(os.urandom(200_000).hex().encode())
        for content in (ROW.encode(), packed[:-9], packed[:5000] + b"\0" * 500 + packed[5500:]):
            faults = [f for f in read(write(name, content))[1] if f.line is None]
            assert len(faults) == 1
            assert "gzip" in faults[0].reason

    def test_a_packed_file_without_the_suffix_is_pointed_out(self, write: Write) -> None:
        assert ".gz" in file_fault(write("a.jsonl", gzip.compress(ROW.encode()))).remedy
