"""Built-in tasks on rows in the form in which their publishers, and the Hub, have them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aift_ray.config import EvaluateConfig
from aift_ray.errors import DataError
from aift_ray.tasks.items import Item
from aift_ray.tasks.task_files import built_in
from tests.conftest import SHARED
from tests.helpers.tasks import load_tasks

_QUIZ = {"q_id": 8939, "question": "基板は？", "label": 2}
_QUIZ |= {f"choice{n}": f"選択肢{n}" for n in range(5)}
_PAIR = {"sentence_pair_id": "0", "yjcaptions_id": "1-2-3", "sentence1": "前", "sentence2": "後"}
_SQUAD = {"id": "a1p0q0", "question": "何時？", "is_impossible": False}
_ANSWER = {"text": "三時", "answer_start": 4}
_CULTURE = {"qid": "jamc-0", "category": "culture", "question": "いつ？", "answer_index": 3}
_CULTURE |= {f"choice{n}": f"第{n}" for n in range(4)}
_TOLD = {"key": 1, "prompt": "コンマを使わずに書いてください。"}

# task: (file, rows, the right answer or label of the first, few-shot file and its rows)
CASES: dict[str, tuple[str, str, list[dict[str, Any]], Any]] = {
    "JGLUE's JCommonsenseQA": ("jcommonsenseqa", "validation.json", [_QUIZ], 2),
    "JGLUE's JNLI": ("jnli", "validation.json", [_PAIR | {"label": "neutral"}], 2),
    "JNLI on the Hub": ("jnli", "validation.parquet", [_PAIR | {"label": 1}], 1),
    "JGLUE's JSTS": ("jsts", "validation.json", [_PAIR | {"label": 4.4}], ("4.4",)),
    "JGLUE's MARC-ja": (
        "marc_ja",
        "validation.json",
        [{"review_id": "R2", "sentence": "良い\n品", "label": "negative"}],
        1,
    ),
    "MARC-ja on the Hub": (
        "marc_ja",
        "validation.parquet",
        [{"review_id": "R2", "sentence": "良い品", "label": 0}],
        0,
    ),
    "JSQuAD on the Hub": (
        "jsquad",
        "validation.parquet",
        [
            _SQUAD
            | {"title": "題", "context": "題 [SEP] 午後三時です。"}
            | {"answers": {"text": ["三時"], "answer_start": [4]}}
        ],
        ("三時",),
    ),
    "JMMLU with a header": (
        "jmmlu",
        "subset.csv",
        [{"question": "一番目は？", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "C"}],
        2,
    ),
    "JamC-QA": ("jamc_qa", "test.parquet", [_CULTURE], 3),
    "NIILC by llm-jp-eval": (
        "niilc_qa",
        "test.json",
        [{"text": "何？", "answers": ["東芝"]}],
        ("東芝",),
    ),
    "MGSM on the Hub": (
        "mgsm_ja",
        "test.parquet",
        [
            {"question": "卵は？", "answer": None, "answer_number": 18, "equation_solution": None},
            {"question": "雪は？", "answer": None, "answer_number": 3, "equation_solution": None},
        ],
        ("18",),
    ),
    "IFEval": (
        "ifeval_input_data",
        "jsonl",
        [
            _TOLD
            | {"instruction_id_list": ["punctuation:no_comma"]}
            | {"kwargs": [{"num_words": None, "relation": None}]}
        ],
        (),
    ),
    "JHumanEval": (
        "jhumaneval.test",
        "jsonl",
        [
            {"task_id": "HumanEval/0", "prompt_en": "def f():\n", "prompt": "def f():\n"}
            | {"entry_point": "f", "canonical_solution": "    return 1\n"}
            | {"test": "def check(f):\n    assert f() == 1\n"}
        ],
        (),
    ),
    "M-IFEval": (
        "ja_input_data",
        "jsonl",
        [_TOLD | {"instruction_id_list": ["ja:punctuation:no_comma"], "kwargs": [{}]}],
        (),
    ),
}
_TASKS = {
    "jhumaneval.test": "jhumaneval",
    "niilc_qa": "niilc",
    "ifeval_input_data": "ifeval",
    "ja_input_data": "m_ifeval_ja",
}
_NEEDS = {"ifeval": "lm_eval", "m_ifeval_ja": "janome"}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows in the form that a suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
        )


def loaded(task: str, folder: Path, shots: int = 0) -> list[Item]:
    """The items of a built-in task."""
    config = EvaluateConfig(tasks=[task], data_dir=str(folder), num_few_shot=shots)
    return load_tasks(config)[0].items


@pytest.mark.parametrize("case", CASES)
def test_a_published_form_is_read(case: str, tmp_path: Path) -> None:
    stem, suffix, rows, right = CASES[case]
    task = _TASKS.get(stem, stem)
    if task in _NEEDS and not find_spec(_NEEDS[task]):
        pytest.skip("needs the extra ifeval")
    write(tmp_path / f"{stem}.{suffix}", rows)
    items = loaded(task, tmp_path)
    assert len(items) == len(rows)
    assert (items[0].answers if isinstance(right, tuple) else items[0].label) == right


def test_every_built_in_task_has_a_published_form() -> None:
    covered = {_TASKS.get(stem, stem) for stem, *_ in CASES.values()}
    # first turns, in the form of the files under shared
    assert set(built_in()) - covered == {"japanese_mt_bench", "japanese_vicuna_qa"}


def test_squads_own_file_gives_a_row_for_each_question(tmp_path: Path) -> None:
    questions = [_SQUAD | {"answers": [_ANSWER]}, _SQUAD | {"answers": [_ANSWER, _ANSWER]}]
    paragraph = {"context": "題 [SEP] 午後三時です。", "qas": questions}
    content = {"version": "1.1", "data": [{"title": "題", "paragraphs": [paragraph]}]}
    file = tmp_path / "jsquad.validation.json"
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    first, second = loaded("jsquad", tmp_path)
    assert first.answers == ("三時",)
    assert second.answers == ("三時", "三時")
    assert first.prompt == "文章：午後三時です。\n質問：何時？\n答え："


def test_tables_without_a_line_of_names(tmp_path: Path) -> None:
    lines = ["卵は？\t18", "雪は？\t1,800", "鳥は？\t0.5"]
    (tmp_path / "mgsm_ja.test.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    items = loaded("mgsm_ja", tmp_path)
    assert [item.answers for item in items] == [("18",), ("1,800",), ("0.5",)]
    assert items[2].place == "mgsm_ja.test.tsv:3"
    (tmp_path / "jmmlu.subset.csv").write_text(
        "一番目は？,a,b,c,d,B\n二番目は？,1,2,3,4,D\n", "utf-8"
    )
    items = loaded("jmmlu", tmp_path)
    assert [item.label for item in items] == [1, 3]
    assert "A. a\nB. b\n" in str(items[0].prompt)


def test_examples_of_mgsm_on_the_hub_show_their_solutions(tmp_path: Path) -> None:
    example = {
        "question": "問題：球は？",
        "answer": "ステップごとの答え：11です。",
        "answer_number": 11,
    }
    write(tmp_path / "mgsm_ja.exemplars.parquet", [example])
    write(tmp_path / "mgsm_ja.test.parquet", CASES["MGSM on the Hub"][2])
    first = loaded("mgsm_ja", tmp_path, shots=1)[0]
    assert str(first.prompt).startswith(
        "問題：球は？\nステップごとの答え：11です。\n\n問題：卵は？\n"
    )


@pytest.mark.skipif(not (SHARED / "data" / "eval").is_dir(), reason="needs the shared data")
def test_every_file_of_the_shared_data_is_read() -> None:
    folder = SHARED / "data" / "eval"
    wanted = {"jcommonsenseqa": 1119, "jnli": 2434, "jsquad": 1141, "jsts": 1457, "jmmlu": 1020}
    wanted |= {"mgsm_ja": 250, "niilc": 200, "japanese_mt_bench": 80, "japanese_vicuna_qa": 80}
    assert {task: len(loaded(task, folder)) for task in wanted} == wanted


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"CC BY-SA 4\.0, https://huggingface\.co/datasets/sbintuitions"
    ):
        loaded("jamc_qa", tmp_path)
