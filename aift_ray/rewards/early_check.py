"""What can be told of rewards before a run starts: imports, signatures, and the columns needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aift_ray.errors import ConfigError, Problem
from aift_ray.rewards import scorer
from aift_ray.rewards.pool import Rewards
from aift_ray.rewards.spec import RewardSpec
from aift_ray.rewards.user_function import Refused


def problems_with(
    specs: Sequence[RewardSpec], columns: Sequence[str], *, timeout: float, memory: int | None
) -> list[Problem]:
    """What keeps rewards from scoring rows with some columns.

    Functions are imported in a process of their own, with its limits; reward models are not loaded,
    and judges not asked.
    """
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
                return found + rewards.check(columns)
        except ConfigError as error:
            found += error.problems
            wrong = {problem.where for problem in error.problems}
            # of the others the columns are looked at all the same
            left = [spec for spec in code if f"reward {spec.name}" not in wrong]
            code = left if len(left) < len(code) else []
    return found
