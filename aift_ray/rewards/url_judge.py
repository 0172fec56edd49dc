"""Completions graded by a model behind an OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aift_ray.errors import AiftError
from aift_ray.rewards.completion_text import Completion, answer_of
from aift_ray.rewards.spec import RewardSpec
from aift_ray.rewards.user_function import Refused
from aift_ray.tasks.judge_prompts import grade_prompt, read_grade
from aift_ray.tasks.task import Judge
from aift_ray.utils.api_client import Api, read_key

_MAX_CONCURRENT = 16


class UrlJudge:
    """The grade of each completion as a share of the way from the lowest to the highest.

    Args:
        spec: its target is the URL, its options those of `judge_options`.

    Raises:
        ConfigError: the file of the key can't be read.
    """

    def __init__(self, spec: RewardSpec) -> None:
        options = spec.options
        key = read_key("key_file", options.get("key_file"), ("JUDGE_API_KEY", "OPENAI_API_KEY"))
        self._api = Api(spec.target, options["model"], key)
        given = {name: options[name] for name in ("rubric", "lowest", "highest") if name in options}
        self._judge = Judge(**given)
        self._column = options.get("column")
        self._threads = int(options.get("max_concurrent", _MAX_CONCURRENT))

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], further: Mapping[str, Any]
    ) -> list[float | None]:
        """The grades of some completions; None where the judge gives none.

        Raises:
            Refused: the API can't be reached or refuses, on the first such row.
        """
        right = further[self._column] if self._column else [None] * len(completions)
        rows = zip(prompts, completions, right, strict=True)
        with ThreadPoolExecutor(self._threads) as pool:
            asked = [pool.submit(self._grade, *row) for row in rows]
            found = []
            for row, each in enumerate(asked):
                try:
                    found.append(each.result())
                except AiftError as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise Refused(str(error), row) from None
        return found

    def _grade(self, prompt: Completion, completion: Completion, right: object) -> float | None:
        shown = None if right is None else str(right[0] if isinstance(right, list) else right)
        text = grade_prompt(self._judge, _question(prompt), answer_of(completion), shown)
        choice = self._api.chat([{"role": "user", "content": text}], {"temperature": 0})
        return read_grade(str(choice["message"]["content"] or ""), self._judge)


def _question(prompt: Completion) -> str:
    """A prompt as the judge is shown it: the last question, or the whole conversation."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0].get("content", ""))
    return "\n\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)
