"""Whether a model thinks before it answers, and how its template tells the two apart."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from aift_ray.serving.harmony import channels_of
from aift_ray.serving.reasoning import Thinking, tags_of
from aift_ray.serving.token_bytes import TokenBytes


def thinking_of(tokenizer: PreTrainedTokenizerBase, bytes_: TokenBytes) -> Thinking | None:
    """None: the template knows no thoughts."""
    template = str(tokenizer.get_chat_template())
    return channels_of(tokenizer, template, bytes_) or tags_of(tokenizer, template, bytes_)
