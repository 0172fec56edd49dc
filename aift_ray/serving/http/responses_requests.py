"""The body of `POST /v1/responses`: every field that is taken; all others are refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from aift_ray.serving.conversation import FunctionName
from aift_ray.serving.request_body import FIRST_WRONG, JsonObject, OpenAIBody, Text, Tokens

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class TextPart(OpenAIBody):
    """A part of a message."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"text", "refusal"})

    type: Literal["input_text", "output_text", "reasoning_text", "refusal", "text"]
    text: Text | None = None
    refusal: Text | None = None
    annotations: object = None
    logprobs: object = None
    parsed: object = None
    prompt_cache_breakpoint: object = None

    def said(self) -> str:
        """Its text."""
        return self.text or self.refusal or ""


TextParts = Annotated[list[TextPart], FIRST_WRONG]


class InputMessage(OpenAIBody):
    """A turn; an answer's may be sent back as it came."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"content"})

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | TextParts
    id: object = None
    status: object = None
    phase: object = None

    def text(self) -> str:
        """Its content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.said() for part in self.content)


class InputCall(OpenAIBody):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: Text
    name: FunctionName
    arguments: Text = "{}"
    id: object = None
    status: object = None
    namespace: None = None
    caller: object = None
    # OpenAI's client dumps the one for the other
    async_: Literal[False] | None = None
    also_async: Literal[False] | None = Field(default=None, alias="async")
    parsed_arguments: object = None


class InputResult(OpenAIBody):
    """What a call came to."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"output"})

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | TextParts
    id: object = None
    name: object = None
    namespace: None = None
    status: object = None
    caller: object = None

    def text(self) -> str:
        """As one text."""
        if isinstance(self.output, str):
            return self.output
        return "".join(part.said() for part in self.output)


class InputThought(OpenAIBody):
    """A thought of an earlier answer."""

    type: Literal["reasoning"]
    id: object = None
    summary: object = None
    content: TextParts | None = None
    status: object = None
    encrypted_content: None = None

    def text(self) -> str:
        """As one text."""
        return "".join(part.said() for part in self.content or [])


Item = InputMessage | InputCall | InputResult | InputThought


def _kind(item: object) -> Any:
    """A turn needs no type."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return kind or "message"


TaggedItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputResult, Tag("function_call_output")]
    | Annotated[InputThought, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(OpenAIBody):
    """A function that the model may call."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"parameters"})

    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: None = None
    async_: Literal[False] | None = Field(default=None, alias="async")
    output_schema: object = None


class FunctionChoice(OpenAIBody):
    """The function that has to be called."""

    type: Literal["function"]
    name: FunctionName


class TextFormat(OpenAIBody):
    """What the answer has to be."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"schema"})

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: Text | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(OpenAIBody):
    """How the answer is written."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(OpenAIBody):
    """How much a model thinks; there are no summaries of its thoughts."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    context: Literal["auto"] | None = None
    mode: None = None


class ResponsesStreamOptions(OpenAIBody):
    """Of OpenAI's side alone."""

    include_obfuscation: object = None


class ResponsesRequest(OpenAIBody):
    """`POST /v1/responses`."""

    model: Text
    input: Text | Annotated[list[TaggedItem], FIRST_WRONG]
    instructions: Text | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    # of this server, as in chat completions
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    chat_template_kwargs: JsonObject | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=2**31)] | None = None
    # taken without effect: they concern OpenAI's own service
    stream_options: ResponsesStreamOptions | None = None
    include: Annotated[list[Literal["reasoning.encrypted_content"]], Field()] | None = None
    metadata: object = None
    parallel_tool_calls: object = None
    prompt_cache_key: object = None
    prompt_cache_options: object = None
    prompt_cache_retention: object = None
    safety_identifier: object = None
    service_tier: object = None
    store: object = None
    user: object = None
    # what is not done here, at the values that ask for none of it
    access_programs: None = None
    background: Literal[False] | None = None
    background_options: None = None
    context_management: None = None
    conversation: None = None
    image: None = None
    max_tool_calls: None = None
    moderation: None = None
    previous_response_id: None = None
    prompt: None = None
    top_logprobs: Literal[0] | None = None
    truncation: Literal["disabled"] | None = None
