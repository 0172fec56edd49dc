"""The turns of a conversation and the tools in it, as OpenAI's clients write them."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from aift_ray.serving.request_body import (
    FIRST_WRONG,
    JsonObject,
    OpenAIBody,
    Text,
    representable,
)

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class ContentPart(OpenAIBody):
    """A part of a message's content."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"text", "refusal"})
    repeats: ClassVar[bool] = True

    type: Literal["text", "refusal"]
    text: Text | None = None
    refusal: Text | None = None
    # what other servers are told of their caches
    cache_control: object = None
    prompt_cache_breakpoint: object = None
    # what clients repeat of an answer's
    annotations: object = None

    @model_validator(mode="after")
    def _holds_its_kind(self) -> Self:
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type {self.type} needs {self.type}")
        return self

    def said(self) -> str:
        """Its text."""
        return str(getattr(self, self.type))


Parts = Annotated[list[ContentPart], FIRST_WRONG]


class CalledFunction(OpenAIBody):
    """What an assistant called; of an answer that was cut short `arguments` may be empty."""

    repeats: ClassVar[bool] = True

    name: FunctionName
    arguments: Text = "{}"
    # of a stream as OpenAI's client collects it
    parsed_arguments: object = None

    @field_validator("arguments")
    @classmethod
    def _object(cls, value: str) -> str:
        if not value.strip():
            return "{}"
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError("has to be an object in JSON")
        representable(found)
        return value


class ToolCall(OpenAIBody):
    """A call in an assistant's turn."""

    repeats: ClassVar[bool] = True

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction
    # its place among the calls of a stream
    index: object = None

    def for_template(self) -> dict[str, Any]:
        """As templates read it, the arguments as an object."""
        arguments = json.loads(self.function.arguments)
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class ChatMessage(OpenAIBody):
    """One turn; `developer` is taken as `system`."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"content"})
    repeats: ClassVar[bool] = True

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=64)] | None = None
    tool_call_id: Text | None = None
    refusal: Text | None = None
    # what a model that thinks has thought before its answer, as other servers call it too
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    # OpenAI's older form of tool_calls; no answer here has one
    function_call: None = None
    # what a client repeats of an answer, or tells other servers; no template reads it
    id: object = None
    annotations: object = None
    audio: object = None
    parsed: object = None
    # what litellm and others add to the answers that they hand on
    provider_specific_fields: object = None
    reasoning_details: object = None
    thinking_blocks: object = None
    cache_control: object = None
    content: Text | Parts | None = Field(default=None, validate_default=True)

    @field_validator("content")
    @classmethod
    def _there(cls, value: object, info: ValidationInfo) -> Any:
        # what was wrong itself is not among the data, and is told already
        if value is None and info.data.get("role", "assistant") != "assistant":
            raise ValueError("is needed")
        return value

    @field_validator("tool_calls")
    @classmethod
    def _assistants(cls, value: object, info: ValidationInfo) -> Any:
        if value and info.data.get("role") != "assistant":
            raise ValueError("only an assistant's turn has them")
        return value

    def text(self) -> str:
        """The content as one text; of a turn without any, why the assistant refused, or ""."""
        if isinstance(self.content, str):
            return self.content
        if self.content is None:
            return self.refusal or ""
        return "".join(part.said() for part in self.content)

    def thought(self) -> str:
        """What an assistant has thought before its answer; "" where nothing."""
        said = self.reasoning_content or self.reasoning or ""
        return said if self.role == "assistant" else ""

    def further(self) -> str:
        """What a template may read beside role, content and thought, in JSON."""
        found: dict[str, Any] = {}
        if self.tool_calls:
            found["tool_calls"] = [each.for_template() for each in self.tool_calls]
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        if self.name:
            found["name"] = self.name
        return json.dumps(found, ensure_ascii=False) if found else ""


class Function(OpenAIBody):
    """A function that the model may call."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"parameters"})

    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(OpenAIBody):
    """A tool; there are no others than functions."""

    type: Literal["function"]
    function: Function
    cache_control: object = None

    def for_template(self) -> dict[str, Any]:
        """As templates read it."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": self.type, "function": function}


class NamedFunction(OpenAIBody):
    """The name of a function."""

    name: FunctionName


class NamedTool(OpenAIBody):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction
