"""The search space of a sweep: settings of which some are spaces instead of values.

In place of a value may stand `{uniform: [a, b]}`, `{loguniform: [a, b]}`, `{randint: [a, b]}` (both
ends may be drawn), `{choice: [...]}` or `{grid: [...]}`. An option of a list may be a space itself,
or a group of settings, which stands beside the settings of its section: so spaces can depend on
one another.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aift_ray.commandline import Draft, drafted, merge, settled, validated
from aift_ray.config import RunConfig, SweepConfig
from aift_ray.config.section import leaves
from aift_ray.errors import ConfigError, Problem

NUMBERS, LISTS = ("uniform", "loguniform", "randint"), ("choice", "grid")
KINDS = (*NUMBERS, *LISTS)
# what a drawn setting is made of: a number between bounds, or the index of an option
Choices = dict[str, float]
# of the sweep, not of its trials
_OF_THE_SWEEP = ("tune", "resume", "overwrite", "output_dir")


@dataclass(frozen=True)
class Dimension:
    """One thing to be drawn.

    Attributes:
        key: names it among all; holds the options that lead to it.
        kind: one of KINDS.
        values: two bounds, or the options of a list.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def is_list(self) -> bool:
        """Whether it is drawn from options."""
        return self.kind in LISTS

    @property
    def extremes(self) -> tuple[float, ...]:
        """Every option, or both bounds."""
        return tuple(range(len(self.values))) if self.is_list else self.values

    def value(self, drawn: float) -> Any:
        """What a drawn number stands for; numbers are kept to four digits, for the eye."""
        if self.is_list:
            return self.values[int(drawn)]
        if self.kind == "randint":
            return int(drawn)
        least, most = self.values
        return min(max(float(f"{drawn:.4g}"), least), most)


Ask = Callable[[Dimension], float]


class Space:
    """Settings of trials, drawn from a tree of values and spaces.

    Attributes:
        names: the settings in which trials differ, dotted.

    Raises:
        ConfigError: with every malformed space.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        problems = list(_problems(tree, ""))
        if problems:
            raise ConfigError(problems)
        self._tree = tree
        known = [name for name, _ in leaves(RunConfig())]
        varied = set(_varied(tree, "", False))
        self.names = [name for name in known if name in varied]

    def draw(self, ask: Ask) -> dict[str, Any]:
        """Settings without a space in them; `ask` draws, in one order, what they depend on."""
        drawn: dict[str, Any] = _drawn(self._tree, ask, "")
        return drawn

    def corners(self) -> list[Choices]:
        """Choices in which each dimension takes each of its extremes, the others their first."""
        found: list[Choices] = [{}]
        explored: set[str] = set()
        for fixed in found:
            for dimension in self.dimensions(fixed):
                if dimension.key not in explored:
                    explored.add(dimension.key)
                    found += [fixed | {dimension.key: at} for at in dimension.extremes]
        return found[1:] or found

    def dimensions(self, fixed: Choices) -> list[Dimension]:
        """What is drawn, in order, where `fixed` is chosen and else the first of everything."""
        seen: list[Dimension] = []

        def ask(dimension: Dimension) -> float:
            seen.append(dimension)
            return fixed.get(dimension.key, dimension.extremes[0])

        self.draw(ask)
        return seen

    def chosen(self, choices: Choices) -> dict[str, Any]:
        """The settings that `choices` make; what they leave out takes its first value."""
        return self.draw(lambda one: choices.get(one.key, one.extremes[0]))

    def combinations(self) -> Iterator[Choices]:
        """Every combination of all options, the last list moving fastest."""
        chosen: Choices = {}
        while True:
            order = self.dimensions(chosen)
            chosen = {one.key: chosen.get(one.key, 0) for one in order}
            yield dict(chosen)
            # like the wheels of a counter: the last one that can still move does
            while order and chosen[order[-1].key] + 1 == len(order[-1].values):
                del chosen[order.pop().key]
            if not order:
                return
            chosen[order[-1].key] += 1


def separate(values: dict[str, Any], problems: list[Problem]) -> tuple[SweepConfig, Space]:
    """The sweep's own settings, and the space of its trials.

    Args:
        values: what the user gave, spaces included.
        problems: what is wrong with it already.

    Raises:
        ConfigError: with every mistake, those at the ends of a space too.
    """
    try:
        space, drafts = drafted_trials(values)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    found = dict.fromkeys([*problems, *(each for draft in drafts for each in draft.problems)])
    if found:
        raise ConfigError(found)
    config = settled(SweepConfig, space.chosen({}) | _own(values), [])
    if config.tune.search == "grid":
        _demand_lists(space)
    return config, space


def drafted_trials(values: dict[str, Any]) -> tuple[Space, list[Draft[SweepConfig]]]:
    """The space of a sweep, and the trials at the ends of it, as far as their settings are right.

    Raises:
        ConfigError: with every malformed space.
    """
    own = _own(values)
    space = Space({name: value for name, value in values.items() if name not in own})
    corners = [space.chosen(choices) | own for choices in space.corners()]
    return space, [drafted(SweepConfig, corner) for corner in corners]


def _own(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in _OF_THE_SWEEP}


def trial_config(space: Space, choices: Choices, fixed: dict[str, Any]) -> RunConfig:
    """A trial's configuration; `fixed` are settings that the sweep has decided.

    Raises:
        ConfigError: settings that contradict each other in this trial.
    """
    values = space.chosen(choices)
    merge(values, fixed)
    return validated(values)


def _demand_lists(space: Space) -> None:
    numbers = {
        one.key
        for choices in space.corners()
        for one in space.dimensions(choices)
        if not one.is_list
    }
    if numbers:
        what = "has no list of values to combine"
        remedy = "use grid or choice, or --tune.search random"
        raise ConfigError([Problem(key, what, remedy) for key in sorted(numbers)])


def _drawn(node: object, ask: Ask, key: str) -> Any:
    if not isinstance(node, dict):
        return node
    if len(node) == 1 and (kind := next(iter(node))) in KINDS:
        values = node[kind] if kind in LISTS else _bounds(kind, node[kind])
        dimension = Dimension(key, kind, tuple(values))
        drawn = ask(dimension)
        value = dimension.value(drawn)
        return _drawn(value, ask, f"{key}[{int(drawn)}]") if dimension.is_list else value
    result: dict[str, Any] = {}
    # groups of settings last: they win over what stands beside them
    for name, below in sorted(node.items(), key=lambda item: item[0] in LISTS):
        if name in LISTS:
            merge(result, _drawn({name: below}, ask, _joined(key, name)))
        else:
            merge(result, {name: _drawn(below, ask, _joined(key, name))})
    return result


def _varied(node: object, name: str, inside: bool) -> Iterator[str]:
    """Names of the settings that a space or an option of one sets."""
    if not isinstance(node, dict):
        if inside:
            yield name
        return
    for part, below in node.items():
        if part in NUMBERS:
            yield name
        elif part in LISTS:
            for option in below:
                yield from _varied(option, name, True)
        else:
            yield from _varied(below, _joined(name, part), inside)


def _problems(node: object, name: str) -> Iterator[Problem]:
    if not isinstance(node, dict):
        return
    for part, below in node.items():
        if part in NUMBERS:
            if len(node) > 1:
                yield Problem(name, f"holds {part} and other keys; a space must be the only key")
            yield from _bound_problems(part, below, name)
        elif part in LISTS:
            yield from _list_problems(part, below, name, len(node) > 1)
        else:
            near = difflib.get_close_matches(str(part), KINDS, 1, 0.7)
            if near and len(node) == 1 and isinstance(below, list):
                what = f"there is no space '{part}'"
                yield Problem(name, what, f"did you mean '{near[0]}'?")
            yield from _problems(below, _joined(name, str(part)))


def _list_problems(kind: str, options: object, name: str, beside: bool) -> Iterator[Problem]:
    if not isinstance(options, list) or not options:
        yield Problem(name, f"{kind} needs a list of values, not {options!r}")
        return
    groups = all(isinstance(option, dict) and not set(option) & set(KINDS) for option in options)
    if beside and not groups:
        what = f"{kind} is used with other settings, so each option must be a group of settings"
        yield Problem(name, what)
    for option in options:
        yield from _problems(option, name)


def _bounds(kind: str, given: Sequence[float | str]) -> tuple[float, ...]:
    # 1e-4 without a point is a string in YAML
    return tuple(int(bound) if kind == "randint" else float(bound) for bound in given)


def _bound_problems(kind: str, given: Sequence[float | str], name: str) -> Iterator[Problem]:
    try:
        least, most = _bounds(kind, given)
        if not (math.isfinite(least) and math.isfinite(most)) or (least, most) != tuple(
            float(bound) for bound in given
        ):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        kinds = "whole numbers" if kind == "randint" else "numbers"
        yield Problem(name, f"{kind} needs two {kinds} [least, most], not {given!r}")
        return
    if least >= most:
        yield Problem(name, f"{kind} needs the lesser bound first, not {given!r}")
    elif kind == "loguniform" and least <= 0:
        yield Problem(name, f"loguniform needs bounds above 0, not {given!r}")


def _joined(name: str, part: str) -> str:
    return f"{name}.{part}" if name else str(part)
