"""Answers held to JSON or to a JSON schema, by llguidance."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from aift_ray.serving.schema_refs import CycleError, check_references

# without a bound, a model that has lost its way writes blanks to the end of its context; llguidance
# 1.7, which vLLM brings, repeats the pattern without end, so that there it gets no blanks at all
_BOUNDS = tuple(map(int, version("llguidance").split(".")[:2])) >= (1, 9)
_OPTIONS: Any = (
    {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,12}"}
    if _BOUNDS
    else {"whitespace_flexible": False}
)


_LARGEST = 2**63


class GrammarError(ValueError):
    """Why a schema can't be followed."""


def _begins(matcher: LLMatcher, stop_ids: list[int]) -> bool:
    """Whether an answer may begin with anything but its end."""
    bits = np.frombuffer(matcher.deep_copy().compute_bitmask(), dtype=np.uint8)
    return bool(set(np.unpackbits(bits, bitorder="little").nonzero()[0].tolist()) - set(stop_ids))


class Grammars:
    """Makes constraints for one tokenizer.

    Args:
        vocabulary: size of the model's output layer.
        stop_ids: what ends an answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: list[int]
    ) -> None:
        self._source: Any = tokenizer
        self._vocabulary, self._stop_ids = vocabulary, stop_ids
        self._tokenizer: LLTokenizer | None = None

    def grammar(self, schema: dict[str, Any]) -> SchemaGrammar:
        """What holds answers to a schema; `{"type": "object"}` allows any object.

        Raises:
            GrammarError: the schema is wrong, or says what llguidance can't enforce.
        """
        if self._tokenizer is None:
            # takes a second, and most servers never need it
            n_vocab = max(self._vocabulary, len(self._source))
            self._tokenizer = from_tokenizer(self._source, n_vocab, self._stop_ids)
        if not isinstance(schema.get("x-guidance", {}), dict):
            raise GrammarError("x-guidance has to be an object")
        _check_numbers(schema)
        try:
            check_references(schema)
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
            matcher = LLMatcher(self._tokenizer, grammar)
        except CycleError as error:
            raise GrammarError(f"$ref {error} leads back to itself") from None
        except (ValueError, RecursionError) as error:
            raise GrammarError(str(error)) from None
        if matcher.is_error():
            raise GrammarError(matcher.get_error().splitlines()[0])
        if not _begins(matcher, self._stop_ids):
            raise GrammarError("no value satisfies it")
        return SchemaGrammar(_with_options(schema), matcher)


def _check_numbers(part: object) -> None:
    """GrammarError for an integer that llguidance has no exact form of.

    The least one of 64 bits ends the whole process: it is negated there without end.
    """
    level = [part]
    while level:
        each = level.pop()
        if isinstance(each, dict | list):
            level += each.values() if isinstance(each, dict) else each
        elif isinstance(each, int) and abs(each) >= _LARGEST:
            raise GrammarError(f"the integer {str(each)[:25]} has more than 63 bits")


class SchemaGrammar:
    """What answers are held to; makes the state of each.

    Attributes:
        schema: in JSON, with llguidance's options in it, for engines that have it of their own.
    """

    def __init__(self, schema: str, matcher: LLMatcher) -> None:
        self.schema = schema
        self._matcher = matcher

    def begin(self) -> GrammarConstraint:
        """The state at the start of an answer."""
        return GrammarConstraint(self._matcher.deep_copy())


def _with_options(schema: dict[str, Any]) -> str:
    return json.dumps(schema | {"x-guidance": schema.get("x-guidance", {}) | _OPTIONS})


class GrammarConstraint:
    """The state of one answer."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allow(self, logits: torch.Tensor) -> None:
        """Set the logits (1, vocabulary) of forbidden tokens to -inf, in place."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[1]].astype(bool)
        forbidden = torch.from_numpy(~allowed).to(logits.device)
        logits[0, : len(forbidden)].masked_fill_(forbidden, float("-inf"))
        logits[0, len(forbidden) :] = float("-inf")

    def advance(self, token: int) -> None:
        """Take the chosen token."""
        self._matcher.consume_token(token)
