"""The turns of a conversation as data files have them: OpenAI's `messages`, ShareGPT's form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aift_ray.data.examples import Message
from aift_ray.data.readers.row_keys import (
    MEDIA,
    THOUGHTS,
    as_json,
    calls,
    refuse_media,
    thought,
)
from aift_ray.data.readers.turn_order import MEND_CALLS, check_order
from aift_ray.data.readers.wrong_row import (
    WrongRow,
    did_you_mean,
    kind_of,
    listed,
    not_blank,
    shown,
    string,
)

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
# whether an answer is trained, as different tools have it in their data
_TRAINED = ("weight", "train", "training", "loss")
_READ = {*_TRAINED, *THOUGHTS, *MEDIA, "tool_calls", "function_call", "tool_call_id", "name"}
# of a call without one: letters and digits, nine in all, as Mistral's templates want them
_GIVEN_ID = "call{:05d}"
GIVEN_ID = re.compile(r"call\d{5}")


@dataclass(frozen=True)
class _Form:
    """The keys of a turn in one of the two forms."""

    speaker: str
    content: str
    roles: Mapping[str, str]
    other: tuple[str, str]
    name_of_other: str


_FORMS = {
    "messages": _Form("role", "content", _ROLES, ("from", "value"), "conversations"),
    "conversations": _Form("from", "value", _SPEAKERS, ("role", "content"), "messages"),
}


def _list_as(key: str) -> str:
    form = _FORMS[key]
    asked, answered = ("human", "gpt") if key == "conversations" else ("user", "assistant")
    turn = f'{{{{"{form.speaker}": "{{}}", "{form.content}": "TEXT"}}}}'
    return f'write "{key}": [{turn.format(asked)}, {turn.format(answered)}]'


def read_turns(key: str, turns: object, before: tuple[Message, ...] = ()) -> tuple[Message, ...]:
    """The turns of a row, checked.

    Args:
        key: messages or conversations.
        before: turns that the row has under other keys.

    Raises:
        WrongRow: the first thing that is wrong with them.
    """
    if not isinstance(turns, list):
        raise WrongRow(f"{key} is {kind_of(turns)}, expected a list of messages", _list_as(key))
    if not turns:
        what = f"{key} has no message, expected at least a user and an assistant message"
        raise WrongRow(what, _list_as(key))
    own = [_turn(key, number, turn) for number, turn in enumerate(turns, 1)]
    if before and before[0].role == "system" and own[0].role == "system":
        if before[0].content != own[0].content:
            raise WrongRow("system and the first message are two system texts", "keep one of them")
        own = own[1:]
    messages = _linked([*before, *own])
    check_order(messages)
    return messages


def unread(key: str, row: Mapping[str, Any]) -> list[str]:
    """Keys of the turns that hold something, and that nothing reads."""
    known = {_FORMS[key].speaker, _FORMS[key].content, *_READ}
    further = (turn for turn in row[key] if len(turn) > 2)
    return list(
        dict.fromkeys(
            name
            for turn in further
            for name, value in turn.items()
            if name not in known and holds(value)
        )
    )


def holds(value: object) -> bool:
    """Whether a value of a key says anything: 0 and false do."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})


def _turn(key: str, number: int, turn: object) -> Message:
    where, form = f"message {number}", _FORMS[key]
    if not isinstance(turn, dict):
        raise WrongRow(f"{where} is {kind_of(turn)}, expected an object", _list_as(key))
    calling = any(turn.get(name) for name in ("tool_calls", "function_call"))
    for name in (form.speaker, form.content):
        if name not in turn and not (name == form.content and calling):
            remedy = f"{' and '.join(form.other)} are the keys of {form.name_of_other}"
            raise WrongRow(
                f"{where}: the key {name} is missing; found {listed(turn)}",
                remedy if form.other[0] in turn else did_you_mean(turn, [name]) or _list_as(key),
            )
    said_by = string(turn[form.speaker], f"{where}: {form.speaker}")
    if said_by not in form.roles:
        names = ", ".join(form.roles)
        reason = f"{where}: unknown {form.speaker} {shown(said_by)}, expected one of {names}"
        remedy = did_you_mean([said_by], list(form.roles))
        raise WrongRow(reason, remedy or f'write "{form.speaker}": "{next(iter(form.roles))}"')
    role = form.roles[said_by]
    if len(turn) == 2 and not calling and role != "tool" and said_by != "function_call":
        # the usual case, at once
        return Message(role, _text(turn, where, form, role, False, said_by))
    refuse_media(turn, f"{where}: ")
    if role != "assistant":
        _refuse_assistants(turn, f"{where}: ", role)
    called = _calls(turn, where, said_by, form)
    text = _text(turn, where, form, role, bool(called), said_by)
    said = thought(turn, f"{where}: ") if role == "assistant" else ""
    further = _further(turn, where, called, role)
    return Message(role, text, further, said, _trained(turn, where, role))


def _text(
    turn: Mapping[str, object], where: str, form: _Form, role: str, called: bool, said_by: str
) -> str:
    if said_by == "function_call":
        return ""
    value, name = turn.get(form.content), f"{where}: {form.content}"
    if value is None and called:
        return ""
    text = _content(value, name)
    # a tool may have nothing to tell, and a call needs no word beside it
    return text if called or role in ("system", "tool") else not_blank(text, name)


def _content(value: object, name: str) -> str:
    if isinstance(value, dict):
        raise WrongRow(f"{name} is an object, expected a string", "write it as JSON in a string")
    if not isinstance(value, list):
        return string(value, name)
    texts = []
    for number, part in enumerate(value, 1):
        if not isinstance(part, dict) or part.get("type") != "text" or "text" not in part:
            raise WrongRow(
                f'{name}: part {number} is no text part, expected {{"type": "text", "text": ...}}',
                "only text is trained: remove the part, or write it as text",
            )
        texts.append(string(part["text"], f"{name}: part {number}: text"))
    return "".join(texts)


def _refuse_assistants(turn: Mapping[str, object], where: str, role: str) -> None:
    """What only an assistant's turn can have."""
    for key in ("tool_calls", "function_call", *THOUGHTS):
        if turn.get(key):
            what = f"{where}{key} in a message from {role}, expected from assistant only"
            raise WrongRow(what, f"move {key} to the message from assistant, or remove it")


def _calls(
    turn: Mapping[str, object], where: str, said_by: str, form: _Form
) -> list[dict[str, Any]]:
    if said_by == "function_call":
        return calls(turn[form.content], f"{where}: {form.content}")
    given = [key for key in ("tool_calls", "function_call") if turn.get(key)]
    if len(given) > 1:
        raise WrongRow(f"{where}: tool_calls and function_call together", "keep tool_calls")
    return calls(turn[given[0]], f"{where}: {given[0]}") if given else []


def _further(
    turn: Mapping[str, object], where: str, called: list[dict[str, Any]], role: str
) -> str:
    further: dict[str, Any] = {"tool_calls": called} if called else {}
    for key in ("tool_call_id", "name"):
        if turn.get(key) in (None, ""):
            continue
        value = string(turn[key], f"{where}: {key}")
        if key == "tool_call_id" and role != "tool":
            what = f"{where}: tool_call_id in a message from {role}, expected from tool"
            raise WrongRow(what, "write the role tool, or remove tool_call_id")
        further[key] = value
    return as_json(further, where) if further else ""


def _trained(turn: Mapping[str, object], where: str, role: str) -> bool:
    found: dict[str, bool] = {}
    for key in _TRAINED:
        value = turn.get(key)
        if value is None:
            continue
        number = key == "weight" or not isinstance(value, bool)
        if value not in (0, 1) or (number and isinstance(value, bool)):
            expected = "0 or 1" if key == "weight" else "true or false"
            given = f"{value}" if isinstance(value, (int, float)) else kind_of(value)
            least, most = ("0", "1") if key == "weight" else ("false", "true")
            remedy = f'write "{key}": {most} to train the answer, {least} to leave it out'
            raise WrongRow(f"{where}: {key} is {given}, expected {expected}", remedy)
        found[key] = bool(value)
    if len(set(found.values())) > 1:
        names = " and ".join(found)
        raise WrongRow(f"{where}: {names} contradict each other", "keep one of them")
    trained = next(iter(found.values()), None)
    if role == "assistant":
        return trained is not False
    if trained:
        key = next(iter(found))
        what = f"{where}: {key} asks to train a message from {role}, and only answers are trained"
        raise WrongRow(what, f"remove {key}")
    return True


def _linked(messages: list[Message]) -> tuple[Message, ...]:
    """Calls and results with the ids that link them: those of the row, or made ones.

    Raises:
        WrongRow: a result of no call.
    """
    if not any(each.further or each.role == "tool" for each in messages):
        return tuple(messages)
    made, open_ids, number = [], list[str](), 0
    for place, message in enumerate(messages, 1):
        further = json.loads(message.further) if message.further else {}
        if "tool_calls" in further:
            open_ids = []
            for call in further["tool_calls"]:
                number += 1
                call.setdefault("id", _GIVEN_ID.format(number))
                if call["id"] in open_ids:
                    what = f"message {place}: two calls have the id {shown(call['id'])}"
                    raise WrongRow(what, "give each an id of its own, or leave the ids out")
                open_ids.append(call["id"])
            # the id first, as a server is sent it
            further["tool_calls"] = [{"id": call["id"]} | call for call in further["tool_calls"]]
        elif message.role == "tool":
            named = further.get("tool_call_id")
            if not open_ids or (named is not None and named not in open_ids):
                what = "answers no call of the message before it"
                if named is not None:
                    what = f"has the tool_call_id {shown(named)}, which is no open call before it"
                raise WrongRow(f"message {place} from tool {what}", MEND_CALLS)
            further["tool_call_id"] = open_ids.pop(open_ids.index(named) if named else 0)
        else:
            open_ids = []
        text = json.dumps(further, ensure_ascii=False) if further else ""
        made.append(message if text == message.further else replace(message, further=text))
    return tuple(made)
