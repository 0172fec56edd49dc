"""Examples to token ids with the mask of what is trained, and to the prompts that serving feeds.

Training and serving share this file: a prompt's ids are made the same way, border by border, so
the ids in front of an answer are those that the model sees when it is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

from transformers import PreTrainedTokenizerBase

from aift_ray.data.encoded import Encoded
from aift_ray.data.examples import Example, Message
from aift_ray.data.templates import (
    FALLBACK_INPUT,
    FALLBACK_TEMPLATE,
    PINNED_DATE,
    ChatTemplate,
    Part,
    RowError,
    SafeTokenizer,
    is_fallback,
)
from aift_ray.errors import ModelError, Problem

__all__ = ["PromptEncoder", "RowError", "digest", "fit", "split_text"]

# Goes up whenever the same rows would get other ids, so that stored rows are made anew.
VERSION = 1
_COMPARED_ROWS = 100


class PromptEncoder:
    """Encodes rows for one tokenizer.

    A tokenizer without a chat template gets the Alpaca form (`### 指示:`) as its own, so that it
    is saved with the model.

    Args:
        tokenizer: a fast one with an end-of-text token.
        system_prompt: for rows without a system message; put in front of the first user turn
            where the template has no system role.
        extra_stop_ids: what the model's generation_config stops at.

    Attributes:
        used_fallback: the chat template is our Alpaca form.
        stop_ids: every id that ends a turn.
        generation_gap: the generation prompt differs from the training text at the same place.
        piecewise_rows: rows encoded in pieces so far, since a token would span prompt and answer.

    Raises:
        ModelError: no offsets, no end-of-text token, or a template that can't be trained on.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str | None = None,
        *,
        extra_stop_ids: Iterable[int] = (),
    ) -> None:
        _check(tokenizer)
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        if not tokenizer.chat_template:
            tokenizer.chat_template = FALLBACK_TEMPLATE
        self._template = ChatTemplate(tokenizer)
        self._safe = SafeTokenizer(tokenizer.backend_tokenizer)  # type: ignore[attr-defined]
        self.used_fallback = is_fallback(self._template.source)
        self.generation_gap = False
        self.piecewise_rows = 0
        self._compared = 0
        self._eos: int = tokenizer.eos_token_id
        self._prefix = _prefix(tokenizer)
        self._folds_system = not self._has_system_role()
        self._header = self._find_header()
        ends = [self._eos, *extra_stop_ids, self._find_turn_end()]
        self.stop_ids = list(dict.fromkeys(ends))

    def encode(self, example: Example) -> Encoded:
        """Ids of a row and what is trained: each answer with one end-of-turn token, or a text.

        Raises:
            RowError: why the row can't be encoded.
        """
        if example.kind == "text":
            ids, _ = self._safe.encode(_unmarked(example.output))
            return self._raw(ids, 0)
        if example.kind == "prompt":
            text = _unmarked(example.instruction) + _unmarked(example.output)
            ids, _, counts = self._grow(text, [len(example.instruction)], count=True)
            return self._raw(ids, counts[0])
        parts = self._parts(self._messages(example), generation=False)
        text, spans = self._spans(parts)
        ids, begins, counts = self._grow(text, [start for start, _ in spans], count=True)
        supervised = [False] * len(ids)
        for (_, end), first in zip(spans, counts, strict=True):
            index = first
            while index < len(ids) and begins[index] < end:
                supervised[index] = True
                index += 1
        if self._compared < _COMPARED_ROWS:
            self._compared += 1
            self.generation_gap |= ids[: counts[-1]] != self.prompt_ids(example)
        return Encoded(ids, supervised)

    def prompt_ids(self, example: Example) -> list[int]:
        """The ids that serving feeds for the last answer of a row.

        Raises:
            RowError: the row can't be rendered, or is a plain text.
        """
        if example.kind == "text":
            raise RowError("a plain text has no prompt")
        if example.kind == "prompt":
            return self._prefix + self._safe.encode(_unmarked(example.instruction))[0]
        return self._chat_ids(self._messages(example)[:-1])

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids that serving feeds for a conversation that ends with a user's turn.

        Raises:
            RowError: the conversation can't be rendered.
        """
        return self._chat_ids(self._with_system(messages))

    def answer_text(self, example: Example) -> str:
        """The expected last answer, as it stands in the row."""
        return example.messages[-1].content if example.kind == "messages" else example.output

    def digest(self) -> str:
        """sha256, in hex, of everything that changes ids."""
        return digest(self)

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        text, spans = self._spans(self._parts(messages, generation=True))
        return self._grow(text, [start for start, _ in spans])[0]

    def _raw(self, ids: list[int], first: int) -> Encoded:
        """A row without template; supervised from ids[first] on."""
        unsupervised = len(self._prefix) + first
        supervised = [False] * unsupervised + [True] * (len(ids) - first + 1)
        return Encoded([*self._prefix, *ids, self._eos], supervised)

    def _messages(self, example: Example) -> list[Message]:
        if example.kind == "messages":
            return self._with_system(example.messages)
        question = example.instruction
        if example.input:
            question += (FALLBACK_INPUT if self.used_fallback else "\n\n") + example.input
        return self._with_system([Message("user", question), Message("assistant", example.output)])

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        chat = list(messages)
        if self.system_prompt and chat and chat[0].role != "system":
            chat.insert(0, Message("system", self.system_prompt))
        if self._folds_system and len(chat) > 1 and chat[0].role == "system":
            system, user = chat[:2]
            chat[:2] = [Message(user.role, f"{system.content}\n\n{user.content}")]
        return chat

    def _parts(self, messages: Sequence[Message], generation: bool) -> list[Part]:
        """The rendering, with the template's control strings written as the safe tokenizer's."""
        return [
            Part(self._safe.literal(part.text)) if part.content is None else part
            for part in self._template.parts(messages, generation, self._safe)
        ]

    def _spans(self, parts: Sequence[Part]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and start and end of what is trained in it, for each assistant turn."""
        text = "".join(part.text for part in parts)
        spans: list[tuple[int, int]] = []
        position = said = 0  # said: where the last content of another turn ended
        begin: int | None = None
        for index, part in enumerate(parts):
            content = part.content
            if content is not None and content.assistant and begin is None:
                begin = self._start(text, said, position)
            position += len(part.text)
            if content is not None and (content.answer or not content.assistant):
                said = position
            if content is None or not content.answer or begin is None:
                continue
            end = self._safe.first_control(text, position, position + len(parts[index + 1].text))
            if end is None:
                raise RowError("the chat template writes no end-of-turn token after an answer")
            spans.append((begin, end[1]))
            begin = None
        return text, spans

    def _start(self, text: str, said: int, content: int) -> int:
        """Where an answer's span starts: after what serving writes itself.

        The model writes the rest, such as Harmony's channel or Qwen3's empty think block. Where
        the other contents weren't told apart, the template's header is the last one in the text.
        """
        header = self._header
        if text.startswith(header, said):
            return said + len(header)
        found = text.rfind(header, said, content) if header else -1
        if found >= 0:
            return found + len(header)
        self.generation_gap = True
        header = header.partition("<think>")[0]
        found = text.rfind(header, said, content) if header else -1
        return found + len(header) if found >= 0 else content

    def _grow(
        self, text: str, borders: Sequence[int], count: bool = False
    ) -> tuple[list[int], list[int], list[int]]:
        """Ids, where each begins in the text, and the number of ids before each border.

        The text is encoded as a whole wherever the ids before a border stay what they are without
        the rest; else it is cut at that border. What stands behind a border changes nothing
        before it, so a prompt gets the same ids alone and inside a row.
        """
        ids: list[int] = []
        begins: list[int] = []
        counts: list[int] = []
        cut = 0
        stops = [*borders, len(text)]
        last, places = self._safe.encode(text[: stops[0]])
        for border, stop in pairwise(stops):
            counts.append(len(ids) + len(last))
            joint, joint_places = self._safe.encode(text[cut:stop])
            if joint[: len(last)] == last:
                last, places = joint, joint_places
                continue
            ids += last
            begins += [cut + place for place in places]
            last, places = self._continuation(text[border:stop])
            cut = border
        if count and cut:
            self.piecewise_rows += 1
        return ids + last, begins + [cut + place for place in places], counts

    def _continuation(self, text: str) -> tuple[list[int], list[int]]:
        if not self._safe.dummy_prefix:
            return self._safe.encode(text)
        # The start of a text gets a blank that doesn't belong here; behind a newline it does not.
        newline = self._safe.encode("\n")[0]
        ids, places = self._safe.encode("\n" + text)
        if ids[: len(newline)] != newline:
            raise RowError("the tokenizer can't keep the prompt apart from this answer")
        return ids[len(newline) :], [max(0, place - 1) for place in places[len(newline) :]]

    def _has_system_role(self) -> bool:
        system, user = Message("system", "規則"), Message("user", "質問")
        try:
            parts = self._template.parts([system, user], True, self._safe)
        except RowError:
            return False
        return any(part.content is not None and part.content.turn == 0 for part in parts)

    def _find_header(self) -> str:
        """What the template writes between a user's turn and the answer, when it asks for one."""
        try:
            parts = self._parts([Message("user", "質問")], generation=True)
        except RowError as error:
            raise _unusable(str(error)) from None
        if len(parts) == 1:
            raise _unusable("it does not write what the user says")
        return parts[-1].text

    def _find_turn_end(self) -> int:
        messages = [Message("user", "質問"), Message("assistant", "答え")]
        try:
            text, spans = self._spans(self._parts(messages, generation=False))
        except RowError as error:
            raise _unusable(str(error)) from None
        (_, end), *_ = spans
        start = text.rindex("答え", 0, end)
        found = self._safe.first_control(text, start, end)
        assert found is not None  # _spans has found it
        return found[0]


def _check(tokenizer: PreTrainedTokenizerBase) -> None:
    problems = []
    if not tokenizer.is_fast:
        remedy = "convert it to tokenizer.json (transformers.convert_slow_tokenizer)"
        problems.append(Problem("tokenizer", "it is a slow one, without offsets", remedy))
    if tokenizer.eos_token_id is None:
        remedy = "set eos_token in tokenizer_config.json"
        problems.append(Problem("tokenizer", "it has no end-of-text token (eos_token)", remedy))
    if problems:
        raise ModelError(problems)


def _unusable(reason: str) -> ModelError:
    remedy = "mend the model folder's chat template, or remove it to use the Alpaca form"
    return ModelError([Problem("chat_template", reason, remedy)])


def _unmarked(text: str) -> str:
    """The text, if it can't be taken for one of the safe tokenizer's names."""
    if MARK in text:
        raise RowError("the text holds U+FDD0 'aift-', which is reserved")
    return text


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a plain text, such as BOS."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    starts = range(len(whole) - len(plain) + 1)
    return next((whole[:at] for at in starts if whole[at : at + len(plain)] == plain), [])


def digest(encoder: PromptEncoder) -> str:
    """sha256, in hex, of everything that changes ids: tokenizer, template, system prompt, us."""
    tokenizer = encoder.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    # Left over from earlier calls of the tokenizer; they change no ids of ours.
    state.update(truncation=None, padding=None)
    parts = [
        VERSION,
        PINNED_DATE.isoformat(),
        state,
        tokenizer.get_chat_template(),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        encoder.system_prompt,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fit(encoded: Encoded, sequence_length: int) -> Encoded | None:
    """A row cut to a length, or None where the answers and two tokens of prompt don't fit.

    What follows the last answer goes first, then the middle of the longest unsupervised runs:
    heads (BOS, system) and tails (the tokens right before an answer) stay.
    """
    if len(encoded) <= sequence_length:
        return encoded
    flags = encoded.supervised
    last = max((index for index, flag in enumerate(flags) if flag), default=len(flags) - 1)
    ids, flags = encoded.ids[: last + 1], flags[: last + 1]
    runs: list[tuple[bool, int, int]] = []
    for flag, group in groupby(enumerate(flags), key=lambda pair: pair[1]):
        places = [index for index, _ in group]
        runs.append((flag, places[0], places[-1] + 1))
    lengths = [end - start for flag, start, end in runs if not flag]
    room = sequence_length - sum(flags)
    if room < min(2, sum(lengths)):
        return None
    kept = iter(_shares(lengths, room))
    places = []
    for flag, start, end in runs:
        share = end - start if flag else next(kept)
        tail = end - (share + 1) // 2
        places += [*range(start, start + share // 2), *range(tail, end)]
    return Encoded([ids[place] for place in places], [flags[place] for place in places])


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens each run keeps: the longest give first, the first keeps two if it can."""
    floors = [min(2, length) if index == 0 else 0 for index, length in enumerate(lengths)]

    def total(level: int) -> int:
        return sum(max(floor, min(n, level)) for floor, n in zip(floors, lengths, strict=True))

    low, high = 0, max(lengths, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle) <= room else (low, middle - 1)
    shares = [max(floor, min(n, low)) for floor, n in zip(floors, lengths, strict=True)]
    # The level is whole tokens; what is left goes to the last runs, nearest the last answer.
    spare = room - sum(shares)
    for index in reversed(range(len(shares))):
        if spare > 0 and shares[index] < lengths[index]:
            shares[index] += 1
            spare -= 1
    return shares


def split_text(encoded: Encoded, sequence_length: int) -> list[Encoded]:
    """Consecutive pieces of at most `sequence_length` tokens; nothing is lost."""
    return [
        Encoded(
            encoded.ids[start : start + sequence_length],
            encoded.supervised[start : start + sequence_length],
        )
        for start in range(0, len(encoded), sequence_length)
    ]
