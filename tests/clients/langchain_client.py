"""langchain-openai: invoke, stream, bound tools, structured output, a batch."""

from __future__ import annotations

import asyncio
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from tests.clients.common import KEY, MODEL, QUESTION, TOWNS, URL


@tool
def weather(town: Literal["東京", "大阪"]) -> str:
    """町の天気を調べます。"""
    return f"{town}は晴れです。"


class Town(BaseModel):
    """町。"""

    town: Literal["東京", "大阪"]


place = {"base_url": f"{URL}/v1", "api_key": KEY, "model": MODEL, "max_retries": 0}
model = ChatOpenAI(**place, temperature=0, max_tokens=60, seed=1)
said = model.invoke(QUESTION)
assert said.usage_metadata["output_tokens"] > 0
assert "".join(chunk.content for chunk in model.stream(QUESTION)) == said.content
assert len(model.batch([QUESTION, "はい。"])) == 2

longer = ChatOpenAI(**place, max_tokens=300, seed=1)
called = longer.bind_tools([weather], tool_choice="any").invoke([HumanMessage(QUESTION)])
[call] = called.tool_calls
assert call["args"]["town"] in TOWNS
history = [HumanMessage(QUESTION), called, weather.invoke(call)]
assert isinstance(history[-1], ToolMessage)
assert model.bind_tools([weather]).invoke(history).usage_metadata["input_tokens"] > 10
for method in ("json_schema", "function_calling"):
    found = longer.with_structured_output(Town, method=method).invoke(QUESTION)
    assert found.town in TOWNS


async def streamed() -> str:
    return "".join([chunk.content async for chunk in model.astream(QUESTION)])


assert asyncio.run(streamed()) == said.content
responses = ChatOpenAI(**place, max_tokens=60, use_responses_api=True)
assert responses.invoke(QUESTION).usage_metadata["output_tokens"] > 0
assert OpenAI(**place, max_tokens=20, temperature=0).invoke("昔々、")
