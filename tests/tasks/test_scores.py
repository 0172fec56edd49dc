"""Scores of rows against hand-made values and the libraries of the field."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from rapidfuzz import fuzz

from aift_ray.evaluation.evaluation_results import repetition
from aift_ray.tasks.items import Item
from aift_ray.tasks.scores import (
    Score,
    aggregate,
    answer_scores,
    choice_scores,
    computed_by,
    extract,
    number,
    text_scores,
    words,
)
from aift_ray.tasks.task import Extract, Task


def generating(*scores: str, **settings: object) -> Task:
    return Task(name="t", prompt="{{ q }}", scores=list(scores), **settings)


def scored(task: Task, written: str, answers: list[str]) -> tuple[str, dict[str, Score]]:
    return answer_scores(task, written, Item(0, "rows.jsonl:1", "", answers=tuple(answers)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("答えは１８です。", "18"),
        ("3 + 4 = 7", "7"),
        ("1,234,567円", "1234567"),
        ("-5度", "-5"),
        ("約2.50", "2.5"),
        ("わかりません", None),
    ],
)
def test_the_last_number_is_the_answer(text: str, value: str | None) -> None:
    assert number(text) == (None if value is None else Decimal(value))


def test_exact_match_is_after_nfkc() -> None:
    task = generating("exact_match")
    assert scored(task, " ＡＢＣ１ ", ["ABC1"])[1] == {"exact_match": (1.0, 1.0)}
    assert scored(task, "ABC2", ["ABC1"])[1] == {"exact_match": (0.0, 1.0)}


def test_the_best_of_several_answers_counts() -> None:
    task = generating("exact_match", "character_f1")
    scores = scored(task, "愛知県", ["三重県", "愛知県"])[1]
    assert scores["exact_match"] == (1.0, 1.0)
    assert scores["character_f1"] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "right"), [("東京 都", "東京都"), ("ab cd", "cd ab"), ("", "あ")]
)
def test_character_f1_is_llm_jp_evals(answer: str, right: str) -> None:
    score = scored(generating("character_f1"), answer, [right])[1]["character_f1"][0]
    assert score == fuzz.token_sort_ratio(right, answer) / 100


def test_rouge_l_counts_words_in_order() -> None:
    # 私 は 猫 が 好き -> 私 は 犬 が 好き: four of five words
    assert len(words("私は猫が好き")) == 5
    score = scored(generating("rouge_l"), "私は犬が好き", ["私は猫が好き"])[1]["rouge_l"][0]
    assert score == pytest.approx(0.8)


def test_chrf_and_bleu_are_sacrebleus() -> None:
    import sacrebleu

    scores = scored(generating("chrf", "bleu"), "今日は雨です。", ["今日は晴れです。"])[1]
    chrf = sacrebleu.sentence_chrf("今日は雨です。", ["今日は晴れです。"]).score / 100
    assert scores["chrf"][0] == pytest.approx(chrf)
    assert 0 < scores["bleu"][0] < 1


def test_json_that_does_not_parse_is_not_valid() -> None:
    task = generating("json_valid")
    assert scored(task, '{"a": 1}', ["-"])[1]["json_valid"][0] == 1.0
    assert scored(task, '{"a": 1,}', ["-"])[1]["json_valid"][0] == 0.0


def test_the_answer_is_found_by_a_pattern() -> None:
    rule = Extract(pattern=r"答え(?:は|：)(\d+)")
    assert extract(rule, "答えは3。いや、答え：4") == "4"
    assert extract(rule.model_copy(update={"take": "first"}), "答えは3。答え：4") == "3"
    assert extract(rule, "さあ") == ""


def test_choices_by_each_measure() -> None:
    names = ["accuracy", "accuracy_per_token", "accuracy_per_character", "accuracy_normalized"]
    task = Task(name="t", kind="choice", prompt="{{ q }}", choices="c", scores=names)
    # the sum prefers the first, the mean over tokens and characters the second
    sums, free = [-4.0, -5.0], [-1.0, -9.0]
    scores = choice_scores(task, ["あ", "いうえ"], 1, sums, [1, 3], free)
    assert [scores[name][0] for name in names] == [0.0, 1.0, 1.0, 1.0]


def test_texts_are_summed_before_they_are_divided() -> None:
    task = Task(name="t", kind="text")
    one = text_scores(task, "あ" * 10, -10 * math.log(2), 4)
    two = text_scores(task, "い" * 30, -90 * math.log(2), 16)
    bits = _added(one, two, "bits_per_character")
    assert aggregate("bits_per_character", *bits) == pytest.approx(100 / 40)
    nats = _added(one, two, "perplexity")
    assert aggregate("perplexity", *nats) == pytest.approx(2 ** (100 / 20))


def _added(one: dict[str, Score], two: dict[str, Score], name: str) -> Score:
    return one[name][0] + two[name][0], one[name][1] + two[name][1]


def test_repetition_is_the_share_of_pieces_seen_before() -> None:
    assert repetition("あいうえおかきくけこ") == 0.0
    assert repetition("あ" * 100) == pytest.approx(1 - 1 / 93)


def test_scores_name_their_library_and_its_tokenization() -> None:
    pytest.importorskip("sacrebleu")
    assert "tok:ja-mecab-" in computed_by("bleu")
    assert "ja-mecab-" in computed_by("rouge_l")
    assert "|version:" in computed_by("chrf")
    assert computed_by("character_f1").startswith("rapidfuzz ")
    assert computed_by("exact_match") == ""
