"""Command line and YAML file to the settings of a verb; every mistake gathered into one message."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_origin

import yaml

from aift_ray.config import RunConfig, Settings
from aift_ray.config.problems import choices, flags_of, loose, unknown
from aift_ray.errors import ConfigError, Problem, UserError

S = TypeVar("S", bound=Settings)


@dataclass
class Command(Generic[S]):
    """What the user asked for: the resolved settings, and whether only to show them."""

    config: S
    dry_run: bool = False


@dataclass
class ParsedSettings:
    """What the user gave, not yet held against the settings, and what is wrong with it so far."""

    values: dict[str, Any]
    problems: list[Problem]
    dry_run: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise _Unreadable(message)


class _Unreadable(Exception):
    """The command line can't be read."""


def parse(
    argv: Sequence[str],
    settings: type[S],
    verb: str,
    description: str,
    epilog: str = "",
    check: Callable[[S], None] | None = None,
) -> Command[S]:
    """Read flags and YAML files: flags win over files, files over defaults.

    Args:
        check: as of `settled`.

    Raises:
        UserError: with every unknown, malformed or out-of-range setting, and what `check` finds.
    """
    found = given(argv, settings, verb, description, epilog)
    return Command(settled(settings, found.values, found.problems, check), found.dry_run)


def given(
    argv: Sequence[str], settings: type[S], verb: str, description: str, epilog: str = ""
) -> ParsedSettings:
    """Read flags and YAML files into one tree of values, still as they were written.

    Raises:
        ConfigError: the command line can't be read.
    """
    if {"-h", "--help", "--help-all"} & set(argv):
        from aift_ray.config.help import shown

        print(shown(settings, verb, description, epilog, "--help-all" in argv), flush=True)
        sys.exit(0)
    # takes a quarter of a second, which --help need not wait for
    from pydantic_settings import SettingsError

    own_flags = _Parser(add_help=False, allow_abbrev=False)
    own_flags.add_argument("--config", action="append", default=[])
    own_flags.add_argument("--dry-run", action="store_true")
    parser = _Parser(prog=f"aift-ray {verb}", add_help=False, allow_abbrev=False)
    try:
        own, rest = own_flags.parse_known_args(list(argv))
        values, others = _read_flags(settings, parser, rest)
    except (_Unreadable, SettingsError) as error:
        raise ConfigError([Problem("command line", str(error), "see --help")]) from None
    flags = [part.removeprefix("--") for part in others if part.startswith("-")]
    problems = [unknown(settings, name, "flag") for name in flags]
    # words behind a flag that does not exist may be its values
    problems += [] if flags else [loose(settings, word) for word in others]
    merged: dict[str, Any] = {}
    for path in own.config:
        merge(merged, _read_yaml(Path(path), problems))
    merge(merged, values)
    return ParsedSettings(merged, problems, own.dry_run)


def validated(values: dict[str, Any], settings: type[S] = RunConfig) -> S:  # type: ignore[assignment]
    """The settings of `values`; ConfigError with every mistake in it."""
    return settled(settings, values, [])


def _read_flags(
    settings: type[S], parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    from pydantic_settings import CliSettingsSource

    others: list[str] = []

    def parse_known(root: argparse.ArgumentParser, args: list[str]) -> argparse.Namespace:
        namespace, rest = root.parse_known_args(args)
        others.extend(rest)
        return namespace

    source: Any = CliSettingsSource(
        settings,  # type: ignore[arg-type]
        cli_parse_args=list(_explicit(settings, argv)),
        cli_shortcuts=settings.short_flags,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_ignore_unknown_args=True,
        cli_exit_on_error=False,
        root_parser=parser,
        parse_args_method=parse_known,
    )
    values: dict[str, Any] = {k: v for k, v in source().items() if k in settings.model_fields}
    return values, others


def _explicit(settings: type[Settings], argv: Sequence[str]) -> Iterator[str]:
    """Give a bare flag its value, and keep a list value whole where it holds a comma.

    `none` leaves a setting unset, where that is no word of its own there.
    """
    flags = flags_of(settings)
    unset = {n for n, k in flags.items() if NoneType in get_args(k) and "none" not in choices(k)}
    bare = {name: "true" for name, kind in flags.items() if kind is bool} | settings.bare_flags
    lists = {name for name, kind in flags.items() if _holds_list(kind)}
    parts = [part for raw in argv for part in _split_equals(raw)]
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else "--"
        before = parts[index - 1] if index else ""
        if before.startswith("--") and before[2:] in lists and not part.startswith("["):
            yield json.dumps([part], ensure_ascii=False)
        elif part == "none" and before.startswith("--") and before[2:] in unset:
            yield "None"
        elif len(part) == 3 and part.startswith("--"):
            # pydantic-settings gives the name of one letter one dash
            yield part[1:]
        else:
            yield part
        if part[2:] in bare and part.startswith("--") and following.startswith("--"):
            yield bare[part[2:]]


def _holds_list(kind: object) -> bool:
    return get_origin(kind) is list or any(_holds_list(part) for part in get_args(kind))


def _split_equals(raw: str) -> list[str]:
    return raw.split("=", 1) if raw.startswith("--") and "=" in raw else [raw]


def _read_yaml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(Problem(f"--config {path}", f"can't be read: {error.strerror}"))
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(Problem(f"--config {path}", f"is not YAML in UTF-8: {error}"))
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(Problem(f"--config {path}", "holds no settings, expected 'name: value'"))
        return {}
    return content


def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    """Put a tree of values over another one."""
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = value


@dataclass(frozen=True)
class Draft(Generic[S]):
    """Settings that may be wrong.

    Attributes:
        config: those that are right, with defaults for the wrong ones; None: there is none.
        problems: every mistake.
        wrong: names of wrong settings.
    """

    config: S | None
    problems: list[Problem]
    wrong: frozenset[str] = frozenset()

    def unnamed(self, problems: list[Problem]) -> list[Problem]:
        """Of further problems those that name no wrong setting, of which the value is not known."""
        return [each for each in problems if self.wrong.isdisjoint(re.findall(r"\w+", str(each)))]


def settled(
    settings: type[S],
    values: dict[str, Any],
    problems: list[Problem],
    check: Callable[[S], None] | None = None,
) -> S:
    """The settings of `values`.

    Args:
        problems: what is wrong already.
        check: looks at what the settings name, wrong ones left out, and raises a UserError.

    Raises:
        UserError: with `problems`, every mistake in `values`, and what `check` finds.
    """
    draft = drafted(settings, values)
    problems = [*problems, *draft.problems]
    if draft.config is None:
        raise ConfigError(problems)
    if check:
        try:
            check(draft.config)
        except UserError as error:
            if not problems:
                raise
            problems += draft.unnamed(error.problems)
    if problems:
        raise ConfigError([*dict.fromkeys(problems)])
    return draft.config


def drafted(settings: type[S], values: dict[str, Any]) -> Draft[S]:
    """The settings of `values`, as far as they are right, and what is wrong."""
    try:
        config = settings(**values)
        return Draft(config, config.contradictions())
    except ConfigError as error:
        wrong = error.problems
    kept = without(values, [problem.where for problem in wrong])
    names = frozenset(problem.where.rpartition(".")[2] for problem in wrong)
    try:
        config = settings(**kept)
    except ConfigError:
        return Draft(None, wrong)
    draft = Draft(config, wrong, names)
    return Draft(config, wrong + draft.unnamed(config.contradictions()), draft.wrong)


def without(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A copy of a tree of values that lacks settings of these dotted names."""
    kept = deepcopy(values)
    for each in names:
        *sections, name = each.split(".")
        within: Any = kept
        for section in sections:
            within = within.get(section) if isinstance(within, dict) else None
        if isinstance(within, dict):
            within.pop(name, None)
    return kept
