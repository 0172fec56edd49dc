"""Environments: what a model talks to over several turns while its completion is generated.

An environment is any class with `reset` and `step`. What it does must depend on its row and the
answers alone: after the loss of its process the same answers are given to a new one.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from aift_ray.errors import ConfigError, Problem
from aift_ray.rewards.options import nearest
from aift_ray.rewards.parsing import function_in_file
from aift_ray.rewards.spec import RewardSpec

# a text is shown as a message of the user; None ends the episode
Reply = str | Sequence[Mapping[str, Any]] | None
METHODS = "def reset(self, row): ... and def step(self, answer): ..."


class Environment(Protocol):
    """One episode at a time."""

    def reset(self, row: Mapping[str, Any]) -> str | None:
        """Begin the episode of a row; what is added to the last message of its prompt, or None."""

    def step(self, answer: str) -> Reply:
        """What the model is shown after an answer; None: the episode is over."""


class Calculator:
    """Computes what an answer has between <calc> and </calc>; other answers end the episode."""

    def reset(self, row: Mapping[str, Any]) -> str | None:
        """Nothing is added to the prompt."""
        return None

    def step(self, answer: str) -> Reply:
        """The value of the last expression, or what is wrong with it."""
        found = re.findall(r"<calc>(.*?)</calc>", answer, re.DOTALL)
        return _computed(found[-1].strip()) if found else None


BUILTIN: dict[str, Callable[[], Environment]] = {"calculator": Calculator}


def parse_environment(text: str) -> RewardSpec:
    """The environment that a text names: `calculator` or `FILE.py:CLASS`.

    Raises:
        ConfigError: there is no such environment.
    """
    if text in BUILTIN:
        return RewardSpec(text, "environment", text)
    where = f"environment {text}"
    file, separator, name = text.rpartition(":")
    if not separator or not file.endswith(".py"):
        what = f"there is no environment {text!r}: a built-in name or FILE.py:CLASS is expected"
        raise ConfigError([Problem(where, what, nearest(text, list(BUILTIN)))])
    path, problems = function_in_file(where, file, name, "class")
    if problems:
        raise ConfigError(problems)
    return RewardSpec(name, "environment", path, name)


_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}
_LONGEST, _LARGEST_POWER, _LARGEST_BITS, _WHOLE_DIGITS, _DIGITS = 200, 64, 4096, 40, 12


def _computed(text: str) -> str:
    if len(text) > _LONGEST:
        return f"error: more than {_LONGEST} characters"
    try:
        value = _value(ast.parse(text.replace("×", "*").replace("÷", "/"), mode="eval").body)
        if abs(value) >= 10**_WHOLE_DIGITS:
            return "error: the value is too large"
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"error: {text} is no arithmetic expression"
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.{_DIGITS}g}"


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            bits = max(left.numerator.bit_length(), left.denominator.bit_length())
            if right.denominator != 1 or abs(right) > _LARGEST_POWER:
                raise ValueError("the power is no small whole number")
            if bits * abs(right) > _LARGEST_BITS:
                raise ValueError("the value is too large")
            return Fraction(left ** int(right))
        if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](left, right)
    raise ValueError("no arithmetic")
