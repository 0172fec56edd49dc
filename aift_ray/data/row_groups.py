"""Which rows of a training set belong together, so that a split never parts them.

Pieces of a document, rows that are equal, answers to the same prompt, and rows that are nearly
equal are one group: what is held out for evaluation is then in no part of what is trained.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aift_ray.data.duplicates import Digests, digests, whole_text
from aift_ray.data.examples import Example
from aift_ray.data.minhash import NUMBERS, links, signatures

Groups = npt.NDArray[np.int32]

_BATCH = 256


class Documents:
    """Fed with the examples of a set in their order, one for each document.

    Args:
        folder: gets a file of 512 bytes a document where near-duplicates count.
        threshold: similarity from which two documents are near-duplicates; None: none are.
    """

    def __init__(self, folder: Path, threshold: float | None) -> None:
        self._threshold, self._file = threshold, folder / "signatures"
        self._rows, self._prompts = array("Q"), array("Q")
        self._pieces = array("i")
        self._texts: list[str] = []
        self.near = 0

    def add(self, example: Example, pieces: int, marks: Digests | None = None) -> None:
        """Keep a document, which has become so many token rows; its `digests` may be known."""
        row, prompt = marks or digests(example)
        self._rows.append(int.from_bytes(row[:8], "little"))
        self._prompts.append(int.from_bytes(prompt[:8], "little") if any(prompt) else 0)
        self._pieces.append(pieces)
        if self._threshold is not None:
            self._texts.append(whole_text(example))
            if len(self._texts) == _BATCH:
                self._write()

    def groups(self) -> Groups:
        """The group of each token row, numbered by the first document of the group."""
        number = len(self._rows)
        parents = list(range(number))
        for digest in (self._rows, self._prompts):
            values = np.frombuffer(digest, np.uint64) if number else np.zeros(0, np.uint64)
            _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
            heads = first[inverse]
            same = np.flatnonzero((heads != np.arange(number)) & (values != 0))
            _join(parents, zip(heads[same].tolist(), same.tolist(), strict=True))
        if self._threshold is not None and number:
            self._write()
            found = np.memmap(self._file, np.uint32, "r", shape=(number, NUMBERS))
            self.near = _join(parents, links(found, self._threshold))
        roots = np.array([_root(parents, each) for each in range(number)], np.int32)
        return np.repeat(roots, np.frombuffer(self._pieces, np.int32) if number else 0)

    def warnings(self) -> list[str]:
        """What to tell of near-duplicates, after `groups`."""
        if not self.near:
            return []
        what = "are nearly equal to others" if self.near > 1 else "is nearly equal to another"
        rows = "rows" if self.near > 1 else "row"
        return [f"{self.near} training {rows} {what}: a split keeps them on one side"]

    def _write(self) -> None:
        with self._file.open("ab") as file:
            file.write(signatures(self._texts).tobytes())
        self._texts = []


def _root(parents: list[int], at: int) -> int:
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at


def _join(parents: list[int], pairs: Iterable[tuple[int, int]]) -> int:
    """Join the groups of each pair; how many were two before."""
    joined = 0
    for one, other in pairs:
        first, second = sorted((_root(parents, one), _root(parents, other)))
        parents[second] = first
        joined += first != second
    return joined
