"""A model behind an OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from aift_ray.config import EvaluateConfig
from aift_ray.data.examples import Example
from aift_ray.errors import AiftError
from aift_ray.evaluation.api_probe import model_api
from aift_ray.evaluation.concurrent_requests import ask_all
from aift_ray.evaluation.evaluator import Sample, TaskItems, answered
from aift_ray.evaluation.generation import GeneratedAnswer
from aift_ray.tasks.items import Item
from aift_ray.tasks.scores import Score, best, choice_scores, text_scores
from aift_ray.tasks.task import Task


class RemoteEvaluator:
    """Asks an API, several rows at a time.

    Choices are scored by `/completions` with `echo` and `logprobs`, prompt and choice in one text.
    """

    def __init__(self, config: EvaluateConfig, model: str) -> None:
        self._model, self._threads = model, config.max_concurrent
        self._api = model_api(config, model)

    def run(self, works: Sequence[TaskItems]) -> Iterator[list[Sample]]:
        """The samples of the items, in any order.

        Raises:
            AiftError: the API can't be reached, or refuses.
        """
        for work in works:
            ask: dict[str, Callable[[Task, Item], Sample]] = {
                "choice": self._choice,
                "generate": self._answer,
                "text": self._text,
            }
            answer = partial(ask[work.task.kind], work.task)
            for _, sample in ask_all(answer, work.items, self._threads):
                yield [sample]

    def _choice(self, task: Task, item: Item) -> Sample:
        assert isinstance(item.prompt, str)
        sums, tokens = [], []
        for choice in item.choices:
            total, number = self._likelihood(item.prompt, task.delimiter + choice)
            sums.append(total)
            tokens.append(number)
        free: list[float] = []
        if "accuracy_normalized" in task.computed:
            free = [self._likelihood("", task.delimiter + choice)[0] for choice in item.choices]
        scores = choice_scores(task, item.choices, item.label, sums, tokens, free)
        return self._sample(task, item, scores) | {
            "choices": list(item.choices),
            "label": item.label,
            "log_likelihoods": sums,
            "predicted": best(sums),
        }

    def _text(self, task: Task, item: Item) -> Sample:
        total, tokens = self._likelihood("", item.answers[0])
        scores = text_scores(task, item.answers[0], total, tokens)
        return self._sample(task, item, scores) | {"log_likelihood": total, "tokens": tokens}

    def _answer(self, task: Task, item: Item) -> Sample:
        body: dict[str, Any] = {"max_tokens": task.max_tokens, "temperature": 0}
        if task.stop:
            body["stop"] = task.stop
        if isinstance(item.prompt, Example):
            messages = _messages(item.prompt)
            choice = self._api.chat(messages, body)
            text = choice["message"]["content"] or ""
        else:
            choice = self._api.choice("/completions", body | {"prompt": item.prompt})
            text = choice["text"] or ""
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        return answered(self._model, task, item, GeneratedAnswer(text, 0, finish))

    def _likelihood(self, prompt: str, continuation: str) -> tuple[float, int]:
        """Log-likelihood, in nats, and number of tokens of a continuation.

        A token that holds the end of the prompt and the beginning of the continuation counts.
        """
        body = {"prompt": prompt + continuation, "echo": True, "logprobs": 1, "max_tokens": 1}
        found = self._api.choice("/completions", body | {"temperature": 0})["logprobs"]
        if not found or not found.get("text_offset"):
            raise AiftError(f"{self._model}: the API gives no logprobs of the prompt (echo)")
        whole, values, offsets = (
            len(prompt + continuation),
            found["token_logprobs"],
            found["text_offset"],
        )
        ends = [*offsets[1:], whole + 1]
        chosen = [
            value
            for value, start, end in zip(values, offsets, ends, strict=True)
            if value is not None and start < whole and end > len(prompt)
        ]
        return sum(chosen), len(chosen)

    def _sample(self, task: Task, item: Item, scores: dict[str, Score]) -> Sample:
        return {
            "task": task.name,
            "model": self._model,
            "row": item.index,
            "place": item.place,
            "prompt": item.shown_prompt,
            "scores": {name: list(score) for name, score in scores.items()},
        }


def _messages(example: Example) -> list[dict[str, str]]:
    if example.kind == "messages":
        return [{"role": m.role, "content": m.content} for m in example.messages[:-1]]
    question = example.instruction
    if example.input:
        question += f"\n\n{example.input}"
    return [{"role": "user", "content": question}]
