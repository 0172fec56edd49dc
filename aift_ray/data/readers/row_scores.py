"""By how much one answer of a row is better than the other, where the row says so."""

from __future__ import annotations

from itertools import product
from typing import Any

from aift_ray.data.readers.wrong_row import WrongRow, kind_of

# keys that say of both answers how good they are
SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
# margins are kept in fp32
_LARGEST = 1e6


def margin(row: dict[str, Any]) -> float | None:
    """By how much the better answer is better, where the row says so."""
    for keys in product(*zip(*SCORES, strict=True)):
        better, worse = (_number(row, key) for key in keys)
        if better is not None and worse is not None and better < worse:
            what = f"{keys[0]} {better:g} is less than {keys[1]} {worse:g}"
            raise WrongRow(what, "swap the answers, or remove the row")
    margin = _number(row, "margin")
    if margin is not None and margin < 0:
        raise WrongRow(f"margin {margin:g} is less than 0", "swap the answers, or remove the row")
    return margin


def _number(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool | list | dict):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        what = f"{key} is {kind_of(value)}, expected a number"
        raise WrongRow(what, f'write "{key}": 1.5, without quotes, or remove it') from None
    if not abs(number) <= _LARGEST:
        what = f"{key} is {number:g}, expected a number up to {_LARGEST:g}"
        raise WrongRow(what, "write a smaller number, or remove it")
    return number
