"""Command line and YAML file to the settings of a verb; every mistake gathered into one message."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from aift_ray.config import RunConfig, Section, Settings
from aift_ray.errors import AiftError, ConfigError, Problem, UserError

S = TypeVar("S", bound=Settings)
_OWN_FLAGS = ("config", "dry-run", "help")


@dataclass
class Command(Generic[S]):
    """What the user asked for: the resolved settings, and whether only to show them."""

    config: S
    dry_run: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise SettingsError(message)


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call a verb; its errors become one message and the contract's exit status."""
    try:
        return run(argv)
    except AiftError as error:
        label = "error" if isinstance(error, UserError) or error.exit_status == 1 else "note"
        print(f"{label}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted before anything began", file=sys.stderr)
        return 130


def parse(
    argv: Sequence[str], settings: type[S], verb: str, description: str, epilog: str = ""
) -> Command[S]:
    """Read flags and YAML files: flags win over files, files over defaults.

    Raises:
        ConfigError: with every unknown, malformed or out-of-range setting.
    """
    own_flags = _Parser(add_help=False, allow_abbrev=False)
    own_flags.add_argument("--config", action="append", default=[], help="YAML file of settings")
    own_flags.add_argument("--dry-run", action="store_true", help="print the plan, start nothing")
    parser = _Parser(
        prog=f"aift-ray {verb}",
        usage=f"aift-ray {verb} [--config FILE] [--SETTING VALUE ...]",
        description=description,
        epilog=epilog,
        parents=[own_flags],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        own, rest = own_flags.parse_known_args(list(argv))
        values, unknown = _read_flags(settings, parser, rest)
    except SettingsError as error:
        raise ConfigError([Problem("command line", str(error), "see --help")]) from None
    problems = [_unknown_problem(settings, name, "flag") for name in unknown]
    merged: dict[str, Any] = {}
    for path in own.config:
        _merge(merged, _read_yaml(Path(path), problems))
    _merge(merged, values)
    return Command(_validated(settings, merged, problems), own.dry_run)


def validated(values: dict[str, Any], settings: type[S] = RunConfig) -> S:  # type: ignore[assignment]
    """The settings of `values`; ConfigError with every mistake in it."""
    return _validated(settings, values, [])


def _read_flags(
    settings: type[S], parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    unknown: list[str] = []

    def parse_known(root: argparse.ArgumentParser, args: list[str]) -> argparse.Namespace:
        namespace, rest = root.parse_known_args(args)
        unknown.extend(rest)
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
    return values, _flag_names(unknown)


def _explicit(settings: type[Settings], argv: Sequence[str]) -> Iterator[str]:
    """Give a bare yes/no flag its value, and keep a list value whole where it holds a comma."""
    flags = _flags(settings)
    switches = {name for name, kind in flags.items() if kind is bool}
    lists = {name for name, kind in flags.items() if _holds_list(kind)}
    parts = [part for raw in argv for part in _split_equals(raw)]
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else "--"
        before = parts[index - 1] if index else ""
        if before.startswith("--") and before[2:] in lists and not part.startswith("["):
            yield json.dumps([part], ensure_ascii=False)
        else:
            yield part
        if part[2:] in switches and part.startswith("--") and following.startswith("--"):
            yield "true"


def _flags(settings: type[Settings]) -> dict[str, Any]:
    """Every flag and its annotation, the short ones too."""
    found = dict(_annotations(settings))
    return found | {short: found[name] for name, short in settings.short_flags.items()}


def _annotations(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _annotations(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def _holds_list(kind: Any) -> bool:
    return get_origin(kind) is list or any(_holds_list(part) for part in get_args(kind))


def _split_equals(raw: str) -> list[str]:
    return raw.split("=", 1) if raw.startswith("--") and "=" in raw else [raw]


def _flag_names(unknown: Sequence[str]) -> list[str]:
    flags = [part.removeprefix("--") for part in unknown if part.startswith("-")]
    return flags or list(unknown)


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


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as (dotted name, value)."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _validated(settings: type[S], values: dict[str, Any], problems: list[Problem]) -> S:
    try:
        config = settings.model_validate(values)
    except ValidationError as error:
        problems = problems + [_problem(settings, dict(detail)) for detail in error.errors()]
        raise ConfigError(problems) from None
    problems = problems + config.contradictions()
    if problems:
        raise ConfigError(problems)
    return config


def _problem(settings: type[Settings], detail: dict[str, Any]) -> Problem:
    name = ".".join(str(part) for part in detail["loc"] if isinstance(part, str))
    if detail["type"] == "extra_forbidden":
        return _unknown_problem(settings, name, "setting")
    given = detail["input"]
    shown = "a section" if isinstance(given, dict) else repr(given)
    expected = detail["msg"].removeprefix("Value error, ")
    return Problem(name, f"{shown} is not allowed: {expected[:1].lower()}{expected[1:]}")


def _unknown_problem(settings: type[Settings], name: str, what: str) -> Problem:
    known = list(_flags(settings)) + list(_OWN_FLAGS)
    near = difflib.get_close_matches(name, known, 1, 0.5) or [
        n for n in known if n.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]
    ]
    shown = f"--{name}" if what == "flag" else name
    hint = f"did you mean '{near[0]}'?" if near else "see --help for all of them"
    return Problem(shown, f"there is no such {what}", hint)
