"""A reward as typed, `NAME:option=value`, `FILE.py:FUNCTION`, a folder or a URL, to its spec."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aift_ray.errors import ConfigError, Problem
from aift_ray.rewards import judge_options, options
from aift_ray.rewards.builtin import BUILTIN, NEEDS_SANDBOX
from aift_ray.rewards.options import Option, nearest
from aift_ray.rewards.spec import RewardSpec

_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<function>[^:]*))?(?::(?P<options>.*))?", re.DOTALL)
_ROWS = {"rows_per_call": Option(options.whole(0), "rows that one call scores; 0: all")}
_MODEL = {
    "batch_size": Option(options.whole(1), "completions that the model reads together; default: 1"),
    "device": Option(options.text, "where the model is; default: cpu"),
}
EXPECTED = (
    "a built-in name, FILE.py:FUNCTION, the folder of a reward model, or the URL of an "
    "OpenAI-compatible API that judges is expected"
)


def parse(text: str, weight: float = 1.0) -> RewardSpec:
    """The reward that a text names. Code of a user's file is read here, and not run.

    Args:
        text: `NAME`, `NAME:option=value,...`, `FILE.py:FUNCTION`, the folder of a reward model,
            or the URL of a judge, `http://HOST/v1?model=NAME`.
        weight: of the reward in the sum of all.

    Raises:
        ConfigError: there is no such reward, or its options are wrong; with every problem.
    """
    where = f"reward {text}"
    problems = []
    if not math.isfinite(weight):
        problems.append(Problem(where, f"the weight {weight} is not a finite number"))
    spec: RewardSpec | None = None
    if text.startswith(("http://", "https://")):
        spec, found = _judge(where, text, weight)
    elif matched := _FILE.fullmatch(text):
        spec, found = _function(where, matched, weight)
    else:
        spec, found = _named(where, text, weight)
    if problems + found or spec is None:
        raise ConfigError(problems + found)
    return spec


def _named(where: str, text: str, weight: float) -> tuple[RewardSpec | None, list[Problem]]:
    name, _, typed = text.partition(":")
    if name in BUILTIN:
        known = BUILTIN[name].options | _ROWS
        values, problems = options.read(where, typed, known)
        if not problems:
            problems = [Problem(where, each) for each in BUILTIN[name].problems(values)]
        return RewardSpec(name, "builtin", name, "", values, weight), problems
    if name in NEEDS_SANDBOX:
        what = "it would execute code that a model wrote, and no sandbox is named"
        remedy = "write FILE.py:FUNCTION, which hands the code to a sandbox of yours"
        return None, [Problem(where, what, remedy)]
    for folder, rest in ((text, ""), (name, typed)):
        if folder and Path(folder).expanduser().is_dir():
            return _model(where, Path(folder).expanduser().resolve(), rest, weight)
    if "/" in name or name in ("", "."):
        return None, [Problem(where, f"there is no folder {name!r}", EXPECTED)]
    what = f"there is no reward {name!r}: {EXPECTED}"
    return None, [Problem(where, what, nearest(name, list(BUILTIN)))]


def _model(where: str, folder: Path, typed: str, weight: float) -> tuple[RewardSpec, list[Problem]]:
    values, problems = options.read(where, typed, _MODEL | _ROWS)
    adapter = folder / "adapter_config.json"
    config = adapter if adapter.is_file() else folder / "config.json"
    remedy = "train one with --objective reward"
    try:
        content: dict[str, Any] = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        problems.append(Problem(where, f"the folder has no {config.name} that can be read", remedy))
        content = {}
    if content and config == adapter and content.get("task_type") != "SEQ_CLS":
        what = f"the adapter's task_type is {content.get('task_type')}, expected SEQ_CLS"
        problems.append(Problem(where, what, remedy))
    elif content and config != adapter:
        classes = content.get("architectures") or []
        if not any(str(each).endswith("ForSequenceClassification") for each in classes):
            shown = ", ".join(map(str, classes)) or "nothing"
            what = f"the model is {shown}, expected one that scores (ForSequenceClassification)"
            problems.append(Problem(where, what, remedy))
    return RewardSpec(folder.name, "model", str(folder), "", values, weight), problems


def _judge(where: str, text: str, weight: float) -> tuple[RewardSpec, list[Problem]]:
    parts = urlsplit(text)
    values: dict[str, Any] = {}
    problems = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in judge_options.OPTIONS:
            what = f"there is no option {name!r} of a judge"
            problems.append(Problem(where, what, nearest(name, dict(judge_options.OPTIONS))))
            continue
        try:
            values[name] = judge_options.OPTIONS[name].convert(value)
        except ValueError as error:
            problems.append(Problem(where, f"{name}={value} is not allowed: {error}"))
    if "model" not in values:
        remedy = f"give it as {parts.scheme}://{parts.netloc}{parts.path}?model=NAME"
        problems.append(Problem(where, "the model that judges is not named", remedy))
    if values.get("lowest", 1) >= values.get("highest", 10):
        problems.append(Problem(where, "lowest is not below highest"))
    base = f"{parts.scheme}://{parts.netloc}{parts.path}"
    name = f"judge_{values.get('model', '')}"
    return RewardSpec(name, "judge", base, "", values, weight), problems


def _function(
    where: str, matched: re.Match[str], weight: float
) -> tuple[RewardSpec | None, list[Problem]]:
    values, problems = options.read(where, matched["options"] or "", _ROWS)
    function = matched["function"] or ""
    path, found = function_in_file(where, matched["file"], function, "function")
    return RewardSpec(function, "function", path, function, values, weight), problems + found


def function_in_file(where: str, file: str, name: str, kind: str) -> tuple[str, list[Problem]]:
    """The whole path of a file that defines a function or a class, and what is wrong with it.

    Args:
        kind: function or class.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        return "", [Problem(where, f"there is no file {path}")]
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        what = f"line {line}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        return "", [Problem(where, f"{path} is no Python file: {what}")]
    kinds = ast.ClassDef if kind == "class" else _DEFINITIONS
    defined = [each.name for each in tree.body if isinstance(each, kinds)]
    if not name:
        remedy = f"give {path}:{kind.upper()}; it defines {', '.join(defined) or 'none'}"
        return "", [Problem(where, f"no {kind} of the file is named", remedy)]
    if name not in _names(tree):
        remedy = nearest(name, defined) if defined else f"it defines no {kind}"
        return "", [Problem(where, f"{path} has no {kind} {name!r}", remedy)]
    return str(path.resolve()), []


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class _Everything:
    """Holds every name: an `import *` may bring it."""

    def __contains__(self, name: object) -> bool:
        return True


def _names(tree: ast.Module) -> set[str] | _Everything:
    """Names that a module binds anywhere outside its functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (*_DEFINITIONS, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if alias.name == "*":
                    return _Everything()
                found.add(alias.asname or alias.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found
