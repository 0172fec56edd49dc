"""Scores of one row.

Each score is a sum and the weight that it is divided by, so that sums over rows give the score of
a task: a mean for most, bits over characters or nats over tokens for texts.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib.metadata import version
from typing import Any

from aift_ray.config.tasks_config import LOWER_IS_BETTER
from aift_ray.tasks import sandbox
from aift_ray.tasks.items import ANSWER, Item
from aift_ray.tasks.task import CODE, Extract, Task

# (sum, weight), or of a correlation its moments
Score = tuple[float, ...]
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")


def choice_scores(
    task: Task,
    choices: Sequence[str],
    label: int,
    sums: Sequence[float],
    tokens: Sequence[int],
    unconditional: Sequence[float],
) -> dict[str, Score]:
    """Whether the likeliest choice is the right one, by several measures.

    Args:
        sums: log-likelihood of each choice, in nats.
        tokens: number of scored tokens of each.
        unconditional: log-likelihoods without the prompt; empty where they are not asked for.
    """
    measured: dict[str, Callable[[], list[float]]] = {
        "accuracy": lambda: list(sums),
        "accuracy_per_token": lambda: [a / max(n, 1) for a, n in zip(sums, tokens, strict=True)],
        "accuracy_per_character": lambda: [a / len(c) for a, c in zip(sums, choices, strict=True)],
        "accuracy_normalized": lambda: [a - b for a, b in zip(sums, unconditional, strict=True)],
    }
    return {name: (float(best(measured[name]()) == label), 1.0) for name in task.computed}


def best(values: Sequence[float]) -> int:
    """The index of the largest value, the first of equal ones."""
    return max(range(len(values)), key=lambda at: values[at])


def text_scores(task: Task, text: str, total: float, tokens: int) -> dict[str, Score]:
    """Of a text with the log-likelihood `total`, in nats."""
    found = {
        "bits_per_character": (-total / math.log(2), float(len(text))),
        "perplexity": (-total, float(tokens)),
    }
    return {name: found[name] for name in task.computed}


def answer_scores(task: Task, written: str, item: Item) -> tuple[str, dict[str, Score]]:
    """The answer that is found in what was written, and its scores: the best over the answers.

    Scores that a judge gives are not among them.
    """
    wanted = extract(task.extract, written)
    answer, answers, instructions = wanted.strip(), item.answers, item.instructions
    found: dict[str, Score] = {}
    for name in task.computed:
        if name in _ANSWER:
            values = [_ANSWER[name](answer, expected) for expected in answers or ("",)]
            found[name] = (max(values), 1.0)
        elif name == "pearson":
            found[name] = moments(number(answer), number(answers[0]))
        elif name == CODE:
            found[name] = (float(sandbox.passes(item.program.replace(ANSWER, wanted))), 1.0)
        elif instructions:
            loose = name.endswith("loose")
            followed = (instructions.followed_loosely if loose else instructions.followed)(written)
            found[name] = (float(sum(followed)), float(len(followed)))
            if name.startswith("ifeval_prompt"):
                found[name] = (float(all(followed)), 1.0)
    return answer, found


def moments(answer: Decimal | None, right: Decimal | None) -> Score:
    """What the correlation over rows is computed from: 1, x, y, xx, yy, xy.

    No number in an answer counts as -1, below every grade.
    """
    x = -1.0 if answer is None else float(answer)
    y = math.nan if right is None else float(right)
    return (1.0, x, y, x * x, y * y, x * y)


def row_value(name: str, score: Score) -> float:
    """A row's own value of a score, as a report shows it; of a correlation the distance."""
    if name == "pearson":
        return abs(score[1] - score[2])
    return score[0] / score[1] if score[1] else 0.0


def extract(rule: Extract, text: str) -> str:
    """The part of a text that is the answer: all of it without a pattern, "" without a match."""
    if not rule.pattern:
        return text
    matches = list(re.finditer(rule.pattern, text))
    if not matches:
        return ""
    match = matches[0 if rule.take == "first" else -1]
    return next((group for group in match.groups() if group is not None), match[0])


def cut_at(text: str, stop: Sequence[str]) -> tuple[str] | None:
    """The text before the first stop string; None where there is none."""
    places = [at for at in (text.find(each) for each in stop) if at >= 0]
    return (text[: min(places)],) if places else None


def aggregate(name: str, *sums: float) -> float:
    """The score of a task from the sums over its rows."""
    if name == "pearson":
        return _correlation(*sums)
    total, weight = sums
    mean = float(total / weight) if weight else math.nan
    return math.exp(min(mean, 700.0)) if name == "perplexity" else mean


def _correlation(n: float, x: float, y: float, xx: float, yy: float, xy: float) -> float:
    """Pearson's; 0 where one side does not vary."""
    spread = (n * xx - x * x) * (n * yy - y * y)
    return (n * xy - x * y) / math.sqrt(spread) if spread > 1e-9 * (n * xx * n * yy) else 0.0


def shown(name: str, value: float) -> str:
    """A score as a person reads it; `name` may have its task before it."""
    plain = name.rpartition("/")[2] in LOWER_IS_BETTER
    return f"{value:.3f}" if plain else f"{100 * value:.1f}%"


def normal(text: str) -> str:
    """NFKC, blanks at the ends removed."""
    return unicodedata.normalize("NFKC", text).strip()


def number(text: str) -> Decimal | None:
    """The last number of a text; commas between digits are left out."""
    matches = _NUMBER.findall(_BETWEEN_DIGITS.sub("", normal(text).replace("−", "-")))
    try:
        return Decimal(matches[-1]) if matches else None
    except InvalidOperation:
        return None


def _exact(answer: str, expected: str) -> float:
    return float(normal(answer) == normal(expected))


def _character_f1(answer: str, expected: str) -> float:
    """llm-jp-eval's: rapidfuzz's token_sort_ratio / 100."""
    from rapidfuzz import fuzz

    return float(fuzz.token_sort_ratio(expected.strip(), answer.strip())) / 100


def _numeric(answer: str, expected: str) -> float:
    right = number(expected)
    return float(right is not None and number(answer) == right)


def _rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004)."""
    from rapidfuzz.distance import LCSseq

    a, b = words(answer), words(expected)
    common = LCSseq.similarity(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _chrf(answer: str, expected: str) -> float:
    return float(_metric("chrf").sentence_score(answer, [expected]).score) / 100


def _bleu(answer: str, expected: str) -> float:
    return float(_metric("bleu").sentence_score(answer, [expected]).score) / 100


def _json_valid(answer: str, expected: str) -> float:
    try:
        json.loads(answer)
    except ValueError:
        return 0.0
    return 1.0


def words(text: str) -> list[str]:
    """Words as sacrebleu's `ja-mecab` (MeCab with the IPA dictionary) splits them."""
    return str(_tokenizer()(text)).split()


@cache
def _tokenizer() -> Any:
    from sacrebleu.tokenizers.tokenizer_ja_mecab import TokenizerJaMecab

    return TokenizerJaMecab()


@cache
def _metric(name: str) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    return CHRF() if name == "chrf" else BLEU(tokenize="ja-mecab", effective_order=True)


def computed_by(name: str) -> str:
    """The library and the tokenization of a score, with their versions; "": it has none."""
    if name in ("chrf", "bleu"):
        # its signature counts the references of the last sentence
        _metric(name).sentence_score("a", ["a"])
        return f"sacrebleu {_metric(name).get_signature()}"
    if name == "rouge_l":
        return f"longest common subsequence of words, {_tokenizer().signature()}"
    if name == "character_f1":
        return f"rapidfuzz {version('rapidfuzz')}, token_sort_ratio / 100"
    return ""


_ANSWER: dict[str, Callable[[str, str], float]] = {
    "exact_match": _exact,
    "character_f1": _character_f1,
    "numeric_match": _numeric,
    "rouge_l": _rouge_l,
    "chrf": _chrf,
    "bleu": _bleu,
    "json_valid": _json_valid,
}
