"""The built-in rewards, each on completions that are right, wrong and hostile."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aift_ray.errors import ConfigError
from aift_ray.rewards import parse
from aift_ray.rewards.scorer import answer_column, load
from aift_ray.rewards.user_function import Refused
from tests.conftest import KEITAI


def scored(text: str, completions: Sequence[Any], **columns: Sequence[Any]) -> list[float | None]:
    """Of a built-in reward, in this process."""
    return load(parse(text))([""] * len(completions), completions, columns)


def test_exact_match_is_after_nfkc_and_without_the_thought() -> None:
    completions = ["ＡＢＣ", " ABC\n", "<think>XYZ</think>\nABC", "abc", "", "ｶﾞ"]
    answers: list[Any] = ["ABC", "ABC", "ABC", "ABC", "ABC", ["キ", "ガ"]]
    found = scored("exact_match", completions, answer=answers)
    assert found == [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]


def test_a_pattern_finds_the_answer() -> None:
    completions = ["答え：東京。答え：京都", "京都"]
    wanted = {"city": ["京都", "京都"]}
    last = scored("exact_match:column=city,pattern=答え：([^。]+)", completions, **wanted)
    first = scored(
        "exact_match:column=city,pattern=答え：([^。]+),take=first", completions, **wanted
    )
    assert last == [1.0, 0.0]
    assert first == [0.0, 0.0]


def test_numbers_are_compared_by_value() -> None:
    completions = ["合計は１，２００円です。", "3 と 4 で 7.0", "-5", "−5", "なし", "12", "1/2"]
    answers: list[Any] = [1200, "#### 7", -5, "-5", 3, None, 0.5]
    found = scored("numeric_match", completions, answer=answers)
    assert found == [1.0, 1.0, 1.0, 1.0, 0.0, None, 0.0]


def test_json_of_a_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"年": {"type": "integer"}}, "required": ["年"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema), "utf-8")
    completions = ['{"年": 3}', '```json\n{"年": 3}\n```', '{"年": "3"}', "{年: 3}", "{}", "NaN"]
    assert scored(f"json_schema:schema={file}", completions) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert scored("json_schema", completions) == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    own = [schema, json.dumps(schema), {"type": "object"}]
    assert scored("json_schema:column=s", completions[:3], s=own) == [1.0, 1.0, 1.0]
    assert scored("json_schema", ["[" * 100_000]) == [0.0]


def test_a_row_whose_schema_is_none_is_refused() -> None:
    with pytest.raises(Refused, match="the schema is no JSON schema") as caught:
        scored("json_schema:column=s", ["1", "2"], s=[{"type": "integer"}, {"type": "no type"}])
    assert caught.value.row == 1


def test_regular_expressions() -> None:
    completions = ["<a>\n1\n</a>", "<a>1", [{"role": "assistant", "content": "<a></a>"}]]
    assert scored("regex:pattern=<a>.*</a>", completions) == [1.0, 0.0, 1.0]
    assert scored("regex:pattern=.{1,3},match=full", ["あいう", "あいうえ"]) == [1.0, 0.0]


def test_length_falls_off_beyond_its_bounds() -> None:
    completions = ["あ" * n for n in (0, 2, 3, 5, 6, 10)]
    assert scored("length:min=3,max=5", completions) == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    graded = scored("length:min=3,max=5,margin=4", completions)
    assert graded == [0.25, 0.75, 1.0, 1.0, 0.75, 0.0]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("東京は日本の首都です。", 1.0),
        ("APIとGPUを使って、100件を処理します。", 1.0),
        ("経済産業省、文部科学省、環境省", 1.0),
        ("髙橋さんと𠮷野さんは山﨑さんの友人です。", 1.0),
        ("コードは `print the quick brown fox` です。", 1.0),
        ("```python\nfor the quick brown fox in x: pass\n```\n出力します。", 1.0),
        ("東京はТокиоです。", 0.5),
        # Chinese in the middle, simplified, traditional, and of characters that Japanese has too
        ("東京は日本の首都です。这是一个问题。", 0.0),
        ("首都です。我是學生。", 0.0),
        ("最初に、今天我不在家了。", 0.0),
        ("首都です。The capital of Japan is Tokyo.", 0.0),
        ("도쿄", 0.0),
        ("Tokyo", 0.0),
        ("12345", 0.0),
        ("", 0.0),
    ],
)
def test_how_japanese_a_text_is(text: str, share: float) -> None:
    assert scored("japanese", [text]) == [share]


def test_politeness_tells_all_pairs_of_the_shipped_task_apart() -> None:
    for name in ("preferences", "preferences-eval"):
        lines = (KEITAI / f"{name}.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert set(scored("politeness", [row["chosen"] for row in rows])) == {1.0}
        plain = [row["rejected"] for row in rows if row["rejected"] != row["chosen"]]
        assert set(scored("politeness", plain)) == {0.0}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("まだです。", 1.0),
        ("高かったです。", 1.0),
        ("つまらないです。", 1.0),
        ("お待ちください。", 1.0),
        ("行きますよ！", 1.0),
        ("「元気です」", 1.0),
        ("雨が降るでしょう。", 1.0),
        ("雨のようです。", 1.0),
        ("行きます。行く。", 0.5),
        ("見つかったです。", 0.0),
        ("食べるます。", 0.0),
        ("買うます。", 0.0),
        ("学生だです。", 0.0),
        ("行くです。", 0.0),
        ("です。", 0.0),
        ("Yes. OK.", 0.0),
        ("", 0.0),
    ],
)
def test_polite_sentences(text: str, share: float) -> None:
    assert scored("politeness", [text]) == [share]


@pytest.mark.skipif(not find_spec("math_verify"), reason="needs the extra math")
@pytest.mark.parametrize(
    ("text", "right", "value"),
    [
        (r"答えは\boxed{\frac{1}{3}}です。", r"\frac{1}{3}", 1.0),
        (r"\boxed{\frac12}", r"\frac{1}{3}", 0.0),
        ("答えは 0.5 です", "1/2", 1.0),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1.0),
        ("１２", "12", 1.0),
        ("1,200円", 1200, 1.0),
        ("わかりません", "5", 0.0),
        ("5", "わかりません", None),
    ],
)
def test_mathematics(text: str, right: Any, value: float | None) -> None:
    assert scored("math", [text], answer=[right]) == [value]


def test_mathematics_without_its_package_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aift_ray.rewards.builtin.find_spec", lambda name: None)
    command = "pip install 'aift-ray[math]'"
    with pytest.raises(ConfigError, match=re.escape(command)):
        parse("math")


def test_the_column_of_answers_is_found_or_asked_for() -> None:
    spec = parse("exact_match")
    assert answer_column(spec, ["prompt", "solution"]) == "solution"
    with pytest.raises(Refused, match="the rows have none of answer, solution, ground_truth"):
        answer_column(spec, ["prompt"])
    with pytest.raises(Refused, match="the rows have answer and output") as caught:
        answer_column(spec, ["answer", "output"])
    assert caught.value.remedy.endswith("exact_match:column=NAME")
    with pytest.raises(Refused, match="the rows have no column 'anwser'"):
        answer_column(parse("exact_match:column=anwser"), ["answer"])
    assert answer_column(parse("politeness"), ["answer", "output"]) is None
