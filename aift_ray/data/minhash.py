"""MinHash signatures of texts over runs of characters, and which texts they find alike.

Character 5-grams, as text without spaces between words needs them (Okazaki et al. 2024, "Building a
Large Japanese Web Corpus for Large Language Models", section 3.4). A signature's agreement with
another estimates the share of 5-grams that two texts have in common (Broder 1997).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

Signatures = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]

GRAM = 5
NUMBERS = 128
# a pair with a similarity of 0.8 shares a band all but always, one of 0.5 in 87 of 100 cases
_BANDS = 32
_SEED = 42
_FACTOR = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def signatures(texts: Sequence[str]) -> Signatures:
    """The signature of each text, shape (texts, NUMBERS); width, case and blanks don't count."""
    if not texts:
        return np.zeros((0, NUMBERS), np.uint32)
    # a text shorter than a run of characters is one run
    plain = [normal(text).ljust(GRAM, "\0") for text in texts]
    lengths = np.array([len(text) for text in plain], np.int64)
    hashes = run_hashes("".join(plain), GRAM)
    ends = np.cumsum(lengths)
    # a run of characters that goes on into the next text is none
    whole = np.ones(len(hashes), bool)
    for back in range(1, GRAM):
        cut = ends[:-1] - back
        whole[cut[cut < len(whole)]] = False
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths - GRAM + 1)])
    made: Any = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes[whole], offsets.astype(np.uint64), NUMBERS, _SEED
    )
    return np.array(made.to_rows(), np.uint32)


def normal(text: str) -> str:
    """A text as it is compared: width, case and blanks don't count."""
    if not text.isascii() and not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
    return "".join(text.casefold().split())


def run_hashes(text: str, length: int) -> Keys:
    """A hash of each run of `length` characters of a text, in their order."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    number = max(0, len(points) - length + 1)
    found = np.zeros(number, np.uint64)
    for place in range(length):
        found += points[place : place + number] * np.uint64(pow(_FACTOR, place + 1, 2**64))
    found ^= found >> np.uint64(31)
    found *= _MIX
    return found ^ (found >> np.uint64(29))


def band_keys(found: Signatures) -> Keys:
    """A key for each band of each signature, shape (texts, bands); like texts share one."""
    bands = found.reshape(len(found), _BANDS, NUMBERS // _BANDS)
    keys = np.zeros((len(found), _BANDS), np.uint64)
    for place in range(bands.shape[2]):
        keys = (keys ^ bands[:, :, place]) * _MIX
        keys ^= keys >> np.uint64(32)
    return keys


class Index:
    """Signatures in which those that are like others are looked up.

    Args:
        found: shape (texts, NUMBERS).
        threshold: share of equal numbers from which two are alike.
    """

    def __init__(self, found: Signatures, threshold: float) -> None:
        self._found, self._threshold = found, threshold
        keys = band_keys(found)
        self._order = np.argsort(keys, axis=0, kind="stable")
        self._keys = np.take_along_axis(keys, self._order, axis=0)

    def __len__(self) -> int:
        return len(self._found)

    def like(self, asked: Signatures) -> list[int | None]:
        """For each signature the first of the index that is like it, or None."""
        nearest: list[int | None] = [None] * len(asked)
        if not len(self._found):
            return nearest
        candidates: dict[int, set[int]] = {}
        for row, place in self._candidates(band_keys(asked)):
            candidates.setdefault(row, set()).add(place)
        for row, places in candidates.items():
            alike = (self._found[sorted(places)] == asked[row]).mean(axis=1) >= self._threshold
            if alike.any():
                nearest[row] = sorted(places)[int(np.argmax(alike))]
        return nearest

    def _candidates(self, asked: Keys) -> Iterator[tuple[int, int]]:
        for band in range(asked.shape[1]):
            keys = self._keys[:, band]
            first = np.searchsorted(keys, asked[:, band], "left")
            last = np.searchsorted(keys, asked[:, band], "right")
            for row in np.flatnonzero(last > first):
                for place in self._order[first[row] : last[row], band]:
                    yield int(row), int(place)


def links(found: Signatures, threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs of texts that are alike; of many that are like one, each with that one."""
    keys = band_keys(found)
    for band in range(keys.shape[1] if len(keys) else 0):
        order = np.argsort(keys[:, band], kind="stable")
        column = keys[order, band]
        starts = np.flatnonzero(np.concatenate([[True], column[1:] != column[:-1]]))
        heads = np.repeat(order[starts], np.diff(np.append(starts, len(column))))
        pairs = np.flatnonzero(heads != order)
        for start in range(0, len(pairs), 4096):
            part = pairs[start : start + 4096]
            alike = (found[heads[part]] == found[order[part]]).mean(axis=1) >= threshold
            for place in part[alike]:
                yield int(heads[place]), int(order[place])
