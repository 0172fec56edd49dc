"""The bodies of requests: every field that is taken, with its range; all others are refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from aift_ray.serving.conversation import ChatMessage, NamedTool, Tool
from aift_ray.serving.request_body import (
    FIRST_WRONG,
    Body,
    JsonObject,
    OpenAIBody,
    Text,
    Tokens,
)

Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=4)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
TokenNumber = Annotated[int, Field(ge=0, lt=2**31)]
TokenNumbers = Annotated[list[TokenNumber], FIRST_WRONG]
Texts = Annotated[list[Text], Field(max_length=64), FIRST_WRONG]
Ids = Annotated[list[TokenNumbers], Field(max_length=64), FIRST_WRONG]


def _kind(prompt: object) -> str:
    """Which kind of prompt is meant, by the first item of a list."""
    if not isinstance(prompt, list):
        return "str"
    first = prompt[0] if prompt else ""
    if isinstance(first, list):
        return "list[list]"
    return "list[str]" if isinstance(first, str) else "list[int]"


Prompt = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[TokenNumbers, Tag("list[int]")]
    | Annotated[Texts, Tag("list[str]")]
    | Annotated[Ids, Tag("list[list]")],
    Discriminator(_kind),
]


class StreamOptions(OpenAIBody):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    # OpenAI's protection against who listens to the sizes of encrypted packets
    include_obfuscation: object = None


class JsonSchema(OpenAIBody):
    """A schema for the answer; without one it may be any object."""

    meaningful: ClassVar[frozenset[str]] = frozenset({"schema"})

    name: Annotated[Text, Field(max_length=64)]
    description: Text | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(OpenAIBody):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    # a schema, as Hugging Face's client hands one on: {"type": "json_object", "value": ...}
    value: JsonObject | None = None


class _Sampled(OpenAIBody):
    """The fields that chat and completions share."""

    model: Text
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: Stop | Stops | None = None
    response_format: ResponseFormat | None = None
    # taken without effect: they speak of the caller's account or of how OpenAI runs things
    user: object = None
    metadata: object = None
    store: object = None
    service_tier: object = None
    parallel_tool_calls: object = None
    prompt_cache_key: object = None
    prompt_cache_options: object = None
    prompt_cache_retention: object = None
    safety_identifier: object = None

    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def biases(self) -> dict[int, float]:
        """What is added to the logits of tokens."""
        return {int(token): bias for token, bias in (self.logit_bias or {}).items()}


class ChatRequest(_Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1), FIRST_WRONG]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    # of models that think, where their templates read it
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: JsonObject | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=2**31)] | None = None
    # what is not done here, at the values that ask for none of it
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None
    function_call: Literal["none", "auto"] | None = None
    functions: None = None
    audio: None = None
    moderation: None = None
    prediction: None = None
    web_search_options: None = None


class CompletionRequest(_Sampled):
    """`POST /v1/completions`; a prompt is a text or the ids of its tokens.

    An empty one is the start of a document.
    """

    prompt: Prompt | None
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # what is not done here, at the values that ask for none of it
    best_of: Literal[1] | None = None
    suffix: None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt."""
        given: Any = self.prompt or ""
        single = isinstance(given, str) or isinstance(given[0], int)
        return [given] if single else given


class GenerateRequest(Body):
    """`POST /generate`: the fields and defaults of `generate_japanese`."""

    instruction: Text
    input: Text | None = None
    model: Text | None = None
    max_new_tokens: Tokens | None = None  # 512, or what the context leaves
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.9
    top_k: Annotated[int, Field(ge=0, le=2**31)] = 50
    do_sample: bool = True
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool = False


class TokenizeRequest(Body):
    """`POST /tokenize`: a text, or a conversation as chat completions would feed it."""

    text: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1), FIRST_WRONG] | None = None
    model: Text | None = None


class LoadAdapterRequest(Body):
    """`POST /v1/load_lora_adapter`; no path comes from a request: `lora_path` is null."""

    lora_name: Annotated[Text, Field(min_length=1, max_length=255)]
    lora_path: None = None


class UnloadAdapterRequest(Body):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: Text
