"""A conversation to the renderings that are trained: one of all of it, or one an answer.

The rule: an answer is trained as the template writes it where it is the last one, behind the very
prompt that serving makes of the messages before it. Where one rendering of the whole row says the
same of each of its answers, it is taken; else each answer gets a rendering of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from aift_ray.data.examples import Message
from aift_ray.data.prompts.answer_spans import Joiner, Prompt, literal_parts
from aift_ray.data.prompts.char_alignment import Content, Marking, TextSpan, holds
from aift_ray.data.prompts.chat_template import ChatTemplate, Shape
from aift_ray.data.prompts.final_answer import FinalAnswer, hidden, lost_thoughts, text_of
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import SafeTokenizer
from aift_ray.data.prompts.supervision import Supervision
from aift_ray.data.prompts.template_errors import lost_text

_VERDICTS = 1024
# messages to parts with rewritten literals
_View = Callable[[Sequence[Message], bool], list[TextSpan]]


@dataclass
class Renderings:
    """What is trained of a conversation.

    Attributes:
        prompts: each with the turns that are trained in it.
        split: the row became one rendering an answer.
        lost: turns whose thoughts stand nowhere.
    """

    prompts: list[tuple[Prompt, frozenset[int]]]
    split: bool = False
    lost: set[int] = field(default_factory=set)


class Renderer:
    """Renders conversations for training.

    Args:
        joiner: knows the headers and ends of this template's turns.
    """

    def __init__(self, safe: SafeTokenizer, joiner: Joiner, supervision: Supervision) -> None:
        self._safe, self._joiner, self._supervision = safe, joiner, supervision
        self._verdicts: dict[tuple[object, ...], str] = {}

    def renderings(self, template: ChatTemplate, messages: Sequence[Message]) -> Renderings:
        """What is trained of a row.

        Raises:
            RowError: the template loses a text, or can't write the row.
        """
        trained = self._trained(messages)
        own, shape = template.parts_and_shape(messages, False, self._safe)
        parts = self._named(own)
        why = self._verdict(template, messages, trained, shape)
        if not why:
            prompt = self._joiner.join(parts)
            _check_arguments(prompt.text, messages)
            return Renderings(
                [(prompt, frozenset(trained))], lost=lost_thoughts(template, messages, parts)
            )
        several = len(trained) > 1
        if several and self._supervision.rewritten == "error":
            remedy = "--data.on_rewritten_turn split makes one row an answer of it"
            raise RowError(why, remedy)
        if several and self._supervision.rewritten == "keep":
            prompt, lost = self._piece(template, messages, trained[-1])
            return Renderings([(prompt, frozenset(trained))], lost=lost)
        pieces = [self._piece(template, messages, turn) for turn in trained]
        prompts = [
            (prompt, frozenset((turn,))) for (prompt, _), turn in zip(pieces, trained, strict=True)
        ]
        # a thought that is cut from the history has been trained in a piece of its own
        lost = pieces[-1][1] - set(trained)
        return Renderings(prompts, split=several, lost=lost)

    def _trained(self, messages: Sequence[Message]) -> list[int]:
        answers = [turn for turn, each in enumerate(messages) if each.role == "assistant"]
        chosen = answers[-1:] if self._supervision.turns == "last" else answers
        trained = [turn for turn in chosen if messages[turn].trained]
        if not trained:
            what = "the last answer has the weight 0, and data.train_turns last trains no other"
            raise RowError(what if answers else "the conversation has no answer")
        return trained

    def _named(self, parts: Sequence[TextSpan]) -> list[TextSpan]:
        return literal_parts(parts, self._safe)

    def _verdict(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        trained: Sequence[int],
        marked: Shape | None,
    ) -> str:
        """Why the whole row can't be taken, "" where it can; the same for rows of one shape."""
        if marked is None:
            # the template looks into what is said, so that nothing can be said of the shape
            def real(turns: Sequence[Message], generation: bool) -> list[TextSpan]:
                return self._named(template.parts(turns, generation, self._safe))

            return self._unlike(template, messages, trained, real, shape=False)
        key = (template, *marked, *trained)
        if key not in self._verdicts:
            if len(self._verdicts) >= _VERDICTS:
                self._verdicts.clear()

            def shape(turns: Sequence[Message], generation: bool) -> list[TextSpan]:
                return self._named(template.shape(turns, generation))

            self._verdicts[key] = self._unlike(template, messages, trained, shape, shape=True)
        return self._verdicts[key]

    def _unlike(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        trained: Sequence[int],
        view: _View,
        shape: bool,
    ) -> str:
        """What the rendering of a whole row has that its answers' own have not, or ""."""
        parts = view(messages, False)
        whole = self._joiner.join(parts)
        if _missing(template, messages, parts, shape):
            return "the chat template loses a text of this conversation"
        spans = {span.turn: span for span in whole.spans}
        for turn in trained:
            before = text_of(view(messages[:turn], True))
            own_parts = parts if turn == len(messages) - 1 else view(messages[: turn + 1], False)
            own = self._joiner.join(own_parts)
            place = f"the chat template writes message {turn + 1} (assistant) otherwise"
            if _missing(template, messages[: turn + 1], own_parts, shape, turn):
                return "the chat template loses a text of this conversation"
            if not own.text.startswith(before) or hidden(template, messages[turn], own_parts, turn):
                return f"{place} than the model is to write it"
            span, alone = spans[turn], own.spans[-1]
            same = (span.start, span.end) == (len(before), alone.end)
            if not same or whole.text[: span.end] != own.text[: span.end]:
                return f"{place} once it is history"
        return ""

    def _piece(
        self, template: ChatTemplate, messages: Sequence[Message], turn: int
    ) -> tuple[Prompt, set[int]]:
        """The prompt that serving feeds for an answer, and the answer; whose thoughts are lost."""
        before = self._named(template.parts(messages[:turn], True, self._safe))
        missing = _missing(template, messages[:turn], before)
        if missing:
            raise _loses(template, messages, missing)
        full = self._named(template.parts(messages[: turn + 1], False, self._safe))
        missing = _missing(template, messages[: turn + 1], full, only=turn)
        if missing:
            raise _loses(template, messages, missing)
        answer = FinalAnswer(self._safe, template, messages, turn).parts(before, full)
        start = len(text_of(before))
        prompt = self._joiner.join([*before, *answer], (turn, start))
        if not prompt.spans or prompt.spans[-1].turn != turn:
            raise _loses(template, messages, Content(turn, messages[turn].content, "answer"))
        _check_arguments(prompt.text, messages[: turn + 1])
        return prompt, lost_thoughts(template, messages[:turn], before)


def _loses(template: ChatTemplate, messages: Sequence[Message], content: Content) -> RowError:
    remedy = ""
    if content.kind == "call":
        remedy = "train a model whose chat template writes calls of tools"
    return RowError(lost_text(template.source, messages, content), remedy)


def _missing(
    template: ChatTemplate,
    messages: Sequence[Message],
    parts: Sequence[TextSpan],
    shape: bool = False,
    only: int | None = None,
) -> Content | None:
    """A text that a rendering does not hold once, but for thoughts.

    What an assistant says beside a call may be cut from the history, as a thought is.

    Args:
        shape: the contents are sentinels.
        only: the turn that is looked at, where it is not history; None: all, as history.
    """
    _, contents = Marking(template.tags).mark(messages)
    total = Counter(_key(c) for part in parts if (c := part.content))
    wanted = Counter(map(_key, contents))
    apart = shape or any(kind == "text" for _, kind, _ in total)
    text = "" if apart else text_of(parts)
    for content in contents:
        number = total[_key(content)]
        calls = only is None and '"tool_calls"' in messages[content.turn].further
        if content.kind == "thought" or (only is not None and content.turn != only):
            continue
        if content.kind == "answer" and calls and not number:
            continue
        if content.kind == "text" and not apart:
            if not holds(text, content.text):
                return content
        elif number < wanted[_key(content)] or (content.kind != "call" and number > 1):
            return content
    return None


def _key(content: Content) -> tuple[int, str, str]:
    """What tells contents apart: a turn has one text, and may call several functions."""
    return content.turn, content.kind, content.text if content.kind == "call" else ""


def _check_arguments(text: str, messages: Sequence[Message]) -> None:
    """RowError where a rendering lacks what a function is called with."""
    for turn, message in enumerate(messages):
        if '"tool_calls"' not in message.further:
            continue
        for call in json.loads(message.further)["tool_calls"]:
            for leaf in _leaves(call["function"]["arguments"]):
                if not holds(text, leaf):
                    shown = json.dumps(leaf[:40], ensure_ascii=False)
                    what = f"the chat template does not write {shown}, of the call in message"
                    raise RowError(f"{what} {turn + 1}")


def _leaves(value: object) -> Iterator[str]:
    """The texts and numbers in a JSON value, keys included."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield json.dumps(value)
