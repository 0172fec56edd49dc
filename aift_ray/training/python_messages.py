"""Errors in the words of Python: arguments and fields, where the command has flags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from aift_ray.errors import Problem, UserError

# what a trainer calls otherwise, or has not
_WORDS = {
    "give --resume latest to continue, --overwrite to start again, or another name": (
        "give resume_from_checkpoint='latest' to go on, or another output_dir"
    ),
    "give --num-workers 2 or more": "take two devices or more",
}
_NAMES = {
    "resume": "resume_from_checkpoint",
    "train-file": "train_texts",
    "eval-file": "eval_texts",
}
_VALUE = r"\d[\d.]*\d|\d|true|false|none|latest|ddp|fsdp|pipeline|tensor|q?lora|full|adamw\w*"
_VALUE += r"|(?:yarn|linear|llama3):[\d.]*\d"
_FLAG = re.compile(rf"--([a-z][\w.-]*)(?: ({_VALUE})\b)?")


@contextmanager
def in_python() -> Iterator[None]:
    """Tell what is wrong by arguments of Python.

    Raises:
        UserError: the same error with other words.
    """
    try:
        yield
    except UserError as error:
        problems = [
            Problem(_said(each.where), _said(each.what), _said(each.remedy))
            for each in error.problems
        ]
        raise type(error)(problems) from error


def _said(text: str) -> str:
    for flags, words in _WORDS.items():
        text = text.replace(flags, words)
    return _FLAG.sub(_argument, text)


def _argument(found: re.Match[str]) -> str:
    """Of `--lora.r 4` `r=4`, of `--output-dir` `output_dir`."""
    flag = found[1].rstrip(".")
    name = _NAMES.get(flag, flag.rsplit(".", 1)[-1].replace("-", "_"))
    end = found[1][len(flag) :]
    value = found[2]
    if value is None:
        return name + end
    bare = re.fullmatch(r"[\d.]+|true|false|none", value)
    return f"{name}={value.capitalize() if bare else repr(value)}"
