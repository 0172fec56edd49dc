"""What a worker process holds of one reward: loaded once, asked for rows many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aift_ray.rewards import user_function
from aift_ray.rewards.builtin import ANSWER_COLUMNS, BUILTIN
from aift_ray.rewards.completion_text import Completion
from aift_ray.rewards.spec import RewardSpec
from aift_ray.rewards.user_function import MORE_MEMORY, NO_MEMORY, Refused

# prompts, completions, columns and what TRL gives beside them; one reward a row
Scorer = Callable[[Sequence[Any], Sequence[Completion], Mapping[str, Any]], list[float | None]]


def load(spec: RewardSpec) -> Scorer:
    """Whatever scores rows for a reward.

    Raises:
        Refused: it can't be loaded.
    """
    if spec.kind == "function":
        return _function(spec)
    if spec.kind == "builtin":
        return _builtin(spec)
    # imported here: these load torch, or an HTTP client
    if spec.kind == "model":
        from aift_ray.rewards.reward_model import RewardModel

        return RewardModel(spec)
    from aift_ray.rewards.url_judge import UrlJudge

    return UrlJudge(spec)


def answer_column(spec: RewardSpec, columns: Sequence[str]) -> str | None:
    """The column in which a built-in reward finds right answers; None where it needs none.

    Raises:
        Refused: the rows have no such column, or several that could be it.
    """
    needed = BUILTIN[spec.target].column if spec.kind == "builtin" else None
    named = spec.options.get("column")
    if named is not None:
        if named not in columns:
            shown = ", ".join(sorted(columns)) or "none"
            raise Refused(f"the rows have no column {named!r}", remedy=f"columns are: {shown}")
        return str(named)
    if not needed:
        return None
    found = [name for name in ANSWER_COLUMNS if name in columns]
    if len(found) != 1:
        what = f"the rows have {' and '.join(found) or 'none of ' + ', '.join(ANSWER_COLUMNS)}"
        remedy = f"name the column with the right answer: {spec.target}:column=NAME"
        raise Refused(what, remedy=remedy)
    return found[0]


def check_columns(spec: RewardSpec, columns: Sequence[str]) -> None:
    """Raise Refused where a reward needs a column that the rows do not have."""
    if spec.kind == "function":
        function = user_function.load(spec.target, spec.function)
        user_function.check_columns(spec.target, spec.function, function, columns)
    elif spec.kind != "model":
        answer_column(spec, columns)


def _function(spec: RewardSpec) -> Scorer:
    function = user_function.load(spec.target, spec.function)

    def score(
        prompts: Sequence[Any], completions: Sequence[Completion], further: Mapping[str, Any]
    ) -> list[float | None]:
        where = (spec.target, spec.function)
        return user_function.call(function, *where, prompts, completions, further)

    return score


def _builtin(spec: RewardSpec) -> Scorer:
    reward = BUILTIN[spec.target]

    def score(
        prompts: Sequence[Any], completions: Sequence[Completion], further: Mapping[str, Any]
    ) -> list[float | None]:
        column = answer_column(spec, [*further])
        right = further[column] if column else [None] * len(completions)
        found: list[float | None] = []
        for row, (completion, expected) in enumerate(zip(completions, right, strict=True)):
            try:
                found.append(reward.score(completion, expected, spec.options))
            except MemoryError:
                raise Refused(NO_MEMORY, row, MORE_MEMORY) from None
            except ValueError as error:
                raise Refused(str(error), row) from error
        return found

    return score
