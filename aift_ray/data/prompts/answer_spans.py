"""Where answers stand in a rendering: behind their header, up to the end of the turn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from aift_ray.data.prompts.char_alignment import Content, TextSpan
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import SafeTokenizer


@dataclass(frozen=True, slots=True)
class Span:
    """An assistant's turn in the text.

    Attributes:
        turn: index of its message.
        start, end: where it stands; the end-of-turn token is the last thing in it.
        turn_end: id of the token that ends the turn.
        times: how often that token stands in the span; the last one ends it.
        thought_end: where its thought ends, `start` where it has none.
        gap: the answer does not follow the header that serving writes.
    """

    turn: int
    start: int
    end: int
    turn_end: int
    times: int
    thought_end: int
    gap: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendering that is ready to be encoded by the safe tokenizer.

    Attributes:
        text: with the template's control strings under the safe tokenizer's names.
        spans: one for each assistant turn.
    """

    text: str
    spans: list[Span] = field(default_factory=list)


class Joiner:
    """Puts parts together and finds the answers in them.

    Args:
        headers: what serving writes between a user's turn, or a tool's, and the answer, rewritten
            by `SafeTokenizer.literal`.
        call_ends: ids of tokens that end a turn which calls tools.
    """

    def __init__(
        self, safe: SafeTokenizer, headers: Sequence[str], call_ends: Collection[int] = ()
    ) -> None:
        self._safe, self.headers = safe, list(headers)
        self.call_ends = set(call_ends)

    def join(self, parts: Sequence[TextSpan], known: tuple[int, int] = (-1, -1)) -> Prompt:
        """The text of parts whose literals are rewritten, and the spans in it.

        Args:
            known: a turn, and where it starts.

        Raises:
            RowError: an answer isn't followed by an end-of-turn token.
        """
        text = "".join(part.text for part in parts)
        last = _last_parts(parts)
        spans: list[Span] = []
        position = said = 0  # said: where the last turn before this one ended
        gap, begin, thought_end = False, -1, -1
        for index, part in enumerate(parts):
            content, place = part.content, position
            position += len(part.text)
            if content is None:
                continue
            if not content.assistant:
                said = position
                continue
            if content.turn not in last:
                continue
            if begin < 0:
                begin, gap = known[1], False
                if content.turn != known[0]:
                    begin, gap = self._start(text, said, place)
                thought_end = begin
            if content.kind == "thought":
                thought_end = position
            if index == last[content.turn]:
                del last[content.turn]
                end = self._end(text, position, _until(parts, index, position), content)
                name, turn_end, after = end
                times = text.count(name, begin, after)
                spans.append(Span(content.turn, begin, after, turn_end, times, thought_end, gap))
                begin, said = -1, position
        return Prompt(text, spans)

    def _end(self, text: str, position: int, until: int, content: Content) -> tuple[str, int, int]:
        found = self._safe.first_control(text, position, until)
        if content.kind == "call":
            # calls have control tokens of their own
            while found is not None and found[1] not in self.call_ends:
                found = self._safe.first_control(text, found[2], until)
        if found is None:
            raise RowError("the chat template writes no end-of-turn token after an answer")
        return found

    def _start(self, text: str, said: int, content: int) -> tuple[int, bool]:
        """Where an answer's span starts, and whether the header is not there in full.

        The model writes all that follows the header, such as Harmony's channel or Qwen3's empty
        think block. Where other contents weren't told apart, the header is the last one before the
        answer.
        """
        for header in self.headers:
            if text.startswith(header, said):
                return said + len(header), False
        cut = [header.partition("<think>")[0] for header in self.headers]
        for known, missing in ((self.headers, False), (cut, True)):
            places = [(text.rfind(each, said, content), each) for each in known if each]
            found, header = max(places, default=(-1, ""))
            if found >= 0:
                return found + len(header), missing
        return content, True


def literal_parts(parts: Sequence[TextSpan], safe: SafeTokenizer) -> list[TextSpan]:
    """The parts, with the template's control strings under the safe tokenizer's names."""
    literal = safe.literal
    return [TextSpan(literal(part.text)) if part.content is None else part for part in parts]


def _last_parts(parts: Sequence[TextSpan]) -> dict[int, int]:
    """For each assistant turn the part that ends what the row says in it.

    Templates may repeat the name of a call where its result stands: the first place counts.
    """
    seen, last, speaks = set[int](), dict[int, int](), set[int]()
    for index, part in enumerate(parts):
        content = part.content
        if content is None or not content.assistant or id(content) in seen:
            continue
        seen.add(id(content))
        last[content.turn] = index
        if content.kind != "thought":
            speaks.add(content.turn)
    return {turn: index for turn, index in last.items() if turn in speaks}


def _until(parts: Sequence[TextSpan], index: int, position: int) -> int:
    """Where the text of the next message begins, or the text ends."""
    turn = parts[index].content
    for part in parts[index + 1 :]:
        if part.content is not None and turn is not None and part.content.turn != turn.turn:
            break
        position += len(part.text)
    return position
