"""How much of the rows of tasks stands in a training set, by runs of characters.

Runs of characters, as text without spaces between words needs them; width, case and blanks don't
count, nor do fields that are the same in half of a task's rows or more, such as an instruction:
they tell nothing of a row. A row's overlap is the share of its characters in runs that the training
set holds too, as Llama 2's by tokens (Touvron et al. 2023, arXiv:2307.09288, appendix A.6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aift_ray.data.minhash import normal, run_hashes

# a row of this overlap and more counts as seen in training
SEEN = 0.5


@dataclass(frozen=True)
class Overlap:
    """Of the rows of one task.

    Attributes:
        shares: of each row, 0 to 1; None where no field of its own is as long as a run.
    """

    shares: tuple[float | None, ...]

    @property
    def compared(self) -> int:
        """Rows that are long enough to be found."""
        return sum(share is not None for share in self.shares)

    @property
    def seen(self) -> list[int]:
        """The rows that count as seen."""
        return [at for at, share in enumerate(self.shares) if share is not None and share >= SEEN]

    @property
    def too_short(self) -> int:
        """Rows of which nothing is known, as no field of their own is as long as a run."""
        return len(self.shares) - self.compared

    def described(self, length: int) -> dict[str, int]:
        """What results.json holds."""
        return {
            "characters": length,
            "compared": self.compared,
            "seen": len(self.seen),
            "too_short": self.too_short,
        }


def told(described: Mapping[str, int]) -> str:
    """What is known of the rows of a task, in a sentence."""
    text = f"{described['seen']} of {described['compared']} rows are in the training data"
    if short := described["too_short"]:
        text += f"; {short} more, with no field of their own of {described['characters']} "
        text += "characters, were not compared: a smaller --overlap_characters compares them"
    return text


def overlaps(
    tasks: Sequence[Sequence[Sequence[str]]], training: Iterable[str], length: int
) -> list[Overlap]:
    """The overlap of each task, given the fields of its rows.

    Args:
        training: texts of the training set, read once.
        length: characters of a run.
    """
    rows = [[_runs(fields, length) for fields in _own(task)] for task in tasks]
    every = [runs for task in rows for fields in task for runs in fields]
    known = np.unique(np.concatenate(every)) if every else np.zeros(0, np.uint64)
    met = np.zeros(len(known), np.bool_)
    for text in training if len(known) else ():
        found = run_hashes(normal(text), length)
        places = np.searchsorted(known, found)
        places[places == len(known)] = 0
        met[places[known[places] == found]] = True
    return [Overlap(tuple(_share(fields, known, met, length) for fields in task)) for task in rows]


def _own(task: Sequence[Sequence[str]]) -> list[list[str]]:
    """The fields of each row, brought to one form, without those that half of the rows share."""
    rows = [list(map(normal, fields)) for fields in task]
    number = Counter(field for fields in rows for field in set(fields))
    most = max(2, len(rows) / 2)
    return [[field for field in fields if number[field] < most] for fields in rows]


def _runs(fields: Sequence[str], length: int) -> list[npt.NDArray[np.uint64]]:
    """Hashes of the runs of each field that has any."""
    found = [run_hashes(field, length) for field in fields]
    return [runs for runs in found if len(runs)]


def _share(
    fields: Sequence[npt.NDArray[np.uint64]],
    known: npt.NDArray[np.uint64],
    met: npt.NDArray[np.bool_],
    length: int,
) -> float | None:
    if not fields:
        return None
    covered, characters = 0, 0
    for runs in fields:
        marks = np.zeros(len(runs) + length - 1, np.bool_)
        for at in np.flatnonzero(met[np.searchsorted(known, runs)]):
            marks[at : at + length] = True
        covered += int(marks.sum())
        characters += len(marks)
    return covered / characters
