"""The answer within what a model wrote: cut at the turn's end, without its reasoning."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# tokens of a prompt's end that can hold "<think>" and the newlines behind it
_TAIL = 12


@dataclass(frozen=True)
class ParsedAnswer:
    """What a model wrote.

    Attributes:
        text: all of it.
        answer: the part behind the reasoning; None: it was still reasoning when it was stopped.
    """

    text: str
    answer: str | None


def turn_text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Collection[int]
) -> str:
    """The text of new token ids up to the first that ends the turn, without control tokens."""
    kept = _turn(ids, stop_ids)
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    # a turn that was stopped by its length may end within a character
    return text if len(kept) < len(ids) else text.rstrip("\ufffd")


def _turn(ids: Sequence[int], stop_ids: Collection[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[:end])


def written(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: Sequence[int],
    stop_ids: Collection[int],
) -> ParsedAnswer:
    """Tell answer and reasoning apart.

    Args:
        prompt: the ids that the model was given; R1's end within the reasoning.
        ids: the ids that it wrote.
    """
    text = turn_text(tokenizer, ids, stop_ids)
    turn, control = _turn(ids, stop_ids), tokenizer.get_added_vocab()
    channel, message = control.get("<|channel|>"), control.get("<|message|>")
    if channel in turn:
        # Harmony: the answer is what follows the header of the channel `final`, the last one
        header = len(turn) - turn[::-1].index(channel)
        body = turn.index(message, header) if message in turn[header:] else header
        if str(tokenizer.decode(turn[header:body])).strip() != "final":
            return ParsedAnswer(text, None)
        return ParsedAnswer(text, turn_text(tokenizer, ids[body + 1 :], stop_ids))
    before = str(tokenizer.decode(list(prompt[-_TAIL:])))
    if not before.rstrip().endswith("<think>") and not text.lstrip().startswith("<think>"):
        return ParsedAnswer(text, text)
    _, closed, answer = text.partition("</think>")
    return ParsedAnswer(text, answer.lstrip() if closed else None)
