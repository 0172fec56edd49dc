"""The rewards that have a name: each scores one completion, alone and always alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aift_ray.rewards import japanese_text, json_schema, options, polite_text
from aift_ray.rewards.completion_text import Completion, answer_of, written_in
from aift_ray.rewards.options import Option
from aift_ray.tasks.scores import extract, normal, number
from aift_ray.tasks.task import Extract

# columns that hold a right answer where the option `column` names none
ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "output")
# names under which other trainers execute code
NEEDS_SANDBOX = ("code", "python", "code_execution", "e2b", "jhumaneval", "humaneval", "mbpp")
_Score = Callable[[Completion, Any, Mapping[str, Any]], float | None]


@dataclass(frozen=True)
class BuiltIn:
    """One reward.

    Attributes:
        score: of a completion, what the row's column holds (None where none is read), and the
            options; None: the row has no such reward.
        options: by name.
        column: whether a column with right answers is read: always, never, or where it is named.
        package, extra: what is installed to have it; "": nothing further.
        check: what is wrong with the options together.
    """

    score: _Score
    options: dict[str, Option]
    column: bool | None = False
    package: str = ""
    extra: str = ""
    check: Callable[[Mapping[str, Any]], list[str]] = field(default=lambda values: [])

    def problems(self, values: Mapping[str, Any]) -> list[str]:
        """What keeps it from being computed with some options."""
        found = self.check(values)
        if self.package and not find_spec(self.package):
            found.append(
                f"needs {self.package}, not installed: pip install 'aift-ray[{self.extra}]'"
            )
        return found


def _expected(value: object) -> list[str]:
    """The right answers that a row has: one, or any of several."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return [each if isinstance(each, str) else json.dumps(each) for each in several]


def _answer(completion: Completion, values: Mapping[str, Any]) -> str:
    rule = Extract(pattern=values.get("pattern", ""), take=values.get("take", "last"))
    return extract(rule, answer_of(completion)).strip()


def _exact_match(completion: Completion, right: object, values: Mapping[str, Any]) -> float | None:
    if right is None:
        return None
    answer = normal(_answer(completion, values))
    return float(any(answer == normal(each) for each in _expected(right)))


def _numeric(completion: Completion, right: object, values: Mapping[str, Any]) -> float | None:
    if right is None:
        return None
    wanted = [number(each) for each in _expected(right)]
    found = number(_answer(completion, values))
    return float(found is not None and found in wanted)


def _math(completion: Completion, right: object, values: Mapping[str, Any]) -> float | None:
    from aift_ray.rewards.mathematics import verified

    return None if right is None else verified(answer_of(completion), _expected(right))


def _regex(completion: Completion, right: object, values: Mapping[str, Any]) -> float:
    # as in format rewards: the thought is a part of what is looked at
    text = written_in(completion)
    matched = re.fullmatch if values.get("match") == "full" else re.search
    return float(matched(values["pattern"], text, re.DOTALL) is not None)


def _length(completion: Completion, right: object, values: Mapping[str, Any]) -> float:
    """1 between the bounds; outside of them it falls by the distance over `margin` to 0."""
    length = len(written_in(completion))
    distance = max(values.get("min", 0) - length, length - values.get("max", length), 0)
    margin = values.get("margin", 0)
    return max(0.0, 1.0 - distance / margin) if margin else float(distance == 0)


def _japanese(completion: Completion, right: object, values: Mapping[str, Any]) -> float:
    return japanese_text.japanese_share(written_in(completion), values.get("english_words", 4))


def _polite(completion: Completion, right: object, values: Mapping[str, Any]) -> float:
    return polite_text.polite_share(answer_of(completion))


def _json_schema(completion: Completion, right: object, values: Mapping[str, Any]) -> float:
    return json_schema.valid(answer_of(completion), values.get("schema", right))


def _bounds(values: Mapping[str, Any]) -> list[str]:
    if "min" not in values and "max" not in values:
        return ["neither min nor max is given: length:min=20,max=200"]
    if values.get("min", 0) > values.get("max", values.get("min", 0)):
        return ["min is above max"]
    return []


def _schemas(values: Mapping[str, Any]) -> list[str]:
    if {"schema", "column"} <= set(values):
        return ["schema and column both name a schema: keep one"]
    return []


def _needs_pattern(values: Mapping[str, Any]) -> list[str]:
    return [] if "pattern" in values else ["no pattern is given: regex:pattern=EXPRESSION"]


def _schema_file(value: str) -> Any:
    try:
        schema = json.loads(Path(options.text(value)).expanduser().read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"it can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if said := json_schema.wrong(schema):
        raise ValueError(f"it is no JSON schema: {said}")
    return schema


_COLUMN = {"column": Option(options.text, "column with the right answer, or a list of them")}
_FOUND = {
    "pattern": Option(options.expression, "where the answer is: the first group, or the match"),
    "take": Option(options.one_of("first", "last"), "which of several matches; default: last"),
}
BUILTIN: dict[str, BuiltIn] = {
    "exact_match": BuiltIn(_exact_match, _COLUMN | _FOUND, True),
    "numeric_match": BuiltIn(_numeric, _COLUMN | _FOUND, True),
    "math": BuiltIn(_math, _COLUMN, True, "math_verify", "math"),
    "json_schema": BuiltIn(
        _json_schema,
        {
            "schema": Option(_schema_file, "file with a JSON schema; default: any JSON is valid"),
            "column": Option(options.text, "column with a schema for each row"),
        },
        None,
        check=_schemas,
    ),
    "regex": BuiltIn(
        _regex,
        {
            "pattern": Option(options.expression, "regular expression; . matches line breaks"),
            "match": Option(options.one_of("search", "full"), "where; default: search"),
        },
        check=_needs_pattern,
    ),
    "length": BuiltIn(
        _length,
        {
            "min": Option(options.whole(0), "fewest characters"),
            "max": Option(options.whole(1), "most characters"),
            "margin": Option(options.whole(1), "characters beyond a bound at which it is 0"),
        },
        check=_bounds,
    ),
    "japanese": BuiltIn(
        _japanese,
        {"english_words": Option(options.whole(1), "English words in a row that make it 0; 4")},
    ),
    "politeness": BuiltIn(_polite, {}),
}
