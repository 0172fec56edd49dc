"""Whether a mathematical answer equals the right one, by math-verify."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# full-width letters, digits and signs; NFKC would also write x² as x2
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def verified(text: str, right: Sequence[str]) -> float | None:
    """1 where the answer in a text equals a right one, 0 where not; None: none can be read.

    Args:
        text: the answer is in a \\boxed, in LaTeX, or a plain expression; the first of these.
        right: the right answers, in LaTeX or plain.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    wanted = [parsed for each in right if (parsed := _right(each))]
    if not wanted:
        return None
    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    # the process has a time limit of its own, that does not need the signals of this library
    found = parse(text.translate(_ASCII), kinds, parsing_timeout=None)
    return float(any(verify(each, found, timeout_seconds=None) for each in wanted))


@lru_cache(maxsize=1024)
def _right(text: str) -> Any:
    from math_verify import parse

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    plain = text.translate(_ASCII)
    found = parse(plain, parsing_timeout=None)
    if not found and plain.isascii():
        # a bare LaTeX expression is found between signs of mathematics only
        found = parse(f"${plain}$", parsing_timeout=None)
    return found
