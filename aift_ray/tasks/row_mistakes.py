"""What is wrong with the rows of a task, told by the task's own line where every row has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aift_ray.errors import Problem
from aift_ray.tasks.row_templates import WrongField
from aift_ray.tasks.task_yaml import TaskSource

_SHOWN = 20


@dataclass
class RowMistakes:
    """The mistakes of a task's rows.

    Args:
        name: of the task.
        source: where it was written; None: in no file.
        rows: how many there are, those of examples too.
        shots: how many of them are examples.
    """

    name: str
    source: TaskSource | None
    rows: int
    shots: int
    _found: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, error: ValueError, place: str) -> None:
        """A mistake in the row at `place`, FILE:LINE."""
        # other mistakes are those of instructions, which a score asks for
        named = error.field if isinstance(error, WrongField) else "scores"
        places = self._found.setdefault((named, str(error)), [])
        if place not in places[-1:]:
            places.append(place)

    def problems(self) -> list[Problem]:
        """Those of fields that no row is right for by the task's lines, others by the rows'."""
        places: dict[str, set[str]] = {}
        for (named, _), several in self._found.items():
            places.setdefault(named, set()).update(several)
        numbers = {"shot": self.shots}
        whole = {
            named
            for named, several in places.items()
            if self.source and self.source.lines and len(several) == numbers.get(named, self.rows)
        }
        told: list[Problem] = []
        for named in whole:
            what, several = next((w, p) for (name, w), p in self._found.items() if name == named)
            what = what.removeprefix(f"{named}: ")
            others = _others(len(places[named]))
            where = self.source.where(named) if self.source else ""
            told.append(Problem(where, f"{what} ({_short(several[0])}{others})"))
        of_rows = [(k, p) for k, p in self._found.items() if k[0] not in whole]
        for (named, what), several in of_rows[:_SHOWN]:
            text = f"task {self.name}: {what}{_others(len(several))}"
            told.append(Problem(several[0], text, self._remedy(named)))
        if len(of_rows) > _SHOWN:
            more = f"{len(of_rows) - _SHOWN} more mistakes in rows"
            told.append(Problem(f"task {self.name}", more))
        return told

    def _remedy(self, named: str) -> str:
        if not self.source or named not in self.source.lines:
            return ""
        return f"mend the row, or {self.source.where(named)}"


def _others(number: int) -> str:
    return f", and so in {number - 1} more rows" if number > 1 else ""


def _short(place: str) -> str:
    return Path(place).name
