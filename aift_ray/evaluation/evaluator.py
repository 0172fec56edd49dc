"""One model on the items of tasks; runs in each worker."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aift_ray.evaluation import harness_run as harness
from aift_ray.evaluation.evaluated_models import EvaluatedModel, open_candidate
from aift_ray.evaluation.generation import GeneratedAnswer, write
from aift_ray.evaluation.likelihood import Likelihoods
from aift_ray.tasks.harness_tasks import HarnessTask
from aift_ray.tasks.items import Item
from aift_ray.tasks.scores import (
    Score,
    answer_scores,
    best,
    choice_scores,
    text_scores,
)
from aift_ray.tasks.task import Task
from aift_ray.tasks.task_prompts import ItemEncoder

# items whose likelihoods are computed between two reports
_ITEMS = 256
# of a text, its first characters that a sample keeps
_CHARACTERS = 2000

# a line of samples.jsonl
Sample = dict[str, Any]


@dataclass(frozen=True)
class TaskItems:
    """Items of one task."""

    task: Task
    items: list[Item]
    harness: HarnessTask | None = None


@dataclass(frozen=True)
class EvaluatorOptions:
    """How a worker computes; see `EvaluateConfig`."""

    dtype: str
    tokens_per_batch: int
    slots: int
    threads: int | None = None


class Evaluator:
    """A loaded model.

    Args:
        gpu: compute on the first GPU that this process sees.
    """

    def __init__(self, candidate: EvaluatedModel, options: EvaluatorOptions, gpu: bool) -> None:
        import torch

        from aift_ray.utils.quiet import quiet

        quiet()
        if options.threads:
            torch.set_num_threads(options.threads)
        assert candidate.place
        device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        opened = open_candidate(candidate.place, candidate.name, options.dtype, device)
        self._name, self._options = candidate.name, options
        self._opened, self._model = opened, opened.model
        self._encoder = ItemEncoder(opened.prompts, opened.context)
        self._likelihoods = Likelihoods(opened.model, options.tokens_per_batch)

    def run(self, works: Sequence[TaskItems]) -> Iterator[list[Sample]]:
        """The samples of the items, some at a time, in any order."""
        for work in works:
            if work.harness:
                yield harness.run(self._opened, self._name, work.task, work.items, work.harness)
                continue
            kinds = {"choice": self._choices, "text": self._texts, "generate": self._answers}
            yield from kinds[work.task.kind](work.task, work.items)

    def notes(self) -> list[str]:
        """What a reader of the scores should know."""
        found = []
        if self._encoder.truncated:
            what = f"{self._encoder.truncated} prompts were longer than the model's context"
            found.append(f"{self._name}: {what} and lost their beginning")
        if self._likelihoods.plain:
            found.append(f"{self._name}: read row by row, since {self._likelihoods.plain}")
        return found

    def _choices(self, task: Task, items: Sequence[Item]) -> Iterator[list[Sample]]:
        normalized = "accuracy_normalized" in task.computed
        for part in _parts(items):
            groups = [self._encoder.choices(i.prompt, i.choices, task.delimiter) for i in part]
            sums = self._likelihoods.sums(groups)
            alone: list[list[float]] = [[] for _ in part]
            if normalized:
                alone = self._unconditional(task, part)
            samples = []
            for item, group, values, free in zip(part, groups, sums, alone, strict=True):
                tokens = [len(each.ids) - each.start for each in group]
                scores = choice_scores(task, item.choices, item.label, values, tokens, free)
                sample = _sample(self._name, task, item, scores)
                sample |= {"choices": list(item.choices), "label": item.label}
                sample |= {"log_likelihoods": values, "predicted": best(values)}
                samples.append(sample)
            yield samples

    def _unconditional(self, task: Task, items: Sequence[Item]) -> list[list[float]]:
        distinct = list(dict.fromkeys(choice for item in items for choice in item.choices))
        encoded = self._encoder.unconditional(distinct, task.delimiter)
        values = self._likelihoods.sums([[each] for each in encoded])
        known = {choice: value[0] for choice, value in zip(distinct, values, strict=True)}
        return [[known[choice] for choice in item.choices] for item in items]

    def _texts(self, task: Task, items: Sequence[Item]) -> Iterator[list[Sample]]:
        for part in _parts(items):
            windows = [self._encoder.windows(item.answers[0]) for item in part]
            sums = iter(self._likelihoods.sums([[each] for pieces in windows for each in pieces]))
            samples = []
            for item, pieces in zip(part, windows, strict=True):
                total = sum(next(sums)[0] for _ in pieces)
                tokens = sum(len(piece.ids) - piece.start for piece in pieces)
                scores = text_scores(task, item.answers[0], total, tokens)
                sample = _sample(self._name, task, item, scores)
                sample["text"] = item.answers[0][:_CHARACTERS]
                samples.append(sample | {"log_likelihood": total, "tokens": tokens})
            yield samples

    def _answers(self, task: Task, items: Sequence[Item]) -> Iterator[list[Sample]]:
        prompts = [self._encoder.prompt(item.prompt, task.max_tokens) for item in items]

        def work(put: Callable[[int, GeneratedAnswer], None]) -> None:
            slots = self._options.slots
            write(self._model, self._encoder, prompts, task.max_tokens, task.stop, slots, put)

        for at, written in _streamed(work):
            yield [answered(self._name, task, items[at], written)]


def answered(name: str, task: Task, item: Item, written: GeneratedAnswer) -> Sample:
    """The sample of an answer that was written."""
    answer, scores = answer_scores(task, written.text, item)
    sample = _sample(name, task, item, scores)
    return sample | {
        "answers": list(item.answers),
        "written": written.text,
        "answer": answer,
        "tokens": written.tokens,
        "finish": written.finish,
    }


def _sample(name: str, task: Task, item: Item, scores: dict[str, Score]) -> Sample:
    return {
        "task": task.name,
        "model": name,
        "row": item.index,
        "place": item.place,
        "prompt": item.shown_prompt,
        "scores": {name: list(score) for name, score in scores.items()},
    }


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _ITEMS):
        yield items[start : start + _ITEMS]


def _streamed(
    work: Callable[[Callable[[int, GeneratedAnswer], None]], None],
) -> Iterator[tuple[int, GeneratedAnswer]]:
    """What `work` hands over, as it comes; it runs in a thread of its own."""
    handed: queue.Queue[tuple[int, GeneratedAnswer] | BaseException | None] = queue.Queue()

    def run() -> None:
        try:
            work(lambda at, written: handed.put((at, written)))
        except BaseException as error:
            handed.put(error)
        else:
            handed.put(None)

    threading.Thread(target=run, name="answers", daemon=True).start()
    while (item := handed.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
