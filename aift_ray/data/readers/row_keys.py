"""Keys beside a complete row that change what is trained: read, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aift_ray.data.readers.wrong_row import WrongRow, kind_of, shown, string

# a list of tools, or one in JSON; a system text; turns before the row's own; ...
CONVERSATION_KEYS = (
    "tools",
    "functions",
    "system",
    "system_prompt",
    "history",
    "chat_template_kwargs",
)
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
ROW_KEYS = (*CONVERSATION_KEYS, "weight", *THOUGHTS)
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# what a template gets from elsewhere
_TAKEN = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "conversation",
    "tokenize",
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
    "padding",
    "truncation",
    "max_length",
    "tokenizer_kwargs",
}
_CALL_AS = 'write each call as {"name": "NAME", "arguments": {"KEY": VALUE}}, several in [ ]'
_ARGUMENTS_AS = (
    'name each argument: "arguments": {"KEY": VALUE}, or the same as a JSON string; {} for none'
)
_NAME_AS = 'write "name": "NAME" beside its arguments or parameters'
_FUNCTION_ALONE = 'write "type": "function", or leave the type out'
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def _tools_as(key: str) -> str:
    return f'write a list: "{key}": [{{"name": "NAME", "parameters": {{...}}}}]'


def refuse_media(row: Mapping[str, object], where: str = "") -> None:
    """Raise WrongRow where a row or a message holds images or sound."""
    for key in MEDIA:
        if row.get(key):
            raise WrongRow(f"{where}{key} is not supported: only text is trained", f"remove {key}")


def row_weight(row: Mapping[str, object]) -> None:
    """Raise WrongRow where a row asks for a weight of its own."""
    weight = row.get("weight")
    if weight in (None, "", "1", "1.0") or (weight == 1 and not isinstance(weight, bool)):
        return
    given = json.dumps(weight, ensure_ascii=False)[:40]
    remedy = 'remove the row or its weight; in a message "weight": 0 leaves an answer untrained'
    raise WrongRow(f"weight {given} of a row is not supported, expected 1", remedy)


def thought(row: Mapping[str, object], where: str = "") -> str:
    """What is thought before an answer, "" where the row or message says nothing of it."""
    found = {key: row[key] for key in THOUGHTS if key in row and row[key] not in (None, "")}
    texts = {string(value, f"{where}{key}") for key, value in found.items()}
    if len(texts) > 1:
        names = " and ".join(found)
        raise WrongRow(f"{where}{names} differ, expected one thought", "keep one of them")
    text = texts.pop() if texts else ""
    return text if text.strip() else ""


def given_key(row: Mapping[str, object], key: str, other: str) -> str:
    """By which of two names of one thing a row has it: the usual one where it has neither."""
    if not row.get(other):
        return key
    if row.get(key) and row[key] != row[other]:
        raise WrongRow(f"{key} and {other} differ", "keep one of them")
    return other


def parsed(value: object, name: str) -> object:
    """A value that may be given as JSON in a string."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return strict_json(string(value, name))
    except (ValueError, RecursionError) as error:
        what = f"{name} is text that is not JSON: {error}"
        raise WrongRow(what, "write names and texts in double quotes, as JSON has them") from None


def strict_json(text: str) -> object:
    """JSON without NaN and without repeated keys.

    Raises:
        ValueError: it is none.
    """
    return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(double)} is repeated")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def options(row: Mapping[str, object]) -> str:
    """`chat_template_kwargs` in JSON, "" where there are none."""
    key = "chat_template_kwargs"
    found = parsed(row.get(key), key)
    if not found:
        return ""
    if not isinstance(found, dict):
        remedy = f'write an object: "{key}": {{"enable_thinking": false}}'
        raise WrongRow(f"{key} is {kind_of(found)}, expected an object", remedy)
    taken = sorted(_TAKEN & found.keys())
    if taken:
        raise WrongRow(f"{key} can't set {', '.join(taken)}", "remove it")
    return as_json(found, key)


def tools(row: Mapping[str, object]) -> str:
    """`tools` in JSON as templates read them, "" where there are none.

    Each is `{"type": "function", "function": {...}}`, or the function alone.
    """
    key = given_key(row, "tools", "functions")
    found = parsed(row.get(key), key)
    if not found:
        return ""
    if not isinstance(found, list):
        raise WrongRow(f"{key} is {kind_of(found)}, expected a list of functions", _tools_as(key))
    made = [_tool(tool, f"tool {number}") for number, tool in enumerate(found, 1)]
    names = [tool["function"]["name"] for tool in made]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise WrongRow(f"two tools have the name {shown(double)}", "keep one of them")
    return as_json(made, "tools")


def _tool(tool: object, where: str) -> dict[str, Any]:
    tool = parsed(tool, where)
    if not isinstance(tool, dict):
        raise WrongRow(f"{where} is {kind_of(tool)}, expected an object", _tools_as("tools"))
    kind = tool.get("type", "function")
    if kind != "function":
        what = f'{where}: type is {json.dumps(kind)[:40]}, expected "function"'
        raise WrongRow(what, _FUNCTION_ALONE)
    function = tool.get("function", tool)
    if not isinstance(function, dict):
        what = f"{where}: function is {kind_of(function)}, expected an object"
        raise WrongRow(what, _tools_as("tools"))
    name = _name(function, where)
    given = {key: value for key, value in function.items() if value is not None}
    parameters = parsed(given.get("parameters"), f"{where}: parameters")
    # in the order in which a server gets them, so that the prompts are the same
    ordered: dict[str, Any] = {"name": name}
    if "description" in given:
        ordered["description"] = string(given["description"], f"{where}: description")
    ordered["parameters"] = _NO_PARAMETERS if parameters is None else parameters
    if not isinstance(ordered["parameters"], dict):
        what = f"{where}: parameters is {kind_of(parameters)}, expected an object"
        remedy = 'write a JSON schema: "parameters": {"type": "object", "properties": {...}}'
        raise WrongRow(what, remedy)
    known = {*ordered, "strict", "type"}
    ordered |= {key: value for key, value in given.items() if key not in known}
    return {"type": "function", "function": ordered}


def calls(value: object, where: str) -> list[dict[str, Any]]:
    """Calls of functions as templates read them, in any of the forms in which data has them.

    `{"id"?, "type"?, "function": {"name", "arguments"}}` or `{"name", "arguments"}`, one or a
    list, the arguments an object or one in JSON.
    """
    found = parsed(value, where)
    each = [found] if isinstance(found, dict) else found
    if not isinstance(each, list) or not each:
        expected = "expected a call or a list of calls of functions"
        raise WrongRow(f"{where} is {kind_of(found)}, {expected}", _CALL_AS)
    return [
        _call(call, where if len(each) == 1 else f"{where}: call {n}")
        for n, call in enumerate(each, 1)
    ]


def _call(call: object, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise WrongRow(f"{where} is {kind_of(call)}, expected an object", _CALL_AS)
    kind = call.get("type")
    if kind not in (None, "function"):
        what = f'{where}: type is {json.dumps(kind)[:40]}, expected "function"'
        raise WrongRow(what, _FUNCTION_ALONE)
    function = call.get("function") or call
    if not isinstance(function, dict):
        raise WrongRow(f"{where}: function is {kind_of(function)}, expected an object", _CALL_AS)
    name = _name(function, where)
    given = function.get("arguments", function.get("parameters"))
    arguments = parsed(given, f"{where}: arguments")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        what = f"{where}: arguments is {kind_of(arguments)}, expected an object"
        raise WrongRow(what, _ARGUMENTS_AS)
    made: dict[str, Any] = {}
    if call.get("id") is not None:
        made["id"] = string(call["id"], f"{where}: id")
    return made | {"type": "function", "function": {"name": name, "arguments": arguments}}


def _name(function: Mapping[str, object], where: str) -> str:
    if function.get("name") is None:
        raise WrongRow(f"{where}: the name of the function is missing", _NAME_AS)
    name = string(function["name"], f"{where}: name")
    if not name.strip():
        raise WrongRow(f"{where}: the name of the function is empty", _NAME_AS)
    return name


def as_json(value: object, name: str) -> str:
    """A value in JSON; WrongRow where it holds half a character."""
    return string(json.dumps(value, ensure_ascii=False), name)
