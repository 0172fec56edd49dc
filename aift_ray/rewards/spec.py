"""What one reward is: where it comes from, its options, and its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["function", "builtin", "model", "judge", "environment"]


@dataclass(frozen=True)
class RewardSpec:
    """One reward.

    Attributes:
        name: as metrics and messages call it; a function's own name, as in TRL.
        kind: function (of a Python file), builtin, model (a reward model's folder), judge (an
            OpenAI-compatible API), or environment (of several turns, which scores nothing).
        target: the file, the built-in name, the folder or the URL.
        function: kind function: its name in the file.
        options: by name, converted to their types; options that were not given are absent.
        weight: what the reward is multiplied by in the sum of all.
    """

    name: str
    kind: Kind
    target: str
    function: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    @property
    def rows_per_call(self) -> int:
        """Rows that one call scores; 0: all of them, as in TRL."""
        default = 0 if self.kind == "function" else 32
        return int(self.options.get("rows_per_call", default))


def distinct_names(specs: Sequence[RewardSpec]) -> list[str]:
    """The names of rewards, with a number where several have the same: regex, regex_2."""
    found: list[str] = []
    for spec in specs:
        name, number = spec.name, 2
        while name in found:
            name, number = f"{spec.name}_{number}", number + 1
        found.append(name)
    return found
