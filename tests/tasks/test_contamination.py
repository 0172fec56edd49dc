"""Overlap of rows with a training set against a plain search for every run of characters."""

from __future__ import annotations

import random

from aift_ray.tasks.contamination import overlaps, told


def plain(fields: list[str], training: list[str], length: int) -> float | None:
    """The share by Python's own search."""
    long = [field for field in fields if len(field) >= length]
    if not long:
        return None
    covered = 0
    for field in long:
        marks = [False] * len(field)
        for at in range(len(field) - length + 1):
            if any(field[at : at + length] in text for text in training):
                marks[at : at + length] = [True] * length
        covered += sum(marks)
    return covered / sum(map(len, long))


def test_shares_are_those_of_a_plain_search() -> None:
    rng = random.Random(3)
    training = ["".join(rng.choices("春夏秋冬", k=rng.randint(2, 60))) for _ in range(40)]
    rows = [
        ["".join(rng.choices("春夏秋冬", k=rng.randint(3, 40))) for _ in range(rng.randint(1, 3))]
        for _ in range(50)
    ]
    rows += [[training[7][:30], "短"], ["短"]]
    (found,) = overlaps([rows], training, 7)
    assert list(found.shares) == [plain(row, training, 7) for row in rows]
    assert 0 < len(found.seen) < found.compared < len(rows)


def test_width_case_and_blanks_do_not_count() -> None:
    (found,) = overlaps([[["ＡＢＣ 日本の首都は東京"]]], ["... abc日本の 首都は東京です"], 8)
    assert found.shares == (1.0,)


def test_of_nothing_long_enough_nothing_is_said() -> None:
    one, two = overlaps([[["短い"]], [["とても長い質問の文"]]], ["とても長い質問の文ですよ"], 8)
    assert one.shares == (None,)
    assert one.described(8) == {"characters": 8, "compared": 0, "seen": 0, "too_short": 1}
    assert told(one.described(8)) == (
        "0 of 0 rows are in the training data; 1 more, with no field of their own of 8 "
        "characters, were not compared: a smaller --overlap_characters compares them"
    )
    assert two.seen == [0]
    assert told(two.described(8)) == "1 of 1 rows are in the training data"


def test_what_half_of_the_rows_share_tells_nothing_of_them() -> None:
    instruction = "次の文を敬体（です・ます調）に書き換えてください。"
    training = [f"{instruction}午後から雨が降るそうだ、と母が言った。"]
    rows = [[instruction, "午後から雨が降るそうだ、と母が言った"], [instruction, "短い。"]]
    rows += [[instruction.replace("（", "("), "学習データには入っていない、とても長い文"]]
    (found,) = overlaps([rows], training, 10)
    assert found.shares == (1.0, None, 0.0)
    # of one row alone nothing is shared
    (alone,) = overlaps([[[instruction]]], training, 10)
    assert alone.shares == (1.0,)
