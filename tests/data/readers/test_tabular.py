"""CSV and Parquet: columns name the keys, and every wrong place is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from aift_ray.data.readers.reader_options import Reading
from aift_ray.data.readers.sources import read_examples
from tests.helpers.reading import ROW, Write, file_fault, outputs, read, writer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


class TestCsv:
    def test_blanks_around_column_names_are_trimmed_and_input_may_be_empty(
        self, write: Write
    ) -> None:
        rows, faults = read(write("a.csv", "\ufeff output , input, instruction \nb,,a\n"))
        assert not faults
        assert (rows[0].instruction, rows[0].input, rows[0].output) == ("a", "", "b")

    def test_rows_over_several_lines_are_named_by_their_first(self, write: Write) -> None:
        text = 'instruction,output\r\n"a\r\nb","c ""d"", e"\r\n\r\na,\r\na,b\r\n'
        rows, [fault] = read(write("a.csv", text))
        assert [row.line for row in rows] == [2, 6]
        assert rows[0].instruction == "a\r\nb"
        assert rows[0].output == 'c "d", e'
        assert (fault.line, fault.reason) == (5, "output is empty, expected text")

    def test_old_line_ends_are_named(self, write: Write) -> None:
        fault = file_fault(write("a.csv", "instruction,output\ra,b\r"))
        assert "CR alone" in fault.reason

    def test_columns_that_are_not_read_are_told(self, write: Write) -> None:
        told: list[str] = []
        path = write("a.csv", ",備考,instruction,output,\n1,2,a,b,\n")
        list(read_examples([path], Reading(remark=told.append)))
        assert told == ["columns not read: 備考 and 1 without a name"]

    def test_ragged_rows_are_wrong_with_their_cell_counts(self, write: Write) -> None:
        rows, faults = read(write("a.csv", "instruction,output\na,b,c\na\na,b\n"))
        assert len(rows) == 1
        assert [(fault.line, fault.reason.split(",")[0]) for fault in faults] == [
            (2, "3 cells"),
            (3, "1 cell"),
        ]

    @pytest.mark.parametrize(
        ("header", "reason", "remedy"),
        [
            ("instruction,input", "the column output is missing", "needs the columns"),
            ("instructions,output", "the column instruction is missing", '"instruction"?'),
            ("output,instruction,output", 'duplicate column "output"', "one of each"),
            ("東京,大阪", "unknown columns", "expected instruction"),
            ("instruction\toutput", "unknown columns", "tabs"),
            ("instruction，output", "unknown columns", "full-width commas"),
            ("instruction;output", "unknown columns", "semicolons"),
            ("text,prompt", "columns of two kinds", "one kind"),
            ("messages", "messages has no CSV form", ".jsonl"),
            ('{"text": "a"}', "unknown columns", "looks like JSON"),
        ],
    )
    def test_a_wrong_header_is_a_wrong_file(
        self, write: Write, header: str, reason: str, remedy: str
    ) -> None:
        fault = file_fault(write("a.csv", f"{header}\na,b\n"))
        assert fault.reason.startswith("line 1: ")
        assert reason in fault.reason
        assert remedy in fault.remedy

    def test_further_columns_are_ignored(self, write: Write) -> None:
        assert outputs(write("a.csv", "id,text,,\n1,a,,\n")) == ["a"]

    def test_a_stray_quote_is_a_wrong_row(self, write: Write) -> None:
        rows, [fault] = read(write("a.csv", 'text\n"a"b\nc\n'))
        assert ([row.output for row in rows], fault.line) == (["c"], 2)

    def test_a_quote_that_is_never_closed_is_a_wrong_file(self, write: Write) -> None:
        fault = file_fault(write("a.csv", 'text\na\n"b\nc\n'))
        assert fault.reason.startswith("line 3: ")
        assert "never closed" in fault.reason

    def test_long_cells_are_read(self, write: Write) -> None:
        assert len(outputs(write("a.csv", f"text\n{'長' * 300_000}\n"))[0]) == 300_000

    def test_nul_bytes_are_wrong_rows(self, write: Write) -> None:
        rows, [fault] = read(write("a.csv", "text\na\0\nb\n"))
        assert (len(rows), fault.line) == (1, 2)

    def test_an_empty_cell_in_quotes_is_a_wrong_row(self, write: Write) -> None:
        _, [fault] = read(write("a.csv", 'text\na\n""\n \nb\n'))
        assert fault.line == 3


class TestParquet:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Callable[..., Path]:
        def table(**columns: Any) -> Path:
            path = tmp_path / "a.parquet"
            parquet.write_table(pa.table(columns), path, row_group_size=2)
            return path

        return table

    def test_rows_are_numbered_from_one(self, table: Callable[..., Path]) -> None:
        rows, faults = read(table(text=["a", None, "b", "", "c"]))
        assert [row.line for row in rows] == [1, 3, 5]
        assert [fault.line for fault in faults] == [2, 4]

    @pytest.mark.parametrize(
        "kind",
        [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    )
    def test_all_string_types_are_read(self, table: Callable[..., Path], kind: Any) -> None:
        assert outputs(table(text=pa.array(["a", "b", "a"]).cast(kind))) == ["a", "b", "a"]

    def test_an_input_of_nulls_is_no_input(self, table: Callable[..., Path]) -> None:
        rows, _ = read(table(instruction=["a"], output=["b"], input=pa.nulls(1)))
        assert rows[0].input == ""

    def test_messages_are_read(self, table: Callable[..., Path]) -> None:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        rows, _ = read(table(messages=[chat, chat], id=[1, 2]))
        assert [message.content for message in rows[1].messages] == ["a", "b"]

    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"text": [b"a"]}, "the column text is binary, expected string"),
            ({"text": [1]}, "the column text is int64"),
            ({"messages": ["a"]}, "the column messages is string, expected a list"),
            ({"instruction": ["a"]}, "the column output is missing"),
            ({"text": ["a"], "prompt": ["b"]}, "columns of two kinds"),
            ({"a": ["b"]}, "unknown columns"),
            ({"text": pa.array([], pa.string())}, "no row"),
        ],
    )
    def test_wrong_columns_are_a_wrong_file(
        self, table: Callable[..., Path], columns: dict[str, Any], reason: str
    ) -> None:
        assert reason in file_fault(table(**columns)).reason

    def test_text_that_is_not_utf8_is_a_wrong_file(self, table: Callable[..., Path]) -> None:
        bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
        assert "not UTF-8" in file_fault(table(text=bad)).reason

    def test_a_damaged_page_is_a_wrong_file(self, table: Callable[..., Path]) -> None:
        path = table(text=["a" * 50, "b" * 50])
        data = bytearray(path.read_bytes())
        data[4:40] = bytes(36)
        path.write_bytes(data)
        assert "damaged" in file_fault(path).reason

    @pytest.mark.parametrize("content", [b"", b"PAR1", ROW.encode()])
    def test_what_is_no_parquet_is_a_wrong_file(self, write: Write, content: bytes) -> None:
        file_fault(write("a.parquet", content))
