"""What can be told of rewards before a run starts: imports, signatures, and the columns needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aift_ray.errors import ConfigError, Problem
from aift_ray.rewards import scorer
from aift_ray.rewards.pool import Rewards
from aift_ray.rewards.spec import RewardSpec
from aift_ray.rewards.user_function import Refused

# rows that a message names
_SHOWN = 8


def problems_with(
    specs: Sequence[RewardSpec],
    rows: Mapping[tuple[str, ...], Sequence[str]],
    *,
    timeout: float,
    memory: int | None,
) -> list[Problem]:
    """What keeps rewards from scoring rows.

    Functions are imported in a process of their own, with its limits; reward models are not loaded,
    and judges not asked.

    Args:
        rows: the places of the rows that have certain columns, by these.
    """
    columns = list(dict.fromkeys(name for names in rows for name in names))
    found = []
    for spec in specs:
        if spec.kind == "judge":
            try:
                scorer.check_columns(spec, columns)
            except Refused as refused:
                found.append(Problem(f"reward {spec.name}", refused.what, refused.remedy))
    limits: dict[str, Any] = {"timeout": timeout, "memory": memory, "processes": 1}
    code = [spec for spec in specs if spec.kind in ("function", "builtin")]
    while code:
        try:
            with Rewards(code, **limits) as rewards:
                wrong_everywhere = rewards.check(columns)
                known = {problem.where for problem in wrong_everywhere}
                some = _in_some_rows(rewards, rows, known)
                return found + wrong_everywhere + some
        except ConfigError as error:
            found += error.problems
            wrong = {problem.where for problem in error.problems}
            # of the others the columns are looked at all the same
            left = [spec for spec in code if f"reward {spec.name}" not in wrong]
            code = left if len(left) < len(code) else []
    return found


def _in_some_rows(
    rewards: Rewards, rows: Mapping[tuple[str, ...], Sequence[str]], known: Collection[str]
) -> list[Problem]:
    """What keeps rewards from scoring rows that lack a column of others, but for `known` ones."""
    places: dict[str, list[str]] = {}
    for columns, here in rows.items() if len(rows) > 1 else ():
        for problem in rewards.check(columns):
            if problem.where not in known:
                places.setdefault(problem.where, []).extend(here)
    found = []
    for where, lacking in places.items():
        shown = ", ".join(lacking[:_SHOWN]) + (" ..." if len(lacking) > _SHOWN else "")
        what = f"rows lack a column that it needs and others have: {shown}"
        remedy = "give the column in every row, null where there is nothing"
        found.append(Problem(where, what, remedy))
    return found
