"""A training set of several: which files, and how much of each an epoch takes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aift_ray.config.section import Section, setting
from aift_ray.errors import Problem

_More = Annotated[float, Field(gt=0)]


class MixedSet(Section):
    """One set of a mixture. Of weight, rows and epochs one may be given; epochs is 1 by default."""

    files: list[str] = setting([], "files, folders or globs, as data.train_files", min_length=1)
    name: str | None = setting(None, "of the set in the plan and in metrics.jsonl")
    weight: _More | None = setting(None, "share of the examples, against the other sets' weights")
    rows: Annotated[int, Field(ge=1)] | None = setting(None, "rows that an epoch takes")
    epochs: _More | None = setting(None, "passes over the set that an epoch takes")


def names(mixture: list[MixedSet]) -> list[str]:
    """The name of each set: its own, else the last part of its first file's name."""
    return [each.name or each.files[0].rstrip("/").rsplit("/", 1)[-1] for each in mixture]


def wrong_mixture(mixture: list[MixedSet], train_files: list[str]) -> list[Problem]:
    """Conflicting settings of a mixture."""
    found = []
    if mixture and train_files:
        what = "conflicts with data.mixture"
        found.append(Problem("data.train_files", what, "name all files in data.mixture"))
    for number, each in enumerate(mixture):
        given = [n for n in ("weight", "rows", "epochs") if getattr(each, n) is not None]
        if len(given) > 1:
            what = f"{' and '.join(given)} are given, expected one of them"
            found.append(Problem(f"data.mixture.{number}", what))
    weights = [each.weight is not None for each in mixture]
    if any(weights) and not all(weights):
        what = "some sets have a weight and some have not"
        found.append(Problem("data.mixture", what, "give each a weight, or none"))
    called = names(mixture)
    for name in sorted({name for name in called if called.count(name) > 1}):
        found.append(Problem("data.mixture", f"two sets are called {name}", "give each a name"))
    return found
