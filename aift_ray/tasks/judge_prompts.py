"""What a model that judges is asked, and the grade in what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aift_ray.tasks.task import Judge

_GRADE = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
_ASK_GRADE = """Grade the answer of an assistant to a question.

What makes an answer good: {rubric}
{reference}
[Question]
{question}

[Answer]
{answer}
[End of the answer]

Say briefly what is good and bad in the answer. Then give a grade in double square brackets, from
[[{lowest}]] for the worst to [[{highest}]] for the best."""


def grade_prompt(judge: Judge, question: str, answer: str, right: str | None) -> str:
    """The request for a grade.

    Args:
        right: a right answer that is shown to the judge; None: none.
    """
    shown = {"rubric": judge.rubric, "question": question, "answer": answer}
    shown |= {"lowest": str(judge.lowest), "highest": str(judge.highest)}
    return filled(_ASK_GRADE, shown | {"reference": shown_right(right)})


def shown_right(right: str | None) -> str:
    """A right answer as a judge is shown it."""
    return "" if right is None else f"\n[A right answer]\n{right}\n"


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with its parts, in one pass: braces in an answer stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], template)


def read_grade(said: str, judge: Judge) -> float | None:
    """The last grade in a text as a share of the way from the lowest to the highest.

    None where there is no grade, or one out of range.
    """
    grades = _GRADE.findall(said)
    if not grades or not judge.lowest <= float(grades[-1]) <= judge.highest:
        return None
    return (float(grades[-1]) - judge.lowest) / (judge.highest - judge.lowest)
