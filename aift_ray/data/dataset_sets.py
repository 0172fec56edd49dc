"""The sets of a run: their files, and what each of a mixture holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aift_ray.data.examples import Example
from aift_ray.data.token_types import Encoded
from aift_ray.errors import ConfigError, DataError, Problem


@dataclass(frozen=True)
class Files:
    """The files of a run, found; of each training set by itself."""

    sets: list[list[Path]]
    evaluation: list[Path]
    contamination: list[Path]

    @property
    def train(self) -> list[Path]:
        """All training files, in the order of their sets."""
        return [path for files in self.sets for path in files]


@dataclass
class SetCounts:
    """What a set of a mixture holds."""

    name: str
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0


def counted(
    rows: Iterator[tuple[Encoded, Example]], files: Files, sets: list[SetCounts]
) -> Iterator[tuple[Encoded, Example]]:
    """The same rows, counted by the set that their file is of."""
    pairs = zip(sets, files.sets, strict=False)
    set_of = {str(path): counts for counts, paths in pairs for path in paths}
    for encoded, example in rows:
        counts = set_of.get(example.file)
        if counts:
            counts.rows += 1
            counts.tokens += len(encoded)
            counts.supervised_tokens += sum(encoded.supervised[1:])
        yield encoded, example


def check_sets(files: Files) -> None:
    """Refuse a file that two sets name, as a ConfigError."""
    paths = [str(path) for path in files.train]
    problems = [
        Problem("data.mixture", f"{path} is in two sets", "name it in one")
        for path in dict.fromkeys(paths)
        if paths.count(path) > 1
    ]
    if problems:
        raise ConfigError(problems)


def check_filled(sets: list[SetCounts]) -> None:
    """Refuse a set that has no row, as a DataError."""
    problems = [
        Problem("data.mixture", f"no row of the set {each.name} can be used", "leave it out")
        for each in sets
        if not each.rows
    ]
    if problems:
        raise DataError(problems)
