"""What rows need of a tokenizer, checked."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from aift_ray.errors import ModelError, Problem


def check(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError for a tokenizer without offsets, or without an end-of-text token."""
    problems = []
    if not tokenizer.is_fast:
        remedy = "convert it to tokenizer.json (transformers.convert_slow_tokenizer)"
        problems.append(Problem("tokenizer", "it is a slow one, without offsets", remedy))
    if tokenizer.eos_token_id is None:
        remedy = "set eos_token in tokenizer_config.json"
        problems.append(Problem("tokenizer", "it has no end-of-text token (eos_token)", remedy))
    if problems:
        raise ModelError(problems)


def prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a plain text, such as BOS."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    starts = range(len(whole) - len(plain) + 1)
    return next((whole[:at] for at in starts if whole[at : at + len(plain)] == plain), [])
