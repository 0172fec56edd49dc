"""A tokenizer for which the control strings in a row are ordinary text.

`<|im_end|>` typed by a user must not end the turn, and the template's own must. Both are encoded in
one call, without a seam: the control tokens get other names, which no row may hold, and what the
template wrote is rewritten with these names.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from aift_ray.data.prompts.row_error import RowError
from aift_ray.errors import ModelError, Problem

# A noncharacter, so that no sane text holds the marker; a row that does is refused.
MARK = "\ufdd0aift-"
# Text to put in front of a piece; one that doesn't melt into it is taken.
_ANCHORS = ("\n", "。", "a")
# characters of a text that is encoded alone and kept
_SHORT = 256
# what a BPE has beside its pieces, and an added token beside its id
_BPE = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_TOKEN = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
# characters of texts that are encoded in one call, of which each token takes some 100 bytes
_AT_ONCE = 1 << 18
# a text, and ascending places in it
Bordered = tuple[str, Sequence[int]]
# place and id of each control token, and for each border how many are before it
Controls = tuple[list[tuple[int, int]], list[int]]


@dataclass(frozen=True, slots=True)
class Grown:
    """An encoded text.

    Attributes:
        ids: token ids.
        counts: for each border, how many ids stand before it.
        piecewise: the text was cut at a border.
    """

    ids: list[int]
    counts: list[int]
    piecewise: bool


class SafeTokenizer:
    """A copy of a tokenizer in which control strings are ordinary text.

    The tokens keep their ids and get names that `literal` writes, so one call encodes the
    template's control tokens and the row's look-alikes each as what they are.

    Args:
        control_ids: those of the added tokens that are control; the others are found in text.

    Raises:
        ModelError: the copy does not give the same ids.
    """

    def __init__(self, backend: Tokenizer, control_ids: Collection[int]) -> None:
        state: dict[str, Any] = json.loads(backend.to_str())
        tokens = [each for each in state["added_tokens"] if each["id"] in control_ids]
        self.names = {each["content"]: f"{MARK}token-{each['id']}\ufdd1" for each in tokens}
        for each in tokens:
            # Matched in the raw text: with `normalized`, Llama-2's `</s>` is lost behind a word.
            each.update(content=self.names[each["content"]], normalized=False, single_word=False)
        _rename(state["model"], self.names)
        state.update(post_processor=None, truncation=None, padding=None)
        self._tokenizer = _built(state, self.names)
        self.control_ids = frozenset(each["id"] for each in tokens)
        for content, name in self.names.items():
            if self._tokenizer.token_to_id(name) != backend.token_to_id(content):
                raise ModelError([Problem("tokenizer", f"{content!r} changes its id in a copy")])
        self._remember()

    def __getstate__(self) -> tuple[Any, ...]:
        # to make the copy anew takes seconds with a large vocabulary
        return self._tokenizer, self.names, self.control_ids

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._tokenizer, self.names, self.control_ids = state
        self._remember()

    def _remember(self) -> None:
        """Make what can't be sent to another process."""
        longest_first = sorted(self.names, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._named = re.compile(f"{MARK}token-([0-9]+)\ufdd1")
        self._short = lru_cache(maxsize=1024)(lambda text: tuple(self.encode(text)))
        self.literal = lru_cache(maxsize=4096)(self._literal)
        # "\n" in front shows whether a piece is encoded otherwise at the start of a text.
        alone = self.encode("あ")
        self.dummy_prefix = self.encode("\nあ")[-len(alone) :] != alone

    def has_control(self, text: str) -> bool:
        """Whether a plain tokenizer would find a control token in the text."""
        return self._control.search(text) is not None

    def _literal(self, text: str) -> str:
        return self._control.sub(lambda match: self.names[match[0]], text)

    def unmarked(self, text: str) -> str:
        """The same text.

        Raises:
            RowError: it could be taken for one of our names.
        """
        if MARK in text:
            raise RowError("the text holds U+FDD0 and 'aift-', which is reserved")
        return text

    def first_control(self, text: str, start: int, end: int) -> tuple[str, int, int] | None:
        """Name, id and end of the first control token that `literal` wrote in text[start:end]."""
        match = self._named.search(text, start, end)
        return None if match is None else (match[0], int(match[1]), match.end())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with nothing added."""
        (ids,) = self._encode_all([text])
        return ids

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        found = list[list[int]]()
        for some in _batches(texts):
            # A third faster than `encode_batch`, as it keeps no offsets.
            encodings = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
            found += [encoding.ids for encoding in encodings]
        return found

    def grow(self, text: str, borders: Sequence[int]) -> Grown:
        """Encode a text so that the ids before each border are what they are without the rest.

        The text is encoded as a whole where that holds by itself; else it is cut at the border.
        What stands behind a border changes nothing before it, so a prompt gets the same ids alone
        and inside a row.

        Args:
            borders: ascending places in the text.

        Raises:
            RowError: the tokenizer can't be made to start anew at a border.
        """
        (found,) = self.grow_all([(text, borders)])
        if isinstance(found, RowError):
            raise found
        return found

    def grow_all(self, texts: Sequence[Bordered]) -> list[Grown | RowError]:
        """As `grow`, of many texts with their borders, encoded in one call."""
        controls = [self._controls(*each) for each in texts]
        whole = [text for (text, _), known in zip(texts, controls, strict=True) if known]
        encoded = iter(self._encode_all(whole))
        found = list[Grown | RowError]()
        for (text, borders), known in zip(texts, controls, strict=True):
            grown = self._grown_whole(text, borders, *known, next(encoded)) if known else None
            try:
                found.append(grown or self._grown_by_parts(text, borders))
            except RowError as error:
                found.append(error)
        return found

    def _controls(self, text: str, borders: Sequence[int]) -> Controls | None:
        """The control tokens of a text; None where one of its borders has none before it."""
        found = [(match.start(), int(match[1])) for match in self._named.finditer(text)]
        names = [start for start, _ in found]
        before = [bisect_left(names, border) for border in borders]
        return None if before and before[0] == 0 else (found, before)

    def _grown_whole(
        self,
        text: str,
        borders: Sequence[int],
        found: list[tuple[int, int]],
        before: list[int],
        ids: list[int],
    ) -> Grown | None:
        """As `grow` where the whole text is encoded once; None where that can't be told so.

        A control token parts a text before all else. So what stands before a border is encoded as
        it is alone, if that holds from the last control token on, which is a short text and often
        the same one.

        Args:
            found, before: `_controls`.
            ids: of the text encoded at once.
        """
        # nothing but these names makes control tokens, so each is the next of its id
        places, at = [], 0
        for _, token in found[: before[-1] if before else 0]:
            try:
                at = ids.index(token, at)
            except ValueError:
                return None
            places.append(at)
            at += 1
        counts = []
        for border, number in zip(borders, before, strict=True):
            start, first = found[number - 1][0], places[number - 1]
            if border - start > _SHORT:
                return None
            tail = self._short(text[start:border])
            if tuple(ids[first : first + len(tail)]) != tail:
                return None
            counts.append(first + len(tail))
        return Grown(ids, counts, False)

    def _grown_by_parts(self, text: str, borders: Sequence[int]) -> Grown:
        ids: list[int] = []
        counts: list[int] = []
        cut = 0
        stops = [*borders, len(text)]
        last = self.encode(text[: stops[0]])
        for border, stop in pairwise(stops):
            counts.append(len(ids) + len(last))
            joint = self.encode(text[cut:stop])
            if joint[: len(last)] == last:
                last = joint
                continue
            ids += last
            last = self._continuation(text[border:stop])
            cut = border
        return Grown(ids + last, counts, cut > 0)

    def _continuation(self, text: str) -> list[int]:
        if not self.dummy_prefix:
            return self.encode(text)
        # The start of a text gets a blank that doesn't belong here; behind other text it does not.
        for anchor in _ANCHORS:
            before, ids = self.encode(anchor), self.encode(anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        raise RowError("the tokenizer can't keep the prompt apart from this answer")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in their order, as many at a time as are encoded in one call."""
    held, size = list[str](), 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= _AT_ONCE:
            yield held
            held, size = [], 0
    if held:
        yield held


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename vocabulary entries, so that no model finds them in text (Unigram finds any piece)."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
        return
    model["vocab"] = {names.get(piece, piece): index for piece, index in vocabulary.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _built(state: dict[str, Any], names: Mapping[str, str]) -> Tokenizer:
    """The tokenizer of a state with renamed entries.

    That of a large BPE is made from its parts, in half of the time that its JSON takes.
    """
    model = state["model"]
    if model["type"] != "BPE":
        return Tokenizer.from_str(json.dumps(state))
    pairs = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
    merges = [(first, second) for first, second in pairs]
    given = {key: model[key] for key in _BPE if model.get(key) is not None}
    try:
        bpe = BPE(vocab=model["vocab"], merges=merges, **given)
    except Exception:
        # some merge has a renamed piece; no narrower kind is raised
        kept = [pair for pair in merges if names.keys().isdisjoint((*pair, "".join(pair)))]
        bpe = BPE(vocab=model["vocab"], merges=kept, **given)
    rest = {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    made = Tokenizer.from_str(json.dumps(state | rest))
    made.model = bpe
    made.add_tokens(
        [AddedToken(**{key: each[key] for key in _TOKEN}) for each in state["added_tokens"]]
    )
    return made
