"""Data files: every format is read in a stream, and every wrong place is named."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from aift_ray.data.examples import Example, Fault
from aift_ray.data.sources import TextUnit, expand_files, read_examples
from aift_ray.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
BAD = SHARED / "bad"
FORMATS = SHARED / "formats"

Write = Callable[..., Path]
ROW = '{"instruction": "問", "output": "答"}'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(*files: Path, unit: TextUnit = "line") -> tuple[list[Example], list[Fault]]:
    items = list(read_examples(files, unit))
    return (
        [item for item in items if isinstance(item, Example)],
        [item for item in items if isinstance(item, Fault)],
    )


def lines_of(path: Path, unit: TextUnit = "line") -> list[int | None]:
    return [item.line for item in read_examples([path], unit)]


def outputs(path: Path, unit: TextUnit = "line") -> list[str]:
    rows, faults = read(path, unit=unit)
    assert not faults
    return [row.output for row in rows]


def file_fault(path: Path) -> Fault:
    _, faults = read(path)
    assert len(faults) == 1
    assert faults[0].line is None
    assert faults[0].file == str(path)
    return faults[0]


class TestJsonLines:
    def test_blank_lines_are_skipped_and_lines_keep_their_numbers(self, write: Write) -> None:
        assert lines_of(write("a.jsonl", f"\n{ROW}\n  \n\u3000\n{ROW}")) == [2, 5]

    def test_only_line_feeds_end_lines(self, write: Write) -> None:
        text = '{"text": "a\u2028b\u0085c\x0b"}'.replace("\x0b", "\\u000b")
        path = write("a.jsonl", f"{text}\r\n{text}\r\n")
        assert lines_of(path) == [1, 2]
        assert outputs(path)[0] == "a\u2028b\u0085c\x0b"

    def test_a_byte_order_mark_is_allowed(self, write: Write) -> None:
        assert outputs(write("a.jsonl", b"\xef\xbb\xbf" + ROW.encode())) == ["答"]

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
            ('{"text": "a"} {"text": "b"}', "more text behind"),
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
        monkeypatch.setattr("aift_ray.data.json_rows._PIECE_BYTES", size)
        row = {"text": '日本\\"😀\n', "n": [1.5e-7, True, None], "e": {"x": -12}}
        rows = [json.dumps(row), json.dumps(row, ensure_ascii=False), json.dumps(row, indent=9)]
        path = write("a.json", b"\xef\xbb\xbf" + ("[" + " ,\n".join(rows) + " ]").encode())
        assert outputs(path) == [row["text"]] * 3
        assert lines_of(path) == [1, 2, 3]

    @pytest.mark.parametrize("text", ["[]", "[ \n]", "", " \n"])
    def test_no_row_is_a_wrong_file(self, write: Write, text: str) -> None:
        assert file_fault(write("a.json", text)).reason == "the file holds no row"


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


class TestText:
    TEXT = "\n一\r\n二\u2028\n\u3000\n\n三 \n\n"

    def test_each_line_is_a_document(self, write: Write) -> None:
        path = write("a.txt", self.TEXT)
        assert outputs(path) == ["一", "二\u2028", "三 "]
        assert lines_of(path) == [2, 3, 6]

    def test_paragraphs_are_parted_by_blank_lines(self, write: Write) -> None:
        path = write("a.txt", self.TEXT)
        assert outputs(path, "paragraph") == ["一\n二\u2028", "三 "]
        assert lines_of(path, "paragraph") == [2, 6]

    def test_a_file_is_a_document(self, write: Write) -> None:
        path = write("a.txt", self.TEXT)
        assert outputs(path, "file") == ["一\n二\u2028\n\u3000\n\n三 "]
        assert lines_of(path, "file") == [2]

    @pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
    def test_no_text_is_a_wrong_file(self, write: Write, unit: TextUnit) -> None:
        assert lines_of(write("a.txt", "\n \n\u3000\n"), unit) == [None]

    def test_nul_bytes_are_wrong_rows(self, write: Write) -> None:
        rows, [fault] = read(write("a.txt", "a\n\0\0\nb\n"))
        assert (len(rows), fault.line) == (2, 2)


class TestEncoding:
    TEXT = f'{{"text": "abc"}}\n{{"text": "{"日本語の文章です。" * 3}"}}\n'

    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
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
        text = f"text\n{'日本語の文章です。' * 3}\n" if suffix == ".csv" else self.TEXT
        path = write(f"a{suffix}", text.encode(encoding))
        faults = [fault for fault in read(path)[1] if fault.line is None]
        if encoding == "utf-16-le" and suffix == ".csv":
            # the header alone is UTF-8 with NULs, and is refused first
            assert "unknown columns" in faults[0].reason
            return
        if encoding == "utf-16-be" and suffix == ".csv":
            return
        assert faults[0].reason.startswith(f"line {line}: byte 0x")
        assert faults[0].reason.endswith(guess)
        assert f"iconv -f {guess} -t UTF-8" in faults[0].remedy

    def test_the_place_is_exact_in_a_list_too(self, write: Write) -> None:
        good = f"[{ROW},\n" * 1 + f"{ROW},\n" * 20_000
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


class TestExpandFiles:
    def test_files_folders_and_globs_are_found_once_and_sorted(
        self, write: Write, tmp_path: Path
    ) -> None:
        for name in ("b.jsonl", "a.JSONL.gz", "c.txt", "README.md", ".hidden.txt"):
            write(name, "x")
        (tmp_path / "sub.txt").mkdir()
        names = [str(tmp_path / "c.txt"), str(tmp_path), str(tmp_path / "*.jsonl")]
        found = expand_files(names)
        assert [path.name for path in found] == ["c.txt", "a.JSONL.gz", "b.jsonl"]

    def test_a_name_with_glob_characters_is_a_file_first(self, write: Write) -> None:
        path = write("a[1].txt", "x")
        assert expand_files([str(path)]) == [path]

    def test_paths_stay_as_the_user_named_them(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write("a.txt", "x")
        monkeypatch.chdir(tmp_path)
        assert expand_files(["a.txt"]) == [Path("a.txt")]

    def test_no_pattern_gives_no_file(self) -> None:
        assert expand_files([]) == []

    def test_all_problems_come_at_once(self, write: Write, tmp_path: Path) -> None:
        write("train.jsonl", ROW)
        write("a.xyz", ROW)
        (tmp_path / "empty").mkdir()
        os.mkfifo(tmp_path / "pipe.txt")
        (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone")
        names = ["trian.jsonl", "*.none", "a.xyz", "empty", "pipe.txt", "dangling.txt", "b\0.txt"]
        with pytest.raises(DataError) as caught:
            expand_files([*(str(tmp_path / name) for name in names), "", "x.parquet.gz"])
        problems = caught.value.problems
        assert len(problems) == len(names) + 2
        assert "did you mean" in problems[0].remedy
        assert "train.jsonl" in problems[0].remedy
        assert ".xyz" in problems[2].what

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_an_unreadable_file_is_a_problem(self, write: Write) -> None:
        path = write("a.txt", "x")
        path.chmod(0)
        with pytest.raises(DataError, match="may not be read"):
            expand_files([str(path)])


def test_a_missing_file_and_an_unknown_suffix_are_wrong_files(write: Write, tmp_path: Path) -> None:
    rows, faults = read(tmp_path / "gone.txt", write("a.xyz", ROW), tmp_path)
    assert not rows
    assert [fault.line for fault in faults] == [None, None, None]


def _rows(path: Path) -> Iterator[str]:
    text = "日本語" * 200
    for number in range(16_000):
        if path.suffix == ".jsonl":
            yield json.dumps({"instruction": str(number), "output": text}, ensure_ascii=False)
        elif path.suffix == ".csv":
            yield f'{number},"{text}\n"' if number else "instruction,output"
        else:
            sign = "," if number else "["
            row = json.dumps({"instruction": str(number), "output": text}, ensure_ascii=False)
            yield f"{sign}{row}"
    if path.suffix == ".json":
        yield "]"


@pytest.mark.parametrize(
    ("name", "separator"),
    [("a.jsonl", "\n"), ("a.json", "\n"), ("one_line.json", ""), ("a.csv", "\n")],
)
def test_a_file_is_not_held_in_memory(tmp_path: Path, name: str, separator: str) -> None:
    path = tmp_path / name
    with path.open("w", encoding="utf-8") as file:
        file.writelines(row + separator for row in _rows(path))
    assert path.stat().st_size > 28e6
    tracemalloc.start()
    try:
        count = sum(isinstance(item, Example) for item in read_examples([path]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count >= 15_999
    assert peak < 12e6


def _expected() -> list[Any]:
    path = BAD / "expected.json"
    if not path.exists():
        skip = pytest.mark.skip(reason="the shared test data are not here")
        return [pytest.param({}, marks=skip, id="absent")]
    return [pytest.param(case, id=case["file"]) for case in json.loads(path.read_text("utf-8"))]


@pytest.mark.parametrize("case", _expected())
def test_the_bad_files_are_judged_as_expected(case: dict[str, Any]) -> None:
    rows, faults = read(BAD / case["file"])
    if case["expect"] == "reject_file":
        assert [fault.line for fault in faults] == [None]
        for place in case["faults"]:
            assert faults[0].reason.startswith(f"line {place['line']}: ")
        return
    assert len(rows) == case["good_rows"]
    wrong = case["faults"] if case["expect"] == "reject_rows" else []
    assert [fault.line for fault in faults] == [place["line"] for place in wrong]


@pytest.mark.skipif(not FORMATS.exists(), reason="the shared test data are not here")
@pytest.mark.parametrize(
    "names",
    [
        ["instruction"],
        ["instruction_multiline"],
        ["prompt_completion"],
        ["text"],
        ["messages", "conversations"],
        ["multi_turn_messages", "multi_turn_conversations"],
    ],
    ids=lambda names: names[0],
)
def test_all_formats_of_a_kind_give_equal_examples(names: list[str]) -> None:
    files = [path for name in names for path in sorted(FORMATS.glob(f"{name}.*"))]
    assert len(files) > 1
    sets = []
    for path in files:
        rows, faults = read(path)
        assert not faults
        sets.append([replace(row, file="", line=0) for row in rows])
    assert all(found == sets[0] for found in sets)
