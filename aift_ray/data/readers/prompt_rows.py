"""Rows of prompts whose completions are generated and scored; the other keys go to the rewards."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from aift_ray.data.examples import Example, Fault
from aift_ray.data.readers.preference_rows import parsed_turns
from aift_ray.data.readers.row_keys import ROW_KEYS
from aift_ray.data.readers.row_schema import RowFormat, make_example
from aift_ray.data.readers.wrong_row import WrongRow, listed, not_blank

_PROMPTS = ("prompt", "messages", "conversations", "instruction")
EXPECTED_PROMPT = "prompt (a string or messages), messages or instruction, and any other keys"
# in place of the answer that a row of a conversation has: it is cut off before it is encoded
_ANSWER = "…"


def prompt_form(keys: Collection[str], noun: str) -> RowFormat:
    """The form of a row with a prompt that `keys` name.

    Raises:
        WrongRow: no prompt, or several.
    """
    found = [key for key in _PROMPTS if key in keys]
    if not found:
        raise WrongRow(
            f"no {noun} holds a prompt; found {listed(keys)}", f"expected {EXPECTED_PROMPT}"
        )
    if len(found) > 1:
        what = f"{noun}s of several prompts: {', '.join(found)}"
        raise WrongRow(what, f"keep one of the {noun}s")
    others = tuple(key for key in keys if key and key != found[0] and key not in ROW_KEYS)
    return RowFormat("prompt", (found[0],), others)


def make_asked(row: dict[str, Any], file: str, line: int) -> Example | Fault:
    """The prompt of a row, with the whole row for the rewards; or what is wrong with it.

    Raises:
        WrongRow: what is wrong with it.
    """
    form = prompt_form(row, "key")
    key = form.required[0]
    kept = {name: value for name, value in row.items() if name in ROW_KEYS}
    if key == "instruction":
        given = {"instruction": row[key], "output": _ANSWER}
        found = make_example({**kept, **given, "input": row.get("input")}, file, line)
    elif key == "prompt" and isinstance(row[key], str) and not row[key].lstrip().startswith('[{"'):
        found = make_example({"prompt": row[key], "completion": _ANSWER}, file, line)
    else:
        turns = parsed_turns(row[key], key)
        if isinstance(turns, str):
            turns = [{"role": "user", "content": not_blank(turns, key)}]
        if isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
            what = f"{key} ends with a message from assistant, which the model is to write"
            raise WrongRow(what, "leave the answer out, or give it as another key for the rewards")
        answer = {"role": "assistant", "content": _ANSWER}
        found = make_example({**kept, "messages": [*turns, answer]}, file, line)
        row = {**row, key: turns}
    if isinstance(found, Fault):
        return found
    return replace(found, row=json.dumps(row, ensure_ascii=False, default=str))


def asked_prompt(row: dict[str, Any]) -> str | list[dict[str, Any]]:
    """What the rewards get as the prompt: a text, or messages."""
    for key in _PROMPTS[:3]:
        if key in row:
            found: str | list[dict[str, Any]] = row[key]
            return found
    given = row.get("input")
    content = row["instruction"] + (f"\n{given}" if given else "")
    return [{"role": "user", "content": content}]


def columns_of(row: dict[str, Any]) -> dict[str, Any]:
    """What the rewards get beside the prompt."""
    return {key: value for key, value in row.items() if key not in ("prompt", "messages")}
