"""Repeated, contradicting and leaked rows are counted and named."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from aift_ray.data import duplicates
from aift_ray.data.duplicates import DuplicateCounter
from aift_ray.data.examples import Example, Message


def row(line: int, prompt: str, answer: str, file: str = "t", given: str = "") -> Example:
    return Example("instruction", file, line, instruction=prompt, input=given, output=answer)


def chat(line: int, *texts: str) -> Example:
    roles = ("user", "assistant") * len(texts)
    messages = tuple(Message(r, text) for r, text in zip(roles, texts, strict=False))
    return Example("messages", "t", line, messages=messages)


def warnings(train: list[Example], evaluation: list[Example] | None = None) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        counter = DuplicateCounter(Path(folder) / "digests")
        for example in train:
            counter.add_train(example)
        for example in evaluation or []:
            counter.add_eval(example)
        return counter.warnings()


def test_different_rows_give_no_warning() -> None:
    assert warnings([row(1, "a", "x"), row(2, "b", "x")], [row(1, "c", "x", "e")]) == []


def test_exact_repeats_are_counted_with_the_first_row() -> None:
    train = [row(1, "a", "x"), row(2, "b", "y"), row(4, "a", "x"), row(7, "a", "x")]
    assert warnings(train) == [
        "2 training rows repeat an earlier row: t:4 (see t:1), t:7 (see t:1)"
    ]


def test_another_answer_to_the_same_prompt_is_a_contradiction() -> None:
    assert warnings([row(2, "a", "x"), row(9, "a", "y")]) == [
        "1 training row gives another answer to an earlier prompt: t:9 (see t:2)"
    ]


def test_a_repeated_contradiction_counts_as_a_repeat() -> None:
    found = warnings([row(1, "a", "x"), row(2, "a", "y"), row(3, "a", "y")])
    assert found == [
        "1 training row repeats an earlier row: t:3 (see t:2)",
        "1 training row gives another answer to an earlier prompt: t:2 (see t:1)",
    ]


def test_the_input_is_part_of_the_prompt() -> None:
    assert warnings([row(1, "a", "x", given="p"), row(2, "a", "y", given="q")]) == []


def test_texts_cut_at_other_places_are_not_the_same() -> None:
    assert warnings([row(1, "ab", "x", given="c"), row(2, "a", "x", given="bc")]) == []


def test_evaluation_rows_that_stand_in_training_are_counted() -> None:
    train = [row(2, "a", "x"), row(7, "b", "y")]
    evaluation = [row(1, "a", "x", "e"), row(2, "b", "z", "e"), row(3, "c", "x", "e")]
    assert warnings(train, evaluation) == [
        "1 evaluation row is also in the training data: e:1 (see t:2)",
        "1 evaluation row has a prompt of the training data, with another answer: e:2 (see t:7)",
    ]


def test_repeats_within_evaluation_are_counted() -> None:
    assert warnings([], [row(1, "a", "x", "e"), row(2, "a", "x", "e")]) == [
        "1 evaluation row repeats an earlier row: e:2 (see e:1)"
    ]


def test_only_the_first_places_are_named() -> None:
    found = warnings([row(line, "a", "x") for line in range(1, 7)])
    assert found == [
        "5 training rows repeat an earlier row: t:2 (see t:1), t:3 (see t:1), t:4 (see t:1), ..."
    ]


def test_texts_never_contradict_each_other() -> None:
    texts = [Example("text", "t", n, output=text) for n, text in enumerate("aba", 1)]
    assert warnings(texts) == ["1 training row repeats an earlier row: t:3 (see t:1)"]


def test_the_prompt_of_a_chat_is_all_before_its_last_answer() -> None:
    assert warnings([chat(1, "a", "x", "b", "y"), chat(2, "a", "x", "b", "z")]) == [
        "1 training row gives another answer to an earlier prompt: t:2 (see t:1)"
    ]
    assert warnings([chat(1, "a", "x", "b", "y"), chat(2, "a", "w", "b", "y")]) == []


def test_many_rows_go_to_files_and_the_findings_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = [row(n, str(n % 50), str(n % 70), "ab"[n // 300]) for n in range(600)]
    evaluation = [row(n, str(n), str(n + n // 40), "e") for n in range(60)]
    texts = [Example("text", "t", n, output=str(n % 90)) for n in range(100)]
    found = warnings(train + texts, evaluation)
    assert len(found) == 4
    monkeypatch.setattr(duplicates, "_HELD", 7)
    assert warnings(train + texts, evaluation) == found
