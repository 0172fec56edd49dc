"""The digest of an encoder, by which stored rows are found again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import astuple

from transformers import PreTrainedTokenizerBase

from aift_ray.data.prompts.chat_template import PINNED_DATE
from aift_ray.data.prompts.control_tokens import words
from aift_ray.data.prompts.supervision import Supervision

# Goes up whenever the same rows would get other ids, so that stored rows are made anew.
VERSION = 2
_LEFT_OVER = re.compile(r'"truncation":.*?"added_tokens"', re.DOTALL)


def digest(
    tokenizer: PreTrainedTokenizerBase,
    control: Collection[int],
    system_prompt: str | None,
    supervision: Supervision,
) -> str:
    """sha256, in hex, of everything that changes ids: tokenizer, template, system prompt, us.

    Args:
        control: ids of the tokens that no text makes.
    """
    # Left over from earlier calls of the tokenizer; they change no ids of ours. As text: a large
    # vocabulary takes seconds to be read and written.
    state = _LEFT_OVER.sub('"added_tokens"', tokenizer.backend_tokenizer.to_str(), count=1)
    parts = [
        VERSION,
        PINNED_DATE.isoformat(),
        state,
        tokenizer.get_chat_template(),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        system_prompt,
        astuple(supervision),
        # none of most tokenizers, whose rows and checkpoints keep their digest
        *words(tokenizer, control),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
