"""llama-index: OpenAILike's complete, chat, stream, tools, structured answers."""

from __future__ import annotations

from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from tests.clients.common import KEY, MODEL, QUESTION, TOWNS, URL


def weather(town: Literal["東京", "大阪"]) -> str:
    """町の天気を調べます。"""
    return f"{town}は晴れです。"


class Town(BaseModel):
    """町。"""

    town: Literal["東京", "大阪"]


settings = {
    "model": MODEL, "api_base": f"{URL}/v1", "api_key": KEY, "is_chat_model": True,
    "is_function_calling_model": True, "temperature": 0, "max_retries": 0,
}  # fmt: skip
model = OpenAILike(**settings, max_tokens=60)
question = [ChatMessage(role="user", content=QUESTION)]
said = model.chat(question)
assert "".join(each.delta for each in model.stream_chat(question)) == said.message.content
assert model.complete("こんにちは。").text is not None
longer = OpenAILike(**settings, max_tokens=300)
called = longer.chat_with_tools(
    [FunctionTool.from_defaults(weather)], user_msg=QUESTION, tool_required=True
)
[call] = longer.get_tool_calls_from_response(called)
assert call.tool_kwargs["town"] in TOWNS
history = [*question, called.message]
history.append(
    ChatMessage(role="tool", content="晴れ", additional_kwargs={"tool_call_id": call.tool_id})
)
assert model.chat(history).message.role == "assistant"
assert longer.as_structured_llm(Town).chat(question).raw.town in TOWNS
text = OpenAILike(**(settings | {"is_chat_model": False}), max_tokens=20)
assert text.complete("昔々、").text
