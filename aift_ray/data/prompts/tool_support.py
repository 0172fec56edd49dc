"""Whether a chat template can offer tools to its model."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from aift_ray.data.prompts.chat_template import ChatTemplate


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's template shows the model which tools there are."""
    return ChatTemplate(tokenizer).shows_tools
