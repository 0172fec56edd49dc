"""The body of Anthropic's `POST /v1/messages`: every field that is taken; others are refused."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from aift_ray.serving.conversation import FunctionName
from aift_ray.serving.openai_requests import Stop
from aift_ray.serving.request_body import FIRST_WRONG, JsonObject, OpenAIBody, Text, Tokens


class _Block(OpenAIBody):
    # what Anthropic's service is told of its cache
    cache_control: object = None


class TextBlock(_Block):
    """A text."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"text"})

    type: Literal["text"]
    text: Text
    citations: None = None


class ThinkingBlock(OpenAIBody):
    """A thought of an earlier answer."""

    type: Literal["thinking"]
    thinking: Text
    signature: object = None


class ToolUseBlock(_Block):
    """A call of an earlier answer."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"input"})

    type: Literal["tool_use"]
    id: Text
    name: FunctionName
    input: JsonObject
    caller: object = None


TextBlocks = Annotated[list[TextBlock], FIRST_WRONG]


class ToolResultBlock(_Block):
    """What a call came to."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: Text | TextBlocks | None = None
    is_error: bool | None = None
    toolset_name: object = None


Block = Annotated[
    TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]


class AnthropicTurn(OpenAIBody):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[Block], FIRST_WRONG]


class AnthropicTool(_Block):
    """A tool of the caller's own."""

    name: FunctionName
    input_schema: JsonObject
    type: Literal["custom"] | None = None
    description: Text | None = None
    strict: bool | None = None
    eager_input_streaming: object = None
    defer_loading: Literal[False] | None = None
    allowed_callers: object = None
    input_examples: object = None


class AnthropicChoice(OpenAIBody):
    """Which tool has to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    # an answer may hold one call or several
    disable_parallel_tool_use: object = None


class ThinkingOptions(OpenAIBody):
    """Whether the model thinks, and for how many tokens."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(OpenAIBody):
    """What the answer has to be."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"schema"})

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(OpenAIBody):
    """How the answer is written."""

    effort: Literal["low", "medium", "high", "xhigh"] | None = None
    format: OutputFormat | None = None


class CountRequest(OpenAIBody):
    """`POST /v1/messages/count_tokens`."""

    model: Text
    messages: Annotated[list[AnthropicTurn], Field(min_length=1), FIRST_WRONG]
    system: Text | TextBlocks | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: ThinkingOptions | None = None
    output_config: OutputConfig | None = None
    cache_control: object = None


class MessagesRequest(CountRequest):
    """`POST /v1/messages`."""

    max_tokens: Tokens
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    # taken without effect: they concern Anthropic's own service
    metadata: object = None
    service_tier: object = None
    inference_geo: object = None
    user_profile_id: object = None
    workspace_id: object = None
    speed: Literal["standard"] | None = None
    # what is not done here, at the values that ask for none of it
    container: None = None
    context_management: None = None
    mcp_servers: None = None
    diagnostics: None = None
