"""Training rows that are nearly rows of an evaluation: found while they are read, and left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from aift_ray.config import DataConfig
from aift_ray.data.duplicates import prompt_text, whole_text
from aift_ray.data.examples import Example, Fault
from aift_ray.data.minhash import Index, signatures
from aift_ray.data.readers.reader_options import Reading
from aift_ray.data.readers.sources import read_examples

_BATCH = 256
_SHOWN = 3
# characters of a single field of a test from which it says that the test is known
_TELLING = 10


@dataclass
class _Side:
    """What training rows are held against.

    Attributes:
        what: what its rows are called.
        places: file and line of each signature.
        found: training rows that are nearly one of them, and the first of those with the other.
    """

    what: str
    index: Index
    places: list[str]
    parts: bool
    found: int = 0
    shown: list[str] = field(default_factory=list)


class Screen:
    """Finds training rows that are nearly rows to evaluate on.

    Args:
        evaluation: the run's own evaluation files; a row counts as a whole.
        contamination: files of tests; of a row each field counts, and of a training row its prompt,
            its answer, and both together.

    Attributes:
        faults: what can't be read of the files of tests.
    """

    def __init__(
        self,
        config: DataConfig,
        evaluation: Sequence[Path],
        contamination: Sequence[Path],
        reading: Reading,
    ) -> None:
        self._drops = config.near_duplicates == "drop"
        self.faults: list[Fault] = []
        self._sides = []
        for what, files, parts in (
            ("evaluation rows", evaluation, False),
            ("rows of data.contamination_files", contamination, True),
        ):
            if files:
                self._sides.append(self._side(what, files, parts, config, reading))

    def _side(
        self, what: str, files: Sequence[Path], parts: bool, config: DataConfig, reading: Reading
    ) -> _Side:
        how = replace(reading, any_row=parts)
        found, places, held = [], list[str](), list[str]()
        for item in read_examples(files, how):
            if isinstance(item, Fault):
                self.faults += [item] if parts else []
                continue
            for text in _fields(item) if parts else [whole_text(item)]:
                held.append(text)
                places.append(f"{item.file}:{item.line}")
            if len(held) >= _BATCH:
                found.append(signatures(held))
                held = []
        found.append(signatures(held))
        index = Index(np.concatenate(found), config.near_duplicate_threshold)
        return _Side(what, index, places, parts)

    def kept(self, items: Iterator[Example | Fault]) -> Iterator[Example | Fault]:
        """Training rows, without those that are left out."""
        while batch := list(islice(items, _BATCH)):
            out = set[int]()
            for side in self._sides:
                out |= self._look(side, batch)
            yield from (item for n, item in enumerate(batch) if not self._drops or n not in out)

    def _look(self, side: _Side, batch: list[Example | Fault]) -> set[int]:
        texts, owners = list[str](), list[int]()
        for number, item in enumerate(batch):
            if isinstance(item, Example):
                fields = _units(item) if side.parts else [whole_text(item)]
                texts += fields
                owners += [number] * len(fields)
        hits: dict[int, int] = {}
        for owner, place in zip(owners, side.index.like(signatures(texts)), strict=True):
            if place is not None:
                hits.setdefault(owner, place)
        side.found += len(hits)
        for owner in sorted(hits)[: _SHOWN - len(side.shown)]:
            item = batch[owner]
            side.shown.append(f"{item.file}:{item.line} (see {side.places[hits[owner]]})")
        return set(hits)

    @property
    def found(self) -> int:
        """Training rows that were found, those that two kinds of files hold twice."""
        return sum(side.found for side in self._sides)

    def warnings(self) -> list[str]:
        """A sentence for each kind of files of which rows were found."""
        done = "left out" if self._drops else "trained all the same"
        remedy = "" if self._drops else "; --data.near_duplicates drop leaves them out"
        return [
            f"near-duplicates of {side.what} among the training rows: {side.found}, {done}: "
            f"{', '.join(side.shown)}{', ...' if side.found > _SHOWN else ''}{remedy}"
            for side in self._sides
            if side.found
        ]


def _units(example: Example) -> list[str]:
    """What of a training row a test may be found in."""
    answers = [m.content for m in example.messages if m.role == "assistant"] or [example.output]
    fields = [prompt_text(example), *answers]
    return [whole_text(example), *(text for text in fields if len(text) >= _TELLING)]


def _fields(example: Example) -> list[str]:
    """What of a test may be found: its fields, one to a line where it is no row of ours."""
    if example.kind != "text":
        return _units(example)
    fields = example.output.split("\0")
    return ["".join(fields), *(text for text in fields if len(text) >= _TELLING)]
