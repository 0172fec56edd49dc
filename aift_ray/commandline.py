"""Command line and YAML file to a RunConfig; every mistake in them gathered into one message."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from aift_ray.config import RunConfig, Section
from aift_ray.errors import ConfigError, Problem

SHORT_FLAGS = {
    "parallel.strategy": "strategy",
    "ray.num_workers": "num-workers",
    "data.train_files": "train-file",
    "data.eval_files": "eval-file",
    "output_dir": "output-dir",
    "training.max_steps": "max-steps",
    "training.seed": "seed",
}
_LISTS = {"train-file", "eval-file", "data.train_files", "data.eval_files", "lora.target_modules"}
_OWN_FLAGS = ("config", "dry-run", "help")


@dataclass
class Command:
    """What the user asked for: the resolved configuration, and whether only to show it."""

    config: RunConfig
    dry_run: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise SettingsError(message)


def parse(argv: Sequence[str], verb: str, description: str, epilog: str = "") -> Command:
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
        values, unknown = _read_flags(parser, rest)
    except SettingsError as error:
        raise ConfigError([Problem("command line", str(error), "see --help")]) from None
    problems = [_unknown_problem(name, "flag") for name in unknown]
    merged: dict[str, Any] = {}
    for path in own.config:
        _merge(merged, _read_yaml(Path(path), problems))
    _merge(merged, values)
    return Command(_validated(merged, problems), own.dry_run)


def validated(values: dict[str, Any]) -> RunConfig:
    """The configuration of `values`; ConfigError with every mistake in it."""
    return _validated(values, [])


def _read_flags(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    unknown: list[str] = []

    def parse_known(root: argparse.ArgumentParser, args: list[str]) -> argparse.Namespace:
        namespace, rest = root.parse_known_args(args)
        unknown.extend(rest)
        return namespace

    source: Any = CliSettingsSource(
        RunConfig,  # type: ignore[arg-type]
        cli_parse_args=list(_explicit(argv)),
        cli_shortcuts=SHORT_FLAGS,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_ignore_unknown_args=True,
        cli_exit_on_error=False,
        root_parser=parser,
        parse_args_method=parse_known,
    )
    values: dict[str, Any] = {k: v for k, v in source().items() if k in RunConfig.model_fields}
    return values, _flag_names(unknown)


def _explicit(argv: Sequence[str]) -> Iterator[str]:
    """Give a bare yes/no flag its value, and keep a list value whole where it holds a comma."""
    switches = {name for name, default in leaves(RunConfig()) if isinstance(default, bool)}
    parts = [part for raw in argv for part in _split_equals(raw)]
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else "--"
        before = parts[index - 1] if index else ""
        if before.startswith("--") and before[2:] in _LISTS and not part.startswith("["):
            yield json.dumps([part], ensure_ascii=False)
        else:
            yield part
        if part[2:] in switches and part.startswith("--") and following.startswith("--"):
            yield "true"


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


def _validated(values: dict[str, Any], problems: list[Problem]) -> RunConfig:
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems = problems + [_problem(dict(detail)) for detail in error.errors()]
        raise ConfigError(problems) from None
    problems = problems + contradictions(config)
    if problems:
        raise ConfigError(problems)
    return config


def _problem(detail: dict[str, Any]) -> Problem:
    name = ".".join(str(part) for part in detail["loc"] if isinstance(part, str))
    if detail["type"] == "extra_forbidden":
        return _unknown_problem(name, "setting")
    given = detail["input"]
    shown = "a section" if isinstance(given, dict) else repr(given)
    expected = detail["msg"].removeprefix("Value error, ")
    return Problem(name, f"{shown} is not allowed: {expected[:1].lower()}{expected[1:]}")


def _unknown_problem(name: str, what: str) -> Problem:
    known = [n for n, _ in leaves(RunConfig())] + list(SHORT_FLAGS.values()) + list(_OWN_FLAGS)
    near = difflib.get_close_matches(name, known, 1, 0.5) or [
        n for n in known if n.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]
    ]
    shown = f"--{name}" if what == "flag" else name
    hint = f"did you mean '{near[0]}'?" if near else "see --help for all of them"
    return Problem(shown, f"there is no such {what}", hint)


def contradictions(config: RunConfig) -> list[Problem]:
    """Settings that are each allowed and can't stand together."""
    training, parallel, found = config.training, config.parallel, []
    if config.method == "qlora" or config.lora.use_qlora:
        found.append(
            Problem("method", "qlora is not available in this version", "use --method lora")
        )
    if not config.lora.qlora_4bit and not config.lora.use_qlora:
        found.append(Problem("lora.qlora_4bit", "speaks of QLoRA, and use_qlora is off"))
    if parallel.max_memory_per_gpu is not None:
        found.append(
            Problem("parallel.max_memory_per_gpu", "needs strategy model_parallel, not ddp")
        )
    for name in ("pipeline_parallel_size", "tensor_parallel_size"):
        if getattr(parallel, name) != 1:
            found.append(Problem(f"parallel.{name}", "must be 1 with strategy ddp"))
    if config.data.eval_files and config.data.validation_fraction:
        found.append(
            Problem("data.validation_fraction", "stands beside eval files", "give one of them")
        )
    if config.overwrite and config.resume:
        found.append(Problem("overwrite", "contradicts --resume", "give one of them"))
    if training.world_size != 1 and not training.ddp and training.local_rank < 0:
        found.append(
            Problem("training.world_size", "acts with ddp or local_rank only", "use --num-workers")
        )
    if training.ddp and config.ray.num_workers not in (None, training.world_size):
        found.append(Problem("ray.num_workers", "differs from training.world_size with ddp"))
    if training.precision in ("bf16", "fp16") and not training.fp16:
        found.append(Problem("training.fp16", f"false contradicts precision {training.precision}"))
    return found
