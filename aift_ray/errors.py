"""The errors of the package: what is wrong, where, what was expected, and the remedy.

Every error that a user can cause carries a list of problems, gathered first and raised once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# ranges of lines of a file that are told
_RANGES = 200
# the line of a file, or the index of a list
_NUMBERED = re.compile(r"(.*[:\[])(\d+)(\]?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: the setting, or the file and line.
        what: what was found there and what is allowed, one sentence.
        remedy: what to do about it; may be empty.
    """

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n      {self.remedy}" if self.remedy else text


class AiftError(Exception):
    """Base of all errors of this package. `exit_status` is what the command line returns for it."""

    exit_status = 1


class UserError(AiftError):
    """The input or the configuration is wrong; nothing was started.

    Args:
        problems: everything that is wrong, in the order in which it was found.
    """

    exit_status = 2
    title = "the input is wrong"
    # problems that are told in full; of further ones their places alone
    _in_full: int | None = None

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self._message())

    def __reduce__(self) -> tuple[type[UserError], tuple[list[Problem]]]:
        return type(self), (self.problems,)

    def _message(self) -> str:
        number = len(self.problems)
        lines = [f"{self.title} ({number} problem{'s' if number != 1 else ''})"]
        lines += [f"  - {problem}" for problem in self.problems[: self._in_full]]
        further = self.problems[self._in_full :] if self._in_full else []
        if further:
            lines.append(f"  ... and {len(further)} more, at")
            lines += [f"      {place}" for place in _places(further)]
        return "\n".join(lines)


def _places(problems: Iterable[Problem]) -> Iterator[str]:
    """Where problems are, numbers that follow each other as a range: `rows.jsonl:21-30,35`."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for problem in problems:
        found = _NUMBERED.fullmatch(problem.where)
        if found is None:
            yield problem.where
        else:
            numbers.setdefault((found[1], found[3]), set()).add(int(found[2]))
    for (before, after), several in numbers.items():
        ranges: list[list[int]] = []
        for number in sorted(several):
            if ranges and number == ranges[-1][1] + 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        told = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:_RANGES]]
        last = ranges[-1][1]
        end = f",... up to {last}" if len(ranges) > _RANGES else ""
        yield f"{before}{','.join(told)}{end}{after}"


class ConfigError(UserError):
    """A setting is unknown, out of range, or contradicts another."""

    title = "the configuration is wrong"


class ArgumentError(ConfigError, TypeError):
    """An argument of the Python API is of another type than documented."""

    title = "the arguments are wrong"


def check_arguments(owner: str, **given: tuple[object, type | tuple[type, ...]]) -> None:
    """Refuse arguments of another type than expected.

    Args:
        owner: the class whose arguments they are.
        given: {argument: (its value, what it may be)}.

    Raises:
        ArgumentError: with each argument, what is expected, and what was given.
    """
    problems = []
    for name, (value, kinds) in given.items():
        if not isinstance(value, kinds):
            allowed = kinds if isinstance(kinds, tuple) else (kinds,)
            expected = " or ".join("None" if k is type(None) else k.__name__ for k in allowed)
            what = f"a {expected} is expected, and a {type(value).__name__} was given"
            fits = [other for other, (_, k) in given.items() if isinstance(value, k)]
            remedy = f"it would fit {fits[0]}: give the arguments by name" if fits else ""
            problems.append(Problem(f"{owner}: {name}", what, remedy))
    if problems:
        raise ArgumentError(problems)


class DataError(UserError):
    """A data file or a row of it is wrong."""

    title = "the data is wrong"
    _in_full = 20


class ModelError(UserError):
    """A model folder can't be used."""

    title = "the model can't be used"


class TrainingError(AiftError):
    """A run failed after it had started; the message says what is left of it."""


class WorkersLost(TrainingError):
    """Workers crashed or were lost: by no mistake in the settings, as far as can be told."""


class RewardError(TrainingError):
    """A reward function failed on a row: by an exception, its limits, or what it returned."""


class Interrupted(AiftError):
    """A run stopped on request, with a checkpoint.

    Args:
        message: what happened and how to go on.
        exit_status: 130 after Ctrl-C, 75 after SIGTERM or a time limit.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        return type(self), (str(self), self.exit_status)
