"""Whether a tokenizer and its chat template write only ids that a model has embeddings for."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from aift_ray.errors import ModelError, Problem

_SHOWN = 5
_TURNS = (("user", "質問"), ("assistant", "答え"), ("user", "質問"))


def check_vocabulary(
    name: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> None:
    """Refuse a tokenizer that can write ids beyond the embeddings of a model.

    A token of it that no text and no template writes, such as that of an image in the tokenizer of
    a model without eyes, may be there.

    Args:
        name: the model as messages name it.
        config: of the model; one that does not say how many embeddings it has is not checked.

    Raises:
        ModelError: with the tokens and their ids.
    """
    beyond, added = tokens_beyond(tokenizer, config), tokenizer.get_added_vocab()
    refuse_beyond(
        name,
        config,
        {
            number: token
            for number, token in beyond.items()
            if token not in added or _is_written(token, tokenizer)
        },
        "tokenizer or chat template can write",
    )


def tokens_beyond(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> dict[int, str]:
    """The tokens of a tokenizer that a model has no embeddings for, by their ids."""
    size = _embeddings(config)
    return {number: t for t, number in tokenizer.get_vocab().items() if size and number >= size}


def refuse_beyond(name: str, config: PreTrainedConfig, tokens: dict[int, str], writes: str) -> None:
    """Refuse a model for tokens beyond its embeddings; none are no reason.

    Args:
        writes: what has written them, behind "its".

    Raises:
        ModelError: with the tokens and their ids.
    """
    size, found = _embeddings(config), sorted(tokens.items())
    if not found or size is None:
        return
    shown = ", ".join(f"{number} {token!r}" for number, token in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    what = f"it has embeddings for {size} ids, 0 to {size - 1}, and its {writes} {shown}{more}"
    remedy = "give it the tokenizer and template that it was made with, or resize its embeddings "
    remedy += "(transformers' resize_token_embeddings) and save it"
    raise ModelError([Problem(f"model {name}", what, remedy)])


def _embeddings(config: PreTrainedConfig) -> int | None:
    found: int | None = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return found


def _is_written(token: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an added token comes into a prompt: in what users say it would be plain text."""
    # runs of blanks are taken for text
    ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    return token in ends or not token.strip() or token in _template_text(tokenizer)


def _template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template, and what it makes of conversations; names of roles may become tokens."""
    template = tokenizer.chat_template
    if not template:
        return ""
    text = "".join(template.values()) if isinstance(template, dict) else str(template)
    turns = [{"role": role, "content": content} for role, content in _TURNS]
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    called: list[Any] = [
        turns[0],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1", "name": "f"},
        {"role": "assistant", "content": "答え", "reasoning_content": "考え"},
    ]
    system = [{"role": "system", "content": "規則"}, *turns]
    chats: list[Any] = [turns[:1], turns, system, called, [turns[0], called[-1]]]
    for chat in chats:
        try:
            text += str(tokenizer.apply_chat_template(chat, tokenize=False))
            text += str(
                tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            )
        except Exception:
            # a role that it does not take; what else is wrong with it is told where it is used
            continue
    return text
