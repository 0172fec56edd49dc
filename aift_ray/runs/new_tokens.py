"""New tokens of a run, settled before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aift_ray.config import RunConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.models.added_tokens import AddedTokens, planned

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_FIELD = "tokens.add"


def settled(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, model_config: PreTrainedConfig
) -> AddedTokens | None:
    """The new tokens of a run; None: it has none.

    Args:
        config: gets the tokens of its files in place of their names.
        tokenizer: of the model; gets the tokens.
        model_config: gets the rows.

    Raises:
        ConfigError: tokens or files that can't be had, or a model that can't get any.
    """
    if not config.tokens.add:
        return None
    tokens, problems = _read(config.tokens.add)
    problems += _refused(tokens, tokenizer) + _unfit(config, model_config)
    if problems:
        raise ConfigError(problems)
    config.tokens.add = tokens
    config.tokens.train = config.tokens.train or ("whole" if config.method == "full" else "alone")
    text = model_config.get_text_config(decoder=True)
    alone = config.tokens.train == "alone"
    found = planned(tokenizer, tokens, text.vocab_size, alone)
    text.vocab_size = found.rows
    return found


def _read(given: list[str]) -> tuple[list[str], list[Problem]]:
    """Tokens, those of files among them, in order."""
    tokens: list[str] = []
    problems = []
    for one in given:
        if not one.endswith(".txt"):
            tokens.append(one)
            continue
        try:
            lines = Path(one).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            remedy = "give a text file in UTF-8 with one token a line"
            problems.append(Problem(_FIELD, f"{one} can't be read: {error}", remedy))
            continue
        tokens += [line for line in lines if line.strip()]
        if not any(line.strip() for line in lines):
            problems.append(Problem(_FIELD, f"{one} holds no tokens"))
    return tokens, problems


def _refused(tokens: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    """Tokens that can't be added."""
    known, found = tokenizer.get_vocab(), []
    for token in dict.fromkeys(tokens):
        what = ""
        if token != token.strip() or not token.isprintable():
            what = "is empty, begins or ends with a blank, or holds characters that don't print"
        elif tokens.count(token) > 1:
            what = "is given more than once"
        elif token in known or len(tokenizer.encode(token, add_special_tokens=False)) == 1:
            what = "is one token of the tokenizer already"
        elif not tokenizer.encode(token, add_special_tokens=False):
            what = "has no pieces in the tokenizer, of which its embedding could be made"
        if what:
            found.append(Problem(_FIELD, f"{token!r} {what}", "leave it out"))
    return found


def _unfit(config: RunConfig, model_config: PreTrainedConfig) -> list[Problem]:
    """What of the model or of the adapters does not go with new rows."""
    # needs the modelling code
    from aift_ray.models.load import built
    from aift_ray.models.lora.embedding_rows import ends
    from aift_ray.models.wrappers import is_wrapper

    if is_wrapper(model_config):
        what = f"a {model_config.model_type} has its vocabulary in common with its towers, whose "
        remedy = "train its language model alone, or a model without towers"
        return [Problem(_FIELD, f"{what}files get no new rows", remedy)]
    if config.method == "full":
        return []
    import torch

    with torch.device("meta"):
        model = built(model_config)
    found, head = [], model.get_output_embeddings()
    named = {*(config.lora.target_modules or ()), *(config.lora.modules_to_save or ())}
    for name in sorted(named.intersection(ends(model))):
        what = f"{name} is adapted or trained as a whole by lora, and gets new rows by tokens.add"
        remedy = "leave it out; --tokens.train whole trains all rows"
        found.append(Problem("lora.target_modules", what, remedy))
    alone = config.tokens.train != "whole"
    if alone and head is not None and getattr(head, "bias", None) is not None:
        what = "alone is not possible: PEFT's trainable_token_indices drop the output layer's bias"
        found.append(Problem("tokens.train", what, "use --tokens.train whole"))
    return found
