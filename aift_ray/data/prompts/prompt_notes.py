"""What of a row its rendering does not show: counted, and told in the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aift_ray.data.examples import Example, Message
from aift_ray.data.prompts.char_alignment import ThoughtTags
from aift_ray.data.prompts.chat_template import ChatTemplate
from aift_ray.data.prompts.odd_calls import ODD_CALLS, odd_calls
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.readers.turns import GIVEN_ID

# before the name of a key that has no place in a row of raw text
RAW = "raw:"
# keys that nothing reads, of which so many are named
_SHOWN = 12
_LEFT_OUT = "left out"
_NOT_SHOWN = "lost"
_TOLD = {
    _LEFT_OUT: "thoughts are left out of {} (data.train_thoughts none)",
    _NOT_SHOWN: "{} hold thoughts that this template does not show: of answers that are history",
}
# keys of a message that few templates write
_LINKS = ("name", "tool_call_id")


def without_thoughts(messages: Sequence[Message], tags: ThoughtTags) -> tuple[list[Message], bool]:
    """The messages without what assistants think, and whether there was any of it."""
    made, found = [], False
    for each in messages:
        if each.role == "assistant" and tags.thinks(each):
            found = True
            within = tags.within(each.content, returned=tags.known)
            content = within[4].lstrip() if within else each.content
            each = replace(each, content=content, thought="")
        made.append(each)
    return made, found


def not_shown(
    template: ChatTemplate,
    messages: Sequence[Message],
    example: Example,
    text: str,
    left_out: bool,
    lost: bool,
) -> tuple[str, ...]:
    """Keys of a row of which nothing stands in its rendering, and what is odd about its calls.

    Args:
        text: the rendering.
        left_out: thoughts were left out as the settings ask for it.
        lost: a thought of a message that is not trained is not in the rendering.

    Raises:
        RowError: the row calls tools, and the model is not told which there are.
    """
    found = list(example.unused)
    if example.tools:
        names = [tool["function"]["name"] for tool in template.tools]
        if not template.shows_tools or not all(name in text for name in names):
            if any('"tool_calls"' in each.further for each in messages):
                what = "the chat template does not show the model the tools that the row calls"
                raise RowError(what, "use a model whose template knows tools")
            found.append("tools")
    if example.options:
        names = [name for name in json.loads(example.options) if not template.reads(name)]
        found += [f"chat_template_kwargs.{name}" for name in names]
    found += [_LEFT_OUT] * left_out + [_NOT_SHOWN] * lost
    found += [key for key in _LINKS if _given(messages, key) and _same(template, messages, key)]
    return (*found, *odd_calls(messages, template.tools))


def told(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """The keys that `not_shown` returns and their numbers of rows: a label and words for each."""
    lines = []
    for kind, words in ODD_CALLS.items():
        odd = {key.removeprefix(kind): n for key, n in counts.items() if key.startswith(kind)}
        lines += [("tool calls", f"{words}: {ignored_keys(odd)}")] if odd else []
    plain = {key: n for key, n in counts.items() if not key.startswith(tuple(ODD_CALLS))}
    return [("not trained", _told(*each)) for each in plain.items()] + lines


def _told(key: str, rows: int) -> str:
    number = f"{rows:,} row{'s' if rows != 1 else ''}"
    if key in _TOLD:
        return _TOLD[key].format(number)
    hold = f"{number} hold{'s' if rows == 1 else ''}"
    if key.startswith(RAW):
        return f"{hold} {key.removeprefix(RAW)}: raw text has no place for it"
    return f"{hold} {key}: not shown by this template"


def ignored_keys(counts: Mapping[str, int]) -> str:
    """Names with the numbers of rows that hold them, those of most rows first, in words."""
    ranked = sorted(counts.items(), key=lambda each: -each[1])
    words = [f"{key} ({rows:,} row{'s' if rows != 1 else ''})" for key, rows in ranked[:_SHOWN]]
    further = len(ranked) - _SHOWN
    return ", ".join(words) + (f" and {further} more" if further > 0 else "")


def _given(messages: Sequence[Message], key: str) -> bool:
    """Whether the row itself has a key in one of its messages."""
    for each in messages:
        if f'"{key}"' in each.further:
            value = json.loads(each.further).get(key)
            if value is not None and not GIVEN_ID.fullmatch(value):
                return True
    return False


def _same(template: ChatTemplate, messages: Sequence[Message], key: str) -> bool:
    """Whether the template writes the same without a key."""
    without = []
    for each in messages:
        if f'"{key}"' in each.further:
            further = json.loads(each.further)
            further.pop(key, None)
            each = replace(each, further=json.dumps(further, ensure_ascii=False))
        without.append(each)
    try:
        return template.render(messages, False) == template.render(without, False)
    except RowError:
        return False
