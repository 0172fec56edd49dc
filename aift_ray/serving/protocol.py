"""The bodies of requests: every field that is taken, with its range; all others are refused."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=4)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]


class Body(BaseModel):
    """Strict: no number in quotes, no unknown field, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class CalledFunction(Body):
    """What an assistant called."""

    name: FunctionName
    arguments: Text

    @field_validator("arguments")
    @classmethod
    def _object(cls, value: str) -> str:
        try:
            fine = isinstance(json.loads(value), dict)
        except (ValueError, RecursionError):
            fine = False
        if not fine:
            raise ValueError("has to be an object in JSON")
        return value


class ToolCall(Body):
    """A call in an assistant's turn."""

    id: Text
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Body):
    """One turn; `developer` is taken as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=64)] | None = None
    tool_call_id: Text | None = None
    refusal: None = None
    content: Text | list[TextPart] | None = Field(default=None, validate_default=True)

    @field_validator("content")
    @classmethod
    def _there(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise ValueError("is needed")
        return value

    @field_validator("tool_calls")
    @classmethod
    def _assistants(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("role") != "assistant":
            raise ValueError("only an assistant's turn has them")
        return value

    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or [])

    def further(self) -> str:
        """What a template may read beside role and content, in JSON; arguments as objects."""
        found: dict[str, Any] = {}
        if self.tool_calls:
            found["tool_calls"] = [each.model_dump() for each in self.tool_calls]
            for call in found["tool_calls"]:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        return json.dumps(found, ensure_ascii=False) if found else ""


class Function(Body):
    """A function that the model may call."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; there are no others than functions."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: FunctionName


class NamedTool(Body):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """A schema for the answer."""

    name: Annotated[Text, Field(max_length=64)]
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Sampled(Body):
    """The fields that chat and completions share."""

    model: Text
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: Stop | Stops | None = None
    response_format: ResponseFormat | None = None
    # taken without effect: they speak of the caller's account or of how OpenAI runs things
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None

    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatRequest(_Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None


class CompletionRequest(_Sampled):
    """`POST /v1/completions`."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=64)]
    echo: Literal[False] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class GenerateRequest(Body):
    """`POST /generate`: the fields and defaults of `generate_japanese`."""

    instruction: Text
    input: Text | None = None
    model: Text | None = None
    max_new_tokens: Tokens | None = None  # 512, or what the context leaves
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    top_k: Annotated[int, Field(ge=0, le=2**31)] = 50
    do_sample: bool = True
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool = False


class TokenizeRequest(Body):
    """`POST /tokenize`: a text, or a conversation as chat completions would feed it."""

    text: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    model: Text | None = None


class LoadAdapterRequest(Body):
    """`POST /v1/load_lora_adapter`; there is no `lora_path`: no path comes from a request."""

    lora_name: Annotated[Text, Field(min_length=1, max_length=255)]


class UnloadAdapterRequest(Body):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: Text
