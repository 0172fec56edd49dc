"""Tables, packed files, saved data sets and encodings: the same rows give the same examples."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

from aift_ray.config import DataConfig
from aift_ray.data import token_cache
from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.readers.reader_options import Reading
from aift_ray.data.readers.sources import expand_files, read_examples
from aift_ray.errors import ConfigError, DataError
from tests.conftest import SHIPPED
from tests.helpers.reading import Write, file_fault, outputs, read, writer

ASSETS = Path(__file__).parents[1] / "assets"
ROWS = [
    {"instruction": "日本の首都は？", "input": "", "output": "東京です。"},
    {"instruction": "二行の\n問い\tと「カンマ,」", "input": '"引用"', "output": "はい～①。"},
    {"instruction": "12", "input": "3.5", "output": "ｱｲｳ　終わり "},
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


def separated(sign: str, header: tuple[str, ...] = ("instruction", "input", "output")) -> str:
    text = io.StringIO()
    table = csv.writer(text, delimiter=sign, lineterminator="\r\n")
    table.writerows([header, *(row.values() for row in ROWS)])
    return text.getvalue()


def sheet(path: Path, *rows: tuple[Any, ...], name: str = "Sheet1", **further: Any) -> Path:
    book = openpyxl.Workbook()
    book.active.title = name
    for row in rows:
        book.active.append(row)
    for title, more in further.items():
        other = book.create_sheet(title)
        for row in more:
            other.append(row)
    book.save(path)
    return path


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def _arrow(path: Path, kind: Any) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, kind(sink, table.schema) as made:
        made.write_table(table, max_chunksize=2)


def _make_xlsx(path: Path) -> None:
    numbers = [(*list(row.values())[:2], row["output"]) for row in ROWS]
    # as a spreadsheet holds what looks like a number
    numbers[2] = (12, 3.5, ROWS[2]["output"])
    sheet(path, ("instruction", "input", "output"), *numbers)


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
MAKERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.jsonl.zst": lambda path: path.write_bytes(zstd(LINES)),
    "two_frames.jsonl.zst": lambda path: path.write_bytes(
        b"".join(zstd(line) for line in LINES.splitlines(keepends=True))
    ),
    "a.csv": lambda path: path.write_bytes(separated(",").encode()),
    "a.csv.zst": lambda path: path.write_bytes(zstd(separated(",").encode())),
    "a.tsv": lambda path: path.write_bytes(separated("\t").encode("utf-8-sig")),
    "a.TSV.gz": lambda path: path.write_bytes(gzip.compress(separated("\t").encode())),
    "a.xlsx": _make_xlsx,
    "file.arrow": lambda path: _arrow(path, pa.ipc.new_file),
    "stream.arrow": lambda path: _arrow(path, pa.ipc.new_stream),
    "a.parquet": lambda path: parquet.write_table(pa.Table.from_pylist(ROWS), path),
}


def test_the_token_cache_is_the_same_whatever_the_file(tmp_path: Path) -> None:
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))
    made = {}
    for name, make in MAKERS.items():
        make(tmp_path / name)
        config = DataConfig(train_files=[str(tmp_path / name)], cache_dir=str(tmp_path / "cache"))
        rows = token_cache.prepare(config, encoder, 128).rows("train")
        pairs = [rows.row(index) for index in range(len(rows))]
        made[name] = [(ids.tolist(), flags.tolist()) for ids, flags in pairs]
    assert len(made["a.jsonl"]) == len(ROWS)
    assert [name for name, rows in made.items() if rows != made["a.jsonl"]] == []


@pytest.mark.parametrize("encoding", ["cp932", "euc-jp"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "txt", "csv.gz", "jsonl.zst"])
def test_a_named_encoding_gives_the_rows_of_the_same_file_in_utf8(
    write: Write, kind: str, encoding: str
) -> None:
    texts = {
        "csv": separated(","),
        "tsv": separated("\t"),
        "jsonl": LINES.decode(),
        "json": json.dumps(ROWS, ensure_ascii=False),
        "txt": "一行目～①\n二行目\n",
    }
    text = texts[kind.split(".")[0]]
    pack = {"gz": gzip.compress, "zst": zstd}.get(kind.rpartition(".")[2], bytes)
    codec = "euc_jis_2004" if encoding == "euc-jp" else encoding
    # the sign ～ is another one in EUC-JP
    text = text.replace("～", "") if encoding == "euc-jp" else text
    there = read(write(f"there.{kind}", pack(text.encode(codec))), encoding=encoding)
    here = read(write(f"here.{kind}", pack(text.encode())))
    assert not there[1]
    assert [replace(r, file="") for r in there[0]] == [replace(r, file="") for r in here[0]]


class TestAuto:
    TEXT = "今日は良い天気です。カタカナもあります。\n"

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
    def test_what_can_be_nothing_else_is_read_and_told(self, write: Write, encoding: str) -> None:
        told: list[str] = []
        path = write("a.txt", (self.TEXT * 3).encode(encoding))
        rows = list(read_examples([path], Reading(encoding="auto", remark=told.append)))
        assert [row.output for row in rows if isinstance(row, Example)] == [self.TEXT.strip()] * 3
        assert told == ([f"{path}: read as --data.encoding cp932"] if encoding == "cp932" else [])

    @pytest.mark.parametrize(
        ("data", "flag"),
        [
            (TEXT.encode("euc_jp"), "--data.encoding euc-jp"),
            ("ｱｲｳ".encode("cp932"), ""),
            ("café naïveté, déjà vu\n".encode("cp1252"), ""),
            (TEXT.encode()[:30] + b"\xff" + TEXT.encode()[31:], ""),
            (TEXT.encode("utf-16"), ""),
            (b"text\n" + "漢字\n".encode("cp932"), "--data.encoding cp932"),
        ],
    )
    def test_what_is_not_sure_is_asked_for(self, write: Write, data: bytes, flag: str) -> None:
        _, [fault] = read(write("a.txt", data), encoding="auto")
        assert fault.line is None
        assert "is not UTF-8" in fault.reason
        assert flag in fault.remedy


def test_a_file_that_is_not_in_the_named_encoding_says_where(write: Write) -> None:
    path = write("a.txt", "一行目\n二行目の文章です\n")
    _, [fault] = read(path, encoding="euc-jp")
    assert fault.reason.startswith("line 1: byte 0x")
    assert "is not EUC-JP; it looks like UTF-8" in fault.reason
    assert "--data.encoding utf-8" in fault.remedy


class TestColumns:
    @pytest.mark.parametrize(
        "header",
        [
            "質問,回答",
            "Question,Answer",
            "指示文 , 応答",
            "ＱＵＥＳＴＩＯＮ,答え",
            "instruction,response",
        ],
    )
    def test_common_names_of_columns_are_known_and_told(self, write: Write, header: str) -> None:
        told: list[str] = []
        path = write("a.csv", f"{header}\n問,答\n")
        (row,) = read_examples([path], Reading(remark=told.append))
        assert isinstance(row, Example)
        assert (row.instruction, row.output) == ("問", "答")
        assert "--data.columns" in told[0]

    def test_named_columns_go_before_those_of_the_file(self, write: Write) -> None:
        path = write("a.csv", "instruction,output,題名,内容,補足\n1,2,問,答,足\n")
        columns = {"instruction": "題名", "output": "内容", "input": "補足"}
        rows, faults = read(path, columns=columns)
        assert not faults
        assert (rows[0].instruction, rows[0].input, rows[0].output) == ("問", "足", "答")

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
    def test_keys_are_named_alike(self, tmp_path: Path, name: str) -> None:
        row = {"問題": "問", "解説": "答", "output": 7}
        path = tmp_path / name
        if name == "a.parquet":
            parquet.write_table(pa.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps([row] if name == "a.json" else row), "utf-8")
        rows, faults = read(path, columns={"instruction": "問題", "output": "解説"})
        assert not faults
        assert (rows[0].instruction, rows[0].output) == ("問", "答")

    def test_two_columns_for_one_key_are_asked_for(self, write: Write) -> None:
        fault = file_fault(write("a.csv", "質問,問題,回答\na,b,c\n"))
        assert "質問 and 問題" in fault.reason
        assert "--data.columns instruction=質問,output=回答" in fault.remedy

    def test_a_column_that_is_not_there_is_named(self, write: Write) -> None:
        path = write("a.csv", "質問,回答\na,b\n")
        _, [fault] = read(path, columns={"instruction": "問い", "output": "回答"})
        assert fault.reason == "line 1: there is no column 問い; the columns are 質問, 回答"
        assert fault.remedy == "did you mean --data.columns instruction=質問,output=回答?"
        path = write("b.csv", "題名,内容\na,b\n")
        _, [fault] = read(path, columns={"instruction": "question", "output": "著者"})
        assert fault.remedy == "name those that are there: --data.columns KEY=COLUMN,..."

    def test_a_key_that_is_not_there_is_named_with_the_nearest_of_the_row(
        self, write: Write
    ) -> None:
        path = write("a.jsonl", '{"instruktion": "問", "outptu": "答"}\n')
        _, [fault] = read(path, columns={"instruction": "instruktion", "output": "output"})
        assert fault.reason == 'there is no key output; found "instruktion", "outptu"'
        flag = "--data.columns instruction=instruktion,output=outptu"
        assert fault.remedy == f"did you mean {flag}?"
        path = write("b.json", '[{"質問": "問", "説明": "答"}]')
        _, [fault] = read(path, columns={"instruction": "質問", "output": "解説"})
        assert fault.remedy == "did you mean --data.columns instruction=質問,output=説明?"
        _, faults = read(write("c.jsonl", '{"text": "文"}\n'), columns={"output": "解説"})
        assert not faults, "a row of another kind that is whole"

    def test_a_column_of_no_file_is_answered_with_the_nearest(self, write: Write) -> None:
        encoder = PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))
        columns = {"instruction": "instruction", "output": "outptu"}
        for name, text in (
            ("a.csv", "instruction,output\n問,答\n"),
            ("a.jsonl", '{"instruction": "問", "output": "答"}\n'),
        ):
            config = DataConfig(train_files=[str(write(name, text))], columns=columns)
            with pytest.raises(ConfigError, match=r"did you mean .*=instruction,output=output\?"):
                token_cache.prepare(config, encoder, 128)

    def test_other_columns_and_another_encoding_name_their_flags(self, write: Write) -> None:
        flag = "--data.columns instruction=題名,output=内容"
        assert flag in file_fault(write("a.csv", "題名,内容,日\na,b,c\n")).remedy
        remedy = file_fault(write("b.csv", "質問,回答\r\n問,答\r\n".encode("cp932"))).remedy
        assert "--data.encoding cp932 --data.columns instruction=質問,output=回答" in remedy
        _, [fault] = read(write("c.jsonl", '{"質問": "a", "回答": "b"}\n'))
        assert "--data.columns instruction=質問,output=回答" in fault.remedy

    def test_what_is_no_key_of_a_row_is_refused(self, tmp_path: Path) -> None:
        encoder = PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))
        config = DataConfig(train_files=["a.csv"], columns={"質問": "instruction"})
        with pytest.raises(ConfigError, match=r"--data[.]columns instruction=質問"):
            token_cache.prepare(config, encoder, 128)
        config = DataConfig(train_files=["a.csv"], columns={"instrction": "質問"})
        with pytest.raises(ConfigError, match=r"mean --data[.]columns instruction=質問\?"):
            token_cache.prepare(config, encoder, 128)


class TestXlsx:
    HEADER = ("質問", "回答")

    def test_rows_keep_the_number_that_excel_shows(self, tmp_path: Path) -> None:
        path = sheet(
            tmp_path / "a.xlsx", self.HEADER, ("a", "b"), (None, None), (" ", ""), ("c", "")
        )
        rows, [fault] = read(path)
        assert [row.line for row in rows] == [2]
        assert (fault.line, fault.reason) == (5, "output is empty, expected text")

    def test_a_cell_whose_text_is_not_known_is_a_wrong_row(self, tmp_path: Path) -> None:
        import datetime

        rows = [("a", value) for value in ("=1+1", datetime.date(2024, 4, 1), True, 7)]
        path = sheet(tmp_path / "a.xlsx", self.HEADER, *rows)
        book = openpyxl.load_workbook(path)
        book.active["B5"].number_format = "0%"
        book.active.append(("a", "#N/A"))
        book.active["B6"].data_type = "e"
        book.save(path)
        good, faults = read(path)
        assert [row.output for row in good] == ["TRUE"]
        assert [fault.line for fault in faults] == [2, 3, 5, 6]
        assert "B2 is a formula without a stored value" in faults[0].reason
        assert "B3 is a date or time" in faults[1].reason

    def test_a_title_over_the_table_is_named_and_a_date_names_a_column(
        self, tmp_path: Path
    ) -> None:
        import datetime

        fault = file_fault(sheet(tmp_path / "a.xlsx", ("社内 FAQ", None), self.HEADER, ("a", "b")))
        assert "remove the rows above" in fault.remedy
        dated = (*self.HEADER, datetime.date(2024, 4, 1))
        assert outputs(sheet(tmp_path / "b.xlsx", dated, ("a", "b", "c"))) == ["b"]

    def test_what_merged_cells_leave_empty_is_a_wrong_row(self, tmp_path: Path) -> None:
        rows = [(None, "b"), ("c", "d"), (None, None), ("e", None), ("f", "g")]
        path = sheet(tmp_path / "a.xlsx", (*self.HEADER, "備考"), ("a", "b", "x"), *rows)
        book = openpyxl.load_workbook(path)
        # a question over two rows; a row of two lines; a cell over two columns; what is not read
        for area in ("A2:A3", "A4:A5", "B4:B5", "A6:B6", "C2:C7"):
            book.active.merge_cells(area)
        book.save(path)
        good, faults = read(path)
        assert [(row.line, row.output) for row in good] == [(2, "b"), (4, "d"), (7, "g")]
        assert [fault.line for fault in faults] == [3, 6]
        assert "the cells A2:A3 are merged: their text is in A2 only" in faults[0].reason
        assert "the cells A6:B6 are merged" in faults[1].reason
        assert "セル結合の解除" in faults[0].remedy

    def test_hidden_rows_and_columns_are_told_or_left_out(self, tmp_path: Path) -> None:
        rows = [("a", "b"), ("c", "d"), ("e", "f")]
        path = sheet(tmp_path / "a.xlsx", ("備考", *self.HEADER), *(("x", *row) for row in rows))
        book = openpyxl.load_workbook(path)
        book.active.auto_filter.ref = "A1:C4"
        for row in (3, 4):
            book.active.row_dimensions[row].hidden = True
        book.active.column_dimensions["C"].hidden = True
        book.active.column_dimensions["A"].hidden = True
        book.save(path)
        told: list[str] = []
        good, _ = read(path, remark=told.append)
        assert [row.output for row in good] == ["b", "d", "f"]
        assert f"{path}: the column of output is hidden, and is read" in told
        assert f"{path}: the column of instruction is hidden, and is read" not in told
        [rows_told] = [each for each in told if "hidden rows" in each]
        assert "2 hidden rows are read as the others; --data.hidden_rows skip" in rows_told
        told.clear()
        good, _ = read(path, remark=told.append, hidden_rows="skip")
        assert [row.output for row in good] == ["b"]
        assert f"{path}: 2 hidden rows are left out" in told
        book.active.row_dimensions[2].hidden = True
        book.save(path)
        _, [fault] = read(path, hidden_rows="skip")
        assert "--data.hidden_rows train" in fault.remedy

    def test_a_hidden_sheet_is_told_and_named_last(self, tmp_path: Path) -> None:
        path = sheet(tmp_path / "a.xlsx", self.HEADER, ("a", "b"), name="旧", 新=[])
        book = openpyxl.load_workbook(path)
        book["旧"].sheet_state = "hidden"
        book.save(path)
        told: list[str] = []
        read(path, remark=told.append)
        assert f"{path}: the sheet 旧 is hidden, and is read" in told
        for row in (self.HEADER, ("c", "d")):
            book["新"].append(row)
        book.save(path)
        fault = file_fault(path)
        assert "the sheets 新, 旧 (hidden) hold rows" in fault.reason
        assert "--data.sheet 新" in fault.remedy

    def test_a_sheet_that_names_too_small_a_size_is_read_whole(self, tmp_path: Path) -> None:
        path, mended = sheet(tmp_path / "a.xlsx", self.HEADER, ("a", "b")), tmp_path / "b.xlsx"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(mended, "w") as new:
            for name in old.namelist():
                text = old.read(name)
                new.writestr(name, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1"', text))
        assert outputs(mended) == ["b"]

    def test_several_sheets_are_asked_for(self, tmp_path: Path) -> None:
        path = sheet(tmp_path / "a.xlsx", self.HEADER, ("a", "b"), name="本", 予備=[("x", "y")])
        fault = file_fault(path)
        assert "本, 予備" in fault.reason
        assert "--data.sheet 本" in fault.remedy
        assert [row.output for row in read(path, sheet="本")[0]] == ["b"]
        _, [fault] = read(path, sheet="ない")
        assert "there is no sheet ない" in fault.reason

    def test_an_empty_second_sheet_is_none(self, tmp_path: Path) -> None:
        assert outputs(sheet(tmp_path / "a.xlsx", self.HEADER, ("a", "b"), 空=[])) == ["b"]

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b"PK\x03\x04 no archive", "not an Excel workbook"),
            (b"\xd0\xcf\x11\xe0 with a password", "password"),
        ],
    )
    def test_what_is_no_workbook_is_a_wrong_file(
        self, write: Write, data: bytes, reason: str
    ) -> None:
        assert reason in file_fault(write("a.xlsx", data)).reason

    def test_without_openpyxl_the_package_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = sheet(tmp_path / "a.xlsx", self.HEADER, ("a", "b"))
        monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
        assert "pip install 'aift-ray[excel]'" in file_fault(path).remedy

    def test_an_older_workbook_is_told_what_to_do(self, write: Write) -> None:
        with pytest.raises(DataError, match=r"save it as [.]xlsx"):
            expand_files([str(write("a.xls", b"\xd0\xcf\x11\xe0"))])


class TestSavedDataSet:
    """`assets/saved_splits` was written by datasets 5.2.0: DatasetDict.save_to_disk."""

    def test_the_rows_of_a_split_are_read(self) -> None:
        files = expand_files([str(ASSETS / "saved_splits" / "train")])
        rows, faults = read(*files)
        assert not faults
        assert len(rows) == 3
        assert rows[0].messages[1].content.endswith("です。")

    def test_a_folder_of_splits_is_asked_for(self) -> None:
        with pytest.raises(DataError, match=r"saved_splits/test, .*saved_splits/train"):
            expand_files([str(ASSETS / "saved_splits")])

    def test_only_the_files_of_the_state_are_read(self, tmp_path: Path) -> None:
        source = ASSETS / "saved_splits" / "train"
        for file in source.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        # left there by Dataset.map
        (tmp_path / "cache-1.arrow").write_bytes(b"")
        assert [p.name for p in expand_files([str(tmp_path)])] == ["data-00000-of-00001.arrow"]
        (tmp_path / "state.json").write_text("{}")
        with pytest.raises(DataError, match="save the data set again"):
            expand_files([str(tmp_path)])

    def test_a_damaged_file_is_a_wrong_file(self, tmp_path: Path) -> None:
        source = next((ASSETS / "saved_splits" / "train").glob("*.arrow")).read_bytes()
        for number, data in enumerate((b"", b"no arrow at all", source[:-200], source[:300])):
            path = tmp_path / f"{number}.arrow"
            path.write_bytes(data)
            faults = [fault for fault in read(path)[1] if fault.line is None]
            assert len(faults) == 1, number


@pytest.mark.parametrize("data", [LINES, zstd(LINES * 500)[:-40], zstd(LINES)[:9], b"\x28\xb5"])
def test_a_damaged_zstd_file_is_a_wrong_file(write: Write, data: bytes) -> None:
    faults = [fault for fault in read(write("a.jsonl.zst", data))[1] if fault.line is None]
    assert len(faults) == 1
    assert "zstd" in faults[0].reason


def test_a_packed_file_without_its_suffix_is_pointed_out(write: Write) -> None:
    assert ".zst" in file_fault(write("a.jsonl", zstd(LINES))).remedy


def test_a_large_zstd_file_is_not_held_in_memory(write: Write) -> None:
    import tracemalloc

    line = json.dumps({"text": "日本語" * 300}, ensure_ascii=False) + "\n"
    path = write("a.jsonl.zst", zstd(line.encode() * 8000))
    tracemalloc.start()
    try:
        assert sum(isinstance(item, Example) for item in read_examples([path])) == 8000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


class TestChatTemplate:
    TEMPLATE = (
        "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )

    def test_a_file_takes_the_place_of_the_models_own(
        self, tmp_path: Path, tiny_model: Path, rows_file: Path
    ) -> None:
        from aift_ray.commandline import validated
        from aift_ray.runs.prepare import prepare

        file = tmp_path / "own.jinja"
        file.write_text(self.TEMPLATE, "utf-8")
        data = {"train_files": [str(rows_file)], "chat_template": str(file)}
        config = validated({"model": str(tiny_model), "data": data})
        run = prepare(config, tmp_path / "run", 1, False, None)
        assert run.job.chat_template == self.TEMPLATE
        ids = run.prepared.rows("train").row(0)[0]
        assert run.encoder.tokenizer.decode(np.array(ids)).startswith("[user]")

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (None, "No such file"),
            (b"{{ messages", "own.jinja:1: not Jinja"),
            (b"hello", "does not read `messages`"),
            ("質問".encode("cp932"), "not UTF-8"),
        ],
    )
    def test_a_wrong_file_is_told(self, tmp_path: Path, content: bytes | None, what: str) -> None:
        from aift_ray.data.prompts.template_file import read_template

        file = tmp_path / "own.jinja"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            read_template(str(file))
        assert what in str(error.value)

    def test_blocks_of_transformers_are_known(self, tmp_path: Path) -> None:
        from aift_ray.data.prompts.template_file import read_template

        text = "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}"
        text += "{% break %}{% endfor %}"
        (tmp_path / "a.jinja").write_text(text)
        assert read_template(str(tmp_path / "a.jinja")) == text
