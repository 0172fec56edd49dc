"""Rows of two answers, or of one with a label, in the forms in which preference data comes.

Each answer becomes an Example of its own, by the code that reads rows of one answer; what both
say before they part is their prompt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from aift_ray.data.examples import Example, Fault, Message
from aift_ray.data.readers.column_names import flag, meaning
from aift_ray.data.readers.row_keys import parsed
from aift_ray.data.readers.row_schema import RowFormat, find_form, make_example
from aift_ray.data.readers.row_scores import SCORES, margin
from aift_ray.data.readers.wrong_row import WrongRow, kind_of, listed, not_blank, shown, string

CHOSEN, REJECTED, LABEL = "chosen", "rejected", "label"
# the second is LLaMA-Factory's
_LABEL_KEYS = (LABEL, "kto_tag")
_ANSWERS = (CHOSEN, REJECTED)
# keys that hold the prompt of a pair, and the key of an answer in a row of one
_PROMPTS = {"instruction": "output", "prompt": "completion", "messages": "", "conversations": ""}
_SPEAKERS = {"human": "user", "gpt": "assistant", "observation": "tool"}
# Anthropic's HH writes conversations as texts
_TURN = re.compile(r"\n\n(Human|Assistant):")
# a list of messages as JSON, in a cell of a table
_JSON_TURNS = re.compile(r'\s*\[\s*\{\s*"')
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_NUMBERS = {"margin", *chain.from_iterable(SCORES)}
_TURNS_AS = 'write a text, or messages as [{"role": "user", "content": "TEXT"}]'
_SAME = "chosen and rejected are the same answer", "remove the row, or one of two equal answers"
EXPECTED_PAIR = "chosen and rejected, with prompt, messages, conversations or instruction"
EXPECTED_LABEL = "a row of one answer, and label: true or false"


def pair_form(keys: Collection[str], noun: str) -> RowFormat:
    """The form of a pair that `keys` name.

    Raises:
        WrongRow: no pair, or prompts of two kinds.
    """
    missing = [key for key in _ANSWERS if key not in keys]
    if missing:
        remedy = f"expected {EXPECTED_PAIR}"
        if any(key in keys for key in _LABEL_KEYS):
            remedy = "rows with a label need --objective kto"
        several, verb = ("", "is") if len(missing) == 1 else ("s", "are")
        found = f"the {noun}{several} {' and '.join(missing)} {verb} missing; found {listed(keys)}"
        raise WrongRow(found, remedy)
    prompts = [key for key in _PROMPTS if key in keys]
    if len(prompts) > 1 and prompts != ["prompt", "messages"]:
        what = f"{noun}s of two kinds of row: {', '.join(prompts)}"
        raise WrongRow(what, f"keep the {noun}s of one kind")
    return RowFormat("prompt", (*prompts, *_ANSWERS), ("input", *sorted(_NUMBERS)))


def label_form(keys: Collection[str], noun: str) -> RowFormat:
    """The form of a row with a label that `keys` name.

    Raises:
        WrongRow: no such row.
    """
    if all(key in keys for key in _ANSWERS):
        what = f"{' and '.join(_ANSWERS)} are a pair, and objective kto takes one answer a row"
        raise WrongRow(what, f"use --objective dpo, or give {EXPECTED_LABEL}")
    labels = [key for key in _LABEL_KEYS if key in keys]
    if not labels:
        found = f"the {noun} {LABEL} is missing; found {listed(keys)}"
        raise WrongRow(found, f"objective kto takes {EXPECTED_LABEL}")
    if len(labels) > 1:
        raise WrongRow(f"the {noun}s {' and '.join(labels)} say the same", "keep one of them")
    form = find_form([key for key in keys if key not in labels], noun)
    return RowFormat(form.kind, (*form.required, *labels), form.optional)


def make_pair(row: dict[str, Any], file: str, line: int) -> Example | Fault:
    """The better answer of a row, with the other one; or what is wrong with the row.

    Raises:
        WrongRow: what is wrong with it.
    """
    pair_form(row, "key")
    row = _with_prompt(row)
    found = [_side(_alike(row), name, file, line) for name in _ANSWERS]
    for name, side in zip(_ANSWERS, found, strict=True):
        if isinstance(side, Fault):
            return replace(side, reason=f"{name}: {side.reason}")
    chosen, rejected = (side for side in found if isinstance(side, Example))
    if chosen == rejected:
        raise WrongRow(*_SAME)
    shared = _shared(chosen.messages, rejected.messages)
    if chosen.kind == "messages":
        _check_parting(row, chosen, rejected, shared)
    ignored = dict.fromkeys((*chosen.ignored, *rejected.ignored))
    return replace(
        _trained_from(chosen, shared),
        rejected=_trained_from(rejected, shared),
        score=margin(row),
        ignored=tuple(key for key in ignored if key not in _NUMBERS),
    )


def make_labelled(row: dict[str, Any], file: str, line: int) -> Example | Fault:
    """An answer with its label; or what is wrong with the row.

    Raises:
        WrongRow: what is wrong with it.
    """
    key = label_form(row, "key").required[-1]
    found = make_example(_of_lists(row, "completion"), file, line)
    if isinstance(found, Fault):
        return found
    if found.kind == "text":
        what = "a text has no prompt, and a label judges an answer to one"
        raise WrongRow(what, "write prompt and completion beside the label")
    given = row[key]
    label = _LABELS.get(str(given).strip().lower())
    if label is None:
        what = shown(given) if isinstance(given, str) else kind_of(given)
        raise WrongRow(
            f"{key} is {what}, expected true or false",
            f'write "{key}": true for a good answer, false for a bad one',
        )
    # only the last answer is judged
    before = len(found.messages) - (found.kind == "messages")
    ignored = tuple(name for name in found.ignored if name != key)
    found = replace(found, score=float(label), labelled=True, ignored=ignored)
    return _trained_from(found, before)


def _with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """Two texts and nothing else: what both begin with is their prompt, up to a blank.

    Source: `extract_prompt` of TRL.
    """
    texts = [row[name] for name in _ANSWERS]
    if row.keys() != set(_ANSWERS) or not all(isinstance(text, str) for text in texts):
        return row
    if texts[0] == texts[1]:
        raise WrongRow(*_SAME)
    if any(_TURN.search(f"\n\n{text}") or _JSON_TURNS.match(text) for text in texts):
        return row
    alike = [one == other for one, other in zip(*texts, strict=False)]
    prompt = texts[0][: [*alike, False].index(False)].removesuffix(" ")
    answers = {name: text[len(prompt) :] for name, text in zip(_ANSWERS, texts, strict=True)}
    return {"prompt": prompt, **answers} if prompt.strip() else row


def _alike(row: dict[str, Any]) -> dict[str, Any]:
    """The same row, its answers both messages where one of them is."""
    answers = {name: parsed_turns(row[name], name) for name in _ANSWERS}
    texts = [name for name, answer in answers.items() if isinstance(answer, str)]
    if len(texts) != 1 or not any(key in row for key in _PROMPTS):
        return row
    return row | {name: [{"role": "assistant", "content": answers[name]}] for name in texts}


def _side(row: dict[str, Any], name: str, file: str, line: int) -> Example | Fault:
    """A row of one answer: that under `name`."""
    answer = parsed_turns(row[name], name)
    kept = {key: value for key, value in row.items() if key not in _ANSWERS and key != LABEL}
    prompt = next((key for key in _PROMPTS if key in row), None)
    if isinstance(answer, str):
        not_blank(string(answer, name), name)
        if prompt is None:
            return make_example({**kept, "messages": _spoken(answer, name, row)}, file, line)
        if prompt == "instruction":
            return make_example({**kept, "output": answer}, file, line)
        if isinstance(row[prompt], str) and prompt == "prompt":
            return make_example({**kept, "completion": answer}, file, line)
        answer = [{"role": "assistant", "content": answer}]
    elif prompt == "instruction":
        if len(answer) != 1 or set(answer[0]) - {"role", "content"}:
            what = f"{name} is a list of {len(answer)} messages, expected one beside instruction"
            raise WrongRow(what, "give the conversation as messages, or the answer as a string")
        return make_example({**kept, "output": answer[0].get("content")}, file, line)
    for key in _PROMPTS:
        kept.pop(key, None)
    # an answer that begins with the assistant goes on from the prompt
    if prompt is None or answer[0].get("role") in ("system", "user"):
        return make_example({**kept, "messages": answer}, file, line)
    assert prompt is not None
    return make_example({**kept, "messages": [*_before(row[prompt], prompt), *answer]}, file, line)


def _before(prompt: object, name: str) -> list[dict[str, Any]]:
    """The turns of a prompt."""
    turns: Any = parsed_turns(prompt, name)
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    if turns and turns[-1].get("role") == "assistant":
        what = f"{name} ends with a message from assistant, expected the prompt of two answers"
        raise WrongRow(what, "leave the answer out, or the prompt where the answers hold it")
    found: list[dict[str, Any]] = turns
    return found


def _of_lists(row: dict[str, Any], answer: str) -> dict[str, Any]:
    """A row whose prompt and completion are messages, as one of `messages`."""
    if "prompt" not in row or answer not in row:
        return row
    prompt, said = (parsed_turns(row[key], key) for key in ("prompt", answer))
    if isinstance(prompt, str) and isinstance(said, str):
        return row
    turns = [{"role": "assistant", "content": said}] if isinstance(said, str) else said
    kept = {key: value for key, value in row.items() if key not in ("prompt", answer)}
    return {**kept, "messages": [*_before(row["prompt"], "prompt"), *turns]}


def parsed_turns(value: object, name: str) -> Any:
    """A text, or a list of messages with `role` and `content`, whatever form they have."""
    if isinstance(value, str):
        value = parsed(value, name) if _JSON_TURNS.match(value) else value
    if isinstance(value, str):
        return value
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        what = f"{name} is {kind_of(value)}, expected a string or a list of messages"
        raise WrongRow(what, _TURNS_AS)
    if not turns:
        raise WrongRow(f"{name} has no message", _TURNS_AS)
    return [_turn(turn, f"{name}: message {number}") for number, turn in enumerate(turns, 1)]


def _turn(turn: object, name: str) -> Any:
    if not isinstance(turn, Mapping):
        what = f"{name} is {kind_of(turn)}, expected an object with role and content"
        raise WrongRow(what, _TURNS_AS)
    if "from" not in turn or "role" in turn:
        return turn
    role = _SPEAKERS.get(str(turn["from"]), turn["from"])
    content = turn.get("value")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": content, **rest}
    return {"role": role, "content": content, **rest}


def _named_otherwise(keys: Collection[str]) -> str:
    """The flag for a prompt under another name; "": there is none."""
    asked = [key for key in keys if meaning(key) == "instruction"]
    return f"name the prompt: {flag({'instruction': asked[0]})}" if asked else ""


def _spoken(text: str, name: str, keys: Collection[str]) -> list[dict[str, str]]:
    """The turns of a text in the form of HH: blank line, Human: or Assistant:."""
    head, *parts = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if head.strip() or "Assistant" not in parts:
        what = f"{name} is a text, and there is no prompt beside it"
        raise WrongRow(what, _named_otherwise(keys) or f"expected {EXPECTED_PAIR}")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": said.strip()} for speaker, said in pairs]


def _shared(one: tuple[Message, ...], other: tuple[Message, ...]) -> int:
    """Turns that both conversations begin with."""
    pairs = zip(one, other, strict=False)
    number = min(len(one), len(other))
    return next((at for at, (a, b) in enumerate(pairs) if a != b), number)


def _check_parting(row: dict[str, Any], chosen: Example, rejected: Example, shared: int) -> None:
    """WrongRow where two conversations do not part at an answer."""
    if shared == 0:
        raise WrongRow("chosen and rejected have no prompt in common", f"expected {EXPECTED_PAIR}")
    for name, side in zip(_ANSWERS, (chosen, rejected), strict=True):
        if shared >= len(side.messages):
            what = f"{name} has no answer: all it says is in the other, too"
            raise WrongRow(what, "end both with a message from assistant that differs")
        if side.messages[shared].role != "assistant":
            what = f"{name} parts from the other in a message from {side.messages[shared].role}"
            raise WrongRow(what, "both must answer the same prompt")
    asked = parsed_turns(row["prompt"], "prompt") if row.get("prompt") else []
    asked = [asked] if isinstance(asked, str) else [turn.get("content") for turn in asked]
    said = [each.content.strip() for each in chosen.messages[:shared]]
    if any(isinstance(text, str) and text.strip() not in said for text in asked):
        what = "the prompt is none of the messages that chosen and rejected begin with"
        raise WrongRow(what, "leave the prompt out")


def _trained_from(example: Example, first: int) -> Example:
    """The same row, of whose turns those from `first` on are trained."""
    before = (
        replace(turn, trained=False) if turn.role == "assistant" else turn
        for turn in example.messages[:first]
    )
    return replace(example, messages=(*before, *example.messages[first:]))
