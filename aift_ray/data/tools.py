"""Whether a chat template can offer tools to its model."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from aift_ray.data.examples import Message
from aift_ray.data.safe_tokenizer import RowError
from aift_ray.data.templates import ChatTemplate


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's template shows the model which tools there are."""
    function = {
        "name": "any_tool_at_all",
        "description": "何でもします。",
        "parameters": {"type": "object", "properties": {}},
    }
    template = ChatTemplate(tokenizer, [{"type": "function", "function": function}])
    try:
        return "any_tool_at_all" in template.render([Message("user", "質問")], generation=True)
    except RowError:
        return False
