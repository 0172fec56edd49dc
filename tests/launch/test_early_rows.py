"""Wrong rows are told before torch is loaded, all of them where one of the first is wrong."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from aift_ray.config import DataConfig, RunConfig
from aift_ray.errors import ConfigError
from aift_ray.launch.early_checks import check_run
from aift_ray.launch.early_rows import wrong_rows
from tests.conftest import SHIPPED

HINA = str(SHIPPED)

GOOD = '{"instruction": "問", "output": "答"}\n'


def files(folder: Path, **texts: str) -> list[str]:
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    return [str(folder / f"{name}.jsonl") for name in texts]


def test_one_of_the_first_rows_brings_all_wrong_rows(tmp_path: Path) -> None:
    late = GOOD * 3000 + "{\n"
    named = files(tmp_path, first='{"instruction": "問"}\n' + GOOD * 200 + '"x"\n', late=late)
    config = DataConfig(train_files=named[:1], eval_files=[named[1], str(tmp_path / "none.jsonl")])
    found = [each.where.rsplit("/", 1)[1] for each in wrong_rows(config, "one", HINA)]
    assert found == ["first.jsonl:1", "first.jsonl:202", "late.jsonl:3001"]
    assert wrong_rows(DataConfig(train_files=named[1:]), "one", HINA) == [], "found with the tokens"


def test_where_something_else_is_wrong_later_rows_and_tables_are_looked_at_too(
    tmp_path: Path,
) -> None:
    (late,) = files(tmp_path, late=GOOD * 3000 + "{\n")
    config = DataConfig(train_files=[late])
    assert wrong_rows(config, "one", HINA) == []
    (problem,) = wrong_rows(config, "one", HINA, failing=True)
    assert problem.where == f"{late}:3001"
    table = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"instruction": ["問", "問"], "output": ["答", ""]}), table)
    config = DataConfig(train_files=[str(table)])
    assert wrong_rows(config, "one", HINA) == []
    (problem,) = wrong_rows(config, "one", HINA, failing=True)
    assert problem.where == f"{table}:2"
    with pytest.raises(ConfigError) as error:
        check_run(RunConfig(data=config, model="no/such/folder/here"))
    assert f"{table}:2" in [each.where for each in error.value.problems]


def test_what_is_skipped_is_no_problem_and_a_wrong_file_is(tmp_path: Path) -> None:
    named = files(tmp_path, rows="{\n" + GOOD)
    assert wrong_rows(DataConfig(train_files=named, on_bad_row="skip"), "one", HINA) == []
    sheet = tmp_path / "a.csv"
    sheet.write_bytes("質問,回答\n問,答\n".encode("cp932"))
    config = DataConfig(train_files=[*named, str(sheet)], on_bad_row="skip")
    (problem,) = wrong_rows(config, "one", HINA)
    assert "--data.encoding cp932" in problem.remedy


def test_rows_are_read_as_the_objective_asks(tmp_path: Path) -> None:
    named = files(tmp_path, pairs='{"prompt": "問", "chosen": "答", "rejected": "否"}\n')
    assert wrong_rows(DataConfig(train_files=named), "pair", HINA) == []
    assert len(wrong_rows(DataConfig(train_files=named), "one", HINA)) == 1


def test_rows_that_the_template_alone_refuses_are_told_with_the_others(tmp_path: Path) -> None:
    call = '{"name": "weather", "arguments": {}}'
    refused = (
        '{"messages": [{"role": "user", "content": "天気は？"}, {"role": "assistant", '
        f'"content": null, "tool_calls": [{call}]}}]}}\n'
    )
    named = files(tmp_path, rows=refused + '{"instruction": "問"}\n' + GOOD + refused)
    config = DataConfig(train_files=named)
    found = wrong_rows(config, "one", HINA)
    assert [each.where.rsplit(":", 1)[1] for each in found] == ["1", "2", "4"]
    assert 'does not write the call of "weather"' in found[0].what
    *_, last = wrong_rows(config, "one", "somebody/model-on-the-hub")
    assert last.where == "chat template"
    (only,) = wrong_rows(DataConfig(train_files=files(tmp_path, b="{\n" + GOOD)), "one", "a/b")
    assert only.where.endswith("b.jsonl:1"), "a question and its answer are refused by none"
