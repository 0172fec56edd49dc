"""IFEval's instructions.

The checks of M-IFEval's Japanese instructions were compared with the authors' own on its 232
prompts' arguments and 20,724 answers: none differed (shisa-ai/M-IFEval at 0a9f2cdc, janome 0.5.1).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aift_ray.tasks.instructions import NAMES, Instructions, WrongInstruction, missing

FOLLOWED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "keywords:letter_frequency",
        {"letter": "い", "let_frequency": 2, "let_relation": "以上"},
        "いイ",
        "い",
    ),
    ("length_constraints:number_letters", {"num_letters": 3, "relation": "未満"}, "二字", "三文字"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "一***二***", "一***二***三"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "春"},
        "冬です。\n\n「春」です。",
        "春です。\n\n冬です。",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[名前]と[場所]", "[名前]"),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "では。\np.s. また",
        "では。追伸",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "・一\n・二", "・一\n・二\n・三"),
    ("detectable_format:number_numbered_lists", {"num_items": 1}, "1. 一", "1．一"),
    ("detectable_format:constrained_response", {}, "はい、そうです。", "はい。"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "《題》", "《 》"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "章", "num_sections": 2},
        "第1章\n第２章",
        "第1章",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "『春』", "「春」"),
    ("combination:two_responses", {}, "一******二", "一******一"),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "春とは？"},
        "春とは？ 季節です。",
        "季節です。",
    ),
    (
        "startend:end_checker",
        {"end_phrase": "以上です。"},
        "春です。以上です。」",
        "以上です。では",
    ),
    (
        "startend:sentence_unified_end",
        {"ending": "です"},
        "春です。「夏だ。」も好きです。",
        "春です。夏だ。",
    ),
    ("startend:quotation", {}, "「春です」", "春です"),
    ("letters:furigana", {}, "春（はる）と夏（なつ）", "春（はる）と夏"),
    ("letters:kansuuji", {}, "三つ", "3つ"),
    ("letters:no_katakana", {}, "はる", "ハル"),
    ("letters:katakana_only", {}, "ハル、ナツー！", "ハルと"),
    ("letters:no_hiragana", {}, "春 ハル", "はる"),
    ("letters:hiragana_only", {}, "はる、なつー！", "春"),
    ("letters:kanji", {"kanji_limit": 2, "relation": "以上"}, "春夏", "春なつ"),
    ("punctuation:no_comma", {}, "春。", "春、夏"),
    ("punctuation:no_period", {}, "春、夏", "春。"),
]
WITH_LIBRARIES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["雨", "海"]}, "海に雨が降る", "海が荒れる"),
    ("keywords:frequency", {"keyword": "雨", "frequency": 2, "relation": "以上"}, "雨また雨", "雨"),
    ("keywords:forbidden_words", {"forbidden_words": ["雨"]}, "海が荒れる", "海に雨が降る"),
    (
        "language:response_language",
        {"language": "ja"},
        "海が荒れています。",
        "The sea is rough today.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "以上"},
        "一です。二です。",
        "一です。",
    ),
    ("detectable_format:nominal_ending", {"count": 1}, "静かな海。", "海が荒れる。"),
]


def following(name: str, given: dict[str, Any], prompt: str = "") -> Instructions:
    row = {"prompt": prompt, "instruction_id_list": [name], "kwargs": [given]}
    return Instructions.of_row(row)


@pytest.mark.parametrize(("name", "given", "right", "wrong"), FOLLOWED)
def test_japanese_instructions(name: str, given: dict[str, Any], right: str, wrong: str) -> None:
    instructions = following(f"ja:{name}", given)
    assert instructions.followed(right) == [True]
    assert instructions.followed(wrong) == [False]
    assert instructions.followed("  ") == [False]


@pytest.mark.parametrize(("name", "given", "right", "wrong"), WITH_LIBRARIES)
def test_japanese_instructions_about_words(
    name: str, given: dict[str, Any], right: str, wrong: str
) -> None:
    for library in ("janome", "ja_sentence_segmenter", "langdetect"):
        pytest.importorskip(library, reason=f"{library} is not installed (extra ifeval)")
    instructions = following(f"ja:{name}", given)
    assert instructions.followed(right) == [True]
    assert instructions.followed(wrong) == [False]


def test_loose_leaves_out_what_stands_around_an_answer() -> None:
    instructions = following("ja:letters:hiragana_only", {})
    answer = "はい、承知しました。\n**はる**と**なつ**"
    assert instructions.followed(answer) == [False]
    assert instructions.followed_loosely(answer) == [True]


def test_wrong_instructions_are_named() -> None:
    with pytest.raises(WrongInstruction, match="there is no instruction ja:nothing"):
        following("ja:nothing", {})
    with pytest.raises(WrongInstruction, match="not two lists"):
        Instructions.of_row({"prompt": ""})


def test_english_instructions_are_the_harnesss() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    utils = pytest.importorskip("lm_eval.tasks.ifeval.utils", reason="IFEval's packages")
    row = {
        "key": 1,
        "prompt": "Write about the sea.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:forbidden_words"],
        "kwargs": [{}, {"forbidden_words": ["rain"]}],
    }
    instructions = Instructions.of_row(row)
    for answer in ("The sea is blue.", "The sea, it is blue.", "Sure:\nno rain\n*sea*", ""):
        expected = utils.process_results(row, [answer])
        assert instructions.followed(answer) == expected["inst_level_strict_acc"]
        assert instructions.followed_loosely(answer) == expected["inst_level_loose_acc"]


def test_what_is_absent_is_refused_with_the_installing_command(tmp_path: Path) -> None:
    from importlib.util import find_spec

    from aift_ray.config import EvaluateConfig
    from aift_ray.errors import DataError
    from tests.helpers.tasks import load_tasks

    if find_spec("janome"):
        pytest.skip("janome is installed")
    row = {"prompt": "春", "instruction_id_list": ["ja:letters:kanji"], "kwargs": [{}]}
    (tmp_path / "ja_input_data.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(DataError) as refused:
        load_tasks(EvaluateConfig(tasks=["m_ifeval_ja"], data_dir=str(tmp_path)))
    assert 'pip install "aift-ray[ifeval]"' in str(refused.value)


def test_data_of_nltk_that_are_not_there_are_told_before_an_answer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    nltk: Any = pytest.importorskip("nltk", reason="nltk is not installed")
    monkeypatch.setattr(nltk.data, "path", [])
    name = "length_constraints:number_sentences"
    found = missing([{NAMES: ["punctuation:no_comma"]}, {NAMES: [name]}])
    assert found is not None
    assert f"punkt_tab for {name}" in found[0]
    assert "nltk.downloader punkt_tab" in found[1]
    assert missing([{NAMES: ["punctuation:no_comma"]}]) is None
    assert "nltk_data" not in "".join(capfd.readouterr())
