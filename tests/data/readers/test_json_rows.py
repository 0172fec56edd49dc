"""JSON Lines and JSON lists: rows in a stream, and every wrong place named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.reading import ROW, Write, file_fault, lines_of, outputs, read, writer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


class TestJsonLines:
    def test_blank_lines_are_skipped_and_lines_keep_their_numbers(self, write: Write) -> None:
        assert lines_of(write("a.jsonl", f"\n{ROW}\n  \n\u3000\n{ROW}")) == [2, 5]

    def test_only_line_feeds_end_lines(self, write: Write) -> None:
        text = '{"text": "a\u2028b\u0085c"}'
        path = write("a.jsonl", f"{text}\r\n{text}\r\n")
        assert lines_of(path) == [1, 2]
        assert outputs(path)[0] == "a\u2028b\u0085c"

    def test_a_byte_order_mark_is_allowed(self, write: Write) -> None:
        assert outputs(write("a.jsonl", b"\xef\xbb\xbf" + ROW.encode())) == ["答"]

    def test_a_byte_order_mark_within_a_file_is_named(self, write: Write) -> None:
        rows, [fault] = read(write("a.jsonl", f"\ufeff{ROW}\n\ufeff{ROW}\n{ROW}"))
        assert (len(rows), fault.line) == (2, 2)
        assert "byte order mark within the file" in fault.reason

    def test_a_wrong_row_does_not_stop_the_next(self, write: Write) -> None:
        rows, faults = read(write("a.jsonl", f"{ROW}\n{{'a': 1}}\n[]\n{ROW}\n"))
        assert [row.line for row in rows] == [1, 4]
        assert [fault.line for fault in faults] == [2, 3]

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ('{"instruction": "a", "outp', "not closed"),
            ('{"text": "a",}', "double quotes"),
            ('{"text": "a", "n": NaN}', "NaN"),
            ('{"text": "a", "n": -Infinity}', "-Infinity"),
            ('{"text": "\\ud83d"}', "lone surrogate"),
            ('{"text": "a"} {"text": "b"}', "more text after"),
            ('{"text": "a\0"}', "NUL"),
            ("\0" * 64, "NUL"),
            ("[" * 100_000, "nested too deeply"),
            ('{"text": "a", "n": ' + "9" * 5000 + "}", "too many digits"),
        ],
    )
    def test_a_wrong_row_is_named(self, write: Write, row: str, reason: str) -> None:
        rows, [fault] = read(write("a.jsonl", f"{ROW}\n{row}\n{ROW}\n"))
        assert len(rows) == 2
        assert fault.line == 2
        assert reason in fault.reason

    def test_an_escaped_nul_is_text(self, write: Write) -> None:
        assert outputs(write("a.jsonl", '{"text": "a\\u0000b"}')) == ["a\0b"]

    def test_a_list_named_jsonl_is_pointed_out(self, write: Write) -> None:
        _, faults = read(write("a.jsonl", f"[\n{ROW},\n{ROW}\n]\n"))
        assert "named .json" in faults[0].remedy


class TestJson:
    def test_rows_of_a_list_have_their_physical_line(self, write: Write) -> None:
        path = write("a.json", f'\n[\n {ROW}, {ROW},\n\n {{\n"text":\n"a"}}\n]\n')
        assert lines_of(path) == [3, 3, 5]

    def test_a_wrong_row_of_a_list_is_named_by_row_and_line(self, write: Write) -> None:
        rows, faults = read(write("a.json", f'[{ROW}, 3, {{"text": NaN}},\n{{"text": ""}}, {ROW}]'))
        assert len(rows) == 2
        assert [fault.line for fault in faults] == [1, 1, 2]
        assert [fault.reason.split(":")[0] for fault in faults] == ["row 2", "row 3", "row 4"]

    def test_json_lines_may_be_named_json(self, write: Write) -> None:
        extra = '{"tags": ["a"], "text": "b"}'
        assert lines_of(write("a.json", f"{extra}\n{ROW}\n")) == [1, 2]

    def test_a_broken_first_row_of_json_lines_is_a_wrong_row(self, write: Write) -> None:
        _, [fault] = read(write("a.json", f'{{"messages": [{{"ro\n{ROW}\n'))
        assert fault.line == 1

    @pytest.mark.parametrize(
        "text",
        [
            f'{{"data": [{ROW}]}}',
            f'{{\n "version": "1",\n "data": [\n  {ROW}]}}',
            '{"version": {"a": 1}, "data" : [' + f"{ROW},\n" * 5000 + f"{ROW}]}}",
        ],
    )
    def test_an_object_that_holds_a_list_is_refused_with_its_key(
        self, write: Write, text: str
    ) -> None:
        assert 'holds a list under "data"' in file_fault(write("a.json", text)).reason

    def test_one_row_over_several_lines_is_refused(self, write: Write) -> None:
        path = write("a.json", '{\n "instruction": "a",\n "output": "b"\n}')
        assert "several lines" in file_fault(path).reason

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            (f"[\n{ROW},\n{ROW}", 3),
            (f'[\n{ROW},\n{{"instruction": "a', 3),
            (f"[\n{ROW},\n]", 3),
            (f"[\n{ROW}\n{ROW}]", 3),
            (f"[\n{ROW}]\n[", 3),
            (f"[{ROW},\n{{'text': 1}},\n" + f"{ROW},\n" * 40_000, 2),
            ("[", 1),
            ("[1, " + "[" * 100_000, 1),
        ],
    )
    def test_a_broken_list_is_a_wrong_file_with_its_line(
        self, write: Write, text: str, line: int
    ) -> None:
        faults = [fault for fault in read(write("a.json", text))[1] if fault.line is None]
        assert len(faults) == 1
        assert faults[0].reason.startswith(f"line {line}:")

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
    def test_rows_may_be_cut_anywhere_while_reading(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setattr("aift_ray.data.readers.json_rows._PIECE_BYTES", size)
        row = {"text": '日本\\"😀\n', "n": [1.5e-7, True, None], "e": {"x": -12}}
        rows = [json.dumps(row), json.dumps(row, ensure_ascii=False), json.dumps(row, indent=9)]
        path = write("a.json", b"\xef\xbb\xbf" + ("[" + " ,\n".join(rows) + " ]").encode())
        assert outputs(path) == [row["text"]] * 3
        assert lines_of(path) == [1, 2, 3]

    @pytest.mark.parametrize("text", ["[]", "[ \n]", "", " \n"])
    def test_no_row_is_a_wrong_file(self, write: Write, text: str) -> None:
        assert file_fault(write("a.json", text)).reason == "the file holds no row"
