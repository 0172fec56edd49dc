"""Answers judged by a model behind an OpenAI-compatible API: graded, or compared in pairs.

A pair is shown in both orders, since judges favour a place (Zheng et al. 2023, arXiv:2306.05685):
an answer wins where it is preferred in both, all else is a tie.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aift_ray.config import EvaluateConfig
from aift_ray.errors import AiftError
from aift_ray.evaluation.api_probe import judge_api
from aift_ray.evaluation.concurrent_requests import ask_all
from aift_ray.evaluation.evaluation_checks import WIN_RATE
from aift_ray.evaluation.evaluator import Sample
from aift_ray.tasks.judge_prompts import filled, grade_prompt, read_grade, shown_right
from aift_ray.tasks.task import Task

_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_ASK_PAIR = """Compare the answers of two assistants to a question.

What makes an answer good: {rubric}
Neither the order of the answers nor their length must count.
{reference}
[Question]
{question}

[Answer of assistant A]
{first}
[End of A]

[Answer of assistant B]
{second}
[End of B]

Say briefly what is good and bad in both. Then give your verdict in double square brackets: [[A]]
if A is better, [[B]] if B is better, [[C]] if they are equally good."""

Samples = Mapping[tuple[str, str], Mapping[int, Sample]]


@dataclass(frozen=True)
class _Question:
    """What the judge is asked of one answer.

    Attributes:
        sample: whose answer is judged.
        first: the answer of the first model; None: the answer is graded alone.
        key: of all that the judgement depends on.
    """

    task: Task
    sample: Sample
    score: str
    first: str | None
    key: str


class Judging:
    """Asks the judge about the samples of tasks.

    Args:
        models: the first is the one that others are compared with.
    """

    def __init__(self, config: EvaluateConfig, models: Sequence[str]) -> None:
        self._api = judge_api(config)
        self._place = [str(config.judge_url), str(config.judge_model)]
        self._threads, self._models = config.max_concurrent, list(models)

    def missing(self, tasks: Iterable[Task], samples: Samples) -> list[_Question]:
        """What is still to be asked, where some was judged before."""
        return [
            question
            for task in tasks
            for score in task.judged
            for model in self._models
            for question in self._questions(task, score, model, samples)
            if question.sample.get("judged", {}).get(score, {}).get("key") != question.key
            or not question.sample["scores"][score][1]
        ]

    def run(self, questions: Sequence[_Question]) -> Iterator[Sample]:
        """The samples with what the judge said, as they come.

        Raises:
            AiftError: the API can't be reached, or refuses.
        """
        for question, (value, said) in ask_all(self._judge, questions, self._threads):
            yield _with(question, value, said)

    def _questions(
        self, task: Task, score: str, model: str, samples: Samples
    ) -> Iterator[_Question]:
        base = samples[self._models[0], task.name]
        for row, sample in sorted(samples[model, task.name].items()):
            first = base[row]["answer"] if score == WIN_RATE else None
            parts = [self._place, task.judge.model_dump(), sample["prompt"], sample["answer"]]
            text = json.dumps([*parts, sample["answers"], first, model == self._models[0]])
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            yield _Question(task, sample, score, first, key)

    def _judge(self, question: _Question) -> tuple[float | None, list[str]]:
        """The score, None where the judge gave none, and what the judge said."""
        judge, sample = question.task.judge, question.sample
        right = sample["answers"][0] if sample["answers"] else None
        if question.first is None:
            asked = grade_prompt(judge, sample["prompt"], sample["answer"], right)
            said = self._ask(asked)
            return read_grade(said, judge), [said]
        if sample["model"] == self._models[0]:
            # against itself
            return 0.5, []
        shown = {
            "rubric": judge.rubric,
            "question": sample["prompt"],
            "reference": shown_right(right),
        }
        own, first = sample["answer"], question.first
        orders = ((first, own), (own, first))
        said_both = [
            self._ask(filled(_ASK_PAIR, shown | {"first": a, "second": b})) for a, b in orders
        ]
        return _compared(*said_both), said_both

    def _ask(self, text: str) -> str:
        choice = self._api.chat([{"role": "user", "content": text}], {"temperature": 0})
        return str(choice["message"]["content"] or "")


def _compared(first: str, second: str) -> float | None:
    """1 where the later model wins in both orders, 0 where it loses in both, else 0.5.

    Args:
        first, second: what the judge said with the later model's answer as B, and as A.
    """
    verdicts = [_VERDICT.findall(said) for said in (first, second)]
    if not all(verdicts):
        return None
    pair = (verdicts[0][-1], verdicts[1][-1])
    return {("B", "A"): 1.0, ("A", "B"): 0.0}.get(pair, 0.5)


def _with(question: _Question, value: float | None, said: list[str]) -> Sample:
    sample, score = question.sample, question.score
    # weight 0: the row has no such score
    numbers = [0.0, 0.0] if value is None else [value, 1.0]
    # samples of other questions may have come meanwhile
    sample["scores"] = sample["scores"] | {score: numbers}
    told = {"key": question.key, "said": said}
    sample["judged"] = sample.get("judged", {}) | {score: told}
    return sample


def notes(tasks: Iterable[Task], models: Sequence[str], samples: Samples) -> list[str]:
    """Where the judge gave no score.

    Raises:
        AiftError: nowhere in a task did it give one.
    """
    found = []
    for task in tasks:
        for score in task.judged:
            for model in models:
                rows = samples[model, task.name].values()
                silent = [row for row in rows if not row["scores"][score][1]]
                if len(silent) == len(rows):
                    said = silent[0]["judged"][score]["said"][0][-200:] or "(it said nothing)"
                    what = (
                        f"task {task.name}: the judge gave no {score} of {model}; it ends: {said}"
                    )
                    raise AiftError(what)
                if silent:
                    what = f"the judge gave no {score} in {len(silent)} of {len(rows)} rows"
                    found.append(f"{model}, task {task.name}: {what}")
    return found


def judge(
    config: EvaluateConfig,
    models: Sequence[str],
    tasks: Sequence[Task],
    samples: Samples,
    keep: Callable[[list[Sample]], None],
    tell: Callable[[str, int], Callable[[int], None]],
) -> list[str]:
    """Judge what is to be judged; notes for the reader.

    Args:
        keep: called with each sample that was judged.
        tell: called with a name and a number of questions, gives what is called as they are done.
    """
    judged = [task for task in tasks if task.judged]
    if not judged:
        return []
    judging = Judging(config, models)
    questions = judging.missing(judged, samples)
    progress = tell(f"judge {config.judge_model}", len(questions))
    for sample in judging.run(questions):
        keep([sample])
        progress(1)
    return notes(judged, models, samples)
