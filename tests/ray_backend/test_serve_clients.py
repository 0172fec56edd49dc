"""OpenAI's client against `aift-ray serve`: all of its schema, and its own answers sent back."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any, Literal, Required, Union, get_args, get_origin, get_type_hints

import httpx
import openai
import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.shared_params import FunctionDefinition, ResponseFormatJSONSchema
from openai.types.shared_params.response_format_json_schema import JSONSchema

from tests.conftest import SHIPPED
from tests.helpers.served import Served
from tests.serving.test_tools import CALL, CLOCK, QUESTION, TEMPLATE, WEATHER

pytestmark = pytest.mark.ray
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "晴れです。"}
CHAT: dict[str, Any] = {"model": "tooled", "messages": [QUESTION], "max_tokens": 1}
TEXT: dict[str, Any] = {"model": "tooled", "prompt": "昔々、", "max_tokens": 1}
# what OpenAI's reference names as the default of each field that has one
DEFAULTS: dict[str, list[Any]] = {
    "best_of": [1],
    "echo": [False],
    "frequency_penalty": [0, 0.0],
    "function_call": ["none", "auto"],
    "logprobs": [False],
    "max_tokens": [16],
    "modalities": [["text"]],
    "n": [1],
    "parallel_tool_calls": [True],
    "presence_penalty": [0],
    "reasoning_effort": ["none", "medium"],
    "response_format": [{"type": "text"}],
    "service_tier": ["auto", "default"],
    "store": [False],
    "stream": [False],
    "temperature": [1],
    "tool_choice": ["none", "auto"],
    "top_logprobs": [0],
    "top_p": [1],
    "verbosity": ["medium"],
}
# what only OpenAI's side does something with
IDLE: dict[str, list[Any]] = {
    "metadata": [{"a": "b"}],
    "parallel_tool_calls": [False],
    "prompt_cache_key": ["k"],
    "prompt_cache_options": [{"mode": "explicit", "ttl": "30m"}],
    "prompt_cache_retention": ["24h", "in_memory"],
    "safety_identifier": ["s"],
    "service_tier": ["flex", "priority"],
    "store": [True],
    "user": ["u"],
}


# a template of a model that thinks where it is asked to
SWITCH = "{%- if add_generation_prompt and enable_thinking %}<think>\n{% endif %}"
THINKING = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 6}
DEEP: Any = functools.reduce(lambda inner, _: {"a": inner}, range(120), {})


def calling(arguments: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [CALL | {"function": function}]}


def offering(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clients")
    shutil.copytree(SHIPPED, folder / "tooled")
    (folder / "tooled" / "chat_template.jinja").write_text(TEMPLATE + SWITCH, "utf-8")
    made = Served(folder, "--model", str(folder / "tooled"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(
        api_key=served.key, base_url=f"http://127.0.0.1:{served.port}/v1", max_retries=0
    )


def kinds(kind: Any) -> Iterator[Any]:
    """The types of a union, each by itself."""
    if get_origin(kind) in (Union, UnionType):
        for each in get_args(kind):
            yield from kinds(each)
    else:
        yield get_origin(kind) or kind


def empties(kind: Any) -> Iterator[Any]:
    """The values of a field's type that hold nothing."""
    for each in kinds(kind):
        if each in (str, Literal):
            yield ""
        elif isinstance(each, type) and issubclass(each, dict):
            yield {}
        elif isinstance(each, type) and issubclass(each, Iterable):
            yield []


def optional_fields(schema: Any) -> dict[str, Any]:
    told, plain = get_type_hints(schema, include_extras=True), get_type_hints(schema)
    return {name: plain[name] for name, kind in told.items() if get_origin(kind) is not Required}


def idle_values(schema: Any, *further: dict[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    """Every optional field of a schema at each value that asks for nothing."""
    for name, kind in optional_fields(schema).items():
        yield name, None
        for value in (*empties(kind), *(value for each in further for value in each.get(name, []))):
            yield name, value


def refused(served: Served, path: str, bodies: Iterator[dict[str, Any]]) -> list[str]:
    found = []
    for body in bodies:
        response = served.http.post(path, json=body)
        if response.status_code != 200:
            found.append(f"{json.dumps(body, ensure_ascii=False)}: {response.text}")
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_what_asks_for_nothing_is_taken_for_every_field_of_openais_schema(
    served: Served, stream: bool
) -> None:
    chat = chat_create_params.CompletionCreateParamsBase
    text = completion_create_params.CompletionCreateParamsBase
    assert {"web_search_options", "verbosity", "functions"} <= set(optional_fields(chat))
    for path, schema, body in (("chat/", chat, CHAT), ("", text, TEXT)):
        # of completions it is a number
        bodies = (
            body | {"stream": stream, name: value}
            for name, value in idle_values(schema, DEFAULTS, IDLE)
            if not (path == "" and name == "logprobs" and value is False)
        )
        assert refused(served, f"/v1/{path}completions", bodies) == []


def test_what_asks_for_nothing_is_taken_within_messages_and_tools(served: Served) -> None:
    call = {**CALL, "type": "function"}
    told = {"role": "assistant", "content": "はい。"}
    part = {"type": "text", "text": "はい。"}
    named = {"type": "json_schema", "json_schema": {"name": "x"}}

    def with_turn(turn: dict[str, Any]) -> dict[str, Any]:
        before = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
        before = before if turn["role"] == "tool" else []
        return {"messages": [QUESTION, *before, turn, QUESTION]}

    def with_part(part: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [part]}]}

    def with_call(call: dict[str, Any]) -> dict[str, Any]:
        return with_turn({"role": "assistant", "tool_calls": [call]})

    def with_function(function: dict[str, Any]) -> dict[str, Any]:
        return {"tools": [{"type": "function", "function": function}]}

    def with_schema(schema: dict[str, Any]) -> dict[str, Any]:
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    cases: list[tuple[Any, dict[str, Any], Any]] = [
        (ChatCompletionAssistantMessageParam, told, with_turn),
        (ChatCompletionUserMessageParam, QUESTION, with_turn),
        (ChatCompletionSystemMessageParam, {"role": "system", "content": "a"}, with_turn),
        (ChatCompletionDeveloperMessageParam, {"role": "developer", "content": "a"}, with_turn),
        (ChatCompletionToolMessageParam, RESULT, with_turn),
        (ChatCompletionContentPartTextParam, part, with_part),
        (ChatCompletionMessageFunctionToolCallParam, call, with_call),
        (ChatCompletionFunctionToolParam, CLOCK, lambda tool: {"tools": [tool]}),
        (FunctionDefinition, {"name": "clock"}, with_function),
        (ChatCompletionStreamOptionsParam, {}, lambda given: {"stream_options": given}),
        (ResponseFormatJSONSchema, named, lambda given: {"response_format": given}),
        (JSONSchema, {"name": "x"}, with_schema),
    ]
    bodies = [
        CHAT | around(plain | {name: value})
        for schema, plain, around in cases
        for name, value in idle_values(schema)
        # what an assistant said
        if name != "content"
    ]
    assert len(bodies) > 25
    assert refused(served, "/v1/chat/completions", iter(bodies)) == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"prediction": {"type": "content", "content": "a"}}, "prediction"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools.0.type"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"やっほー": None}, "やっほー"),
        ({"messages": [QUESTION | {"mood": "glad"}]}, "messages.0.mood"),
        ({"messages": [QUESTION | {"content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [QUESTION, calling("[]")]}, "messages.1.tool_calls.0.function.arguments"),
        ({"messages": [QUESTION, calling('{"a":')]}, "messages.1.tool_calls.0.function.arguments"),
        ({"messages": [QUESTION, calling('{"a": "\\ud800"}')]}, "messages.1.tool_calls.0"),
        ({"tools": [offering({"a": "\ud800"})]}, "tools.0.function.parameters"),
        ({"tools": [offering({"a": DEEP})]}, "tools.0.function.parameters"),
    ],
)
def test_what_asks_for_something_that_is_not_done_is_refused_by_name(
    served: Served, change: dict[str, Any], param: str
) -> None:
    content = json.dumps(CHAT | change).encode()
    headers = {"Content-Type": "application/json"}
    response = served.http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].startswith(param), response.text
    # and no second reason, which would be false
    assert not param.startswith("messages") or error["message"].count("messages") == 1, error


def test_an_answer_is_sent_back_as_the_client_dumps_it(
    served: Served, client: openai.OpenAI
) -> None:
    asked: dict[str, Any] = {"model": "tooled", "tools": [WEATHER], "seed": 1}
    messages: list[Any] = [QUESTION]
    for choice in ("required", "none"):
        answer = client.chat.completions.create(
            **asked, messages=messages, tool_choice=choice, max_tokens=600
        )
        said = answer.choices[0].message
        messages.append(said.model_dump())
        if said.tool_calls:
            messages.append(RESULT | {"tool_call_id": said.tool_calls[0].id, "name": "weather"})
        else:
            messages.append(QUESTION)
    assert [each["role"] for each in messages].count("tool") == 1
    # and as the stream helper collects it
    with client.chat.completions.stream(
        **asked, messages=messages, tool_choice="required", max_tokens=600
    ) as events:
        for _ in events:
            pass
        collected = events.current_completion_snapshot.choices[0].message.model_dump()
    assert "parsed_arguments" in json.dumps(collected)
    messages += [collected | {"id": "msg_1"}, RESULT]
    assert client.chat.completions.create(**asked, messages=messages, max_tokens=1).choices


def test_what_a_client_repeats_makes_no_other_prompt(served: Served) -> None:
    def tokens(turn: dict[str, Any]) -> httpx.Response:
        messages = [QUESTION, turn, RESULT]
        return served.http.post("/tokenize", json={"messages": messages})

    plain: dict[str, Any] = {"role": "assistant", "content": "調べます。", "tool_calls": [CALL]}
    wanted = tokens(plain).json()["tokens"]
    function = CALL["function"] | {"parsed_arguments": {"town": "大阪"}}  # type: ignore[operator]
    for more in (
        {"annotations": [], "audio": None, "function_call": None, "refusal": None},
        {"annotations": [{"type": "url_citation", "url_citation": {}}], "audio": {"id": "a"}},
        {"id": "msg_1", "name": "hina", "cache_control": {"type": "ephemeral"}, "parsed": None},
        {"tool_calls": [CALL | {"index": 0, "function": function}]},
        {"content": [{"type": "text", "text": "調べます。", "cache_control": {"a": "b"}}]},
        {"content": [{"type": "text", "text": "調べます。", "annotations": [], "logprobs": []}]},
        {"provider_specific_fields": {"a": 1}, "thinking_blocks": [], "images": [], "prefix": None},
        {"tool_calls": [CALL | {"extra": None, "function": CALL["function"] | {"more": ""}}]},  # type: ignore[operator]
    ):
        assert tokens(plain | more).json() == {"tokens": wanted, "count": len(wanted)}
    # of an answer that was cut short before its arguments
    empty, nothing = (
        plain | {"tool_calls": [CALL | {"function": {"name": "clock", "arguments": arguments}}]}
        for arguments in ("", "{}")
    )
    assert tokens(empty).json() == tokens(nothing).json()
    refusal = {"role": "assistant", "content": None, "refusal": "お答えできません。"}
    said = {"role": "assistant", "content": "お答えできません。"}
    assert tokens(refusal).json() == tokens(said).json()


def test_biases_and_prompts_of_tokens_are_taken(served: Served, client: openai.OpenAI) -> None:
    ids = served.http.post("/tokenize", json={"text": "昔々、"}).json()["tokens"]
    asked: dict[str, Any] = {"model": "tooled", "max_tokens": 8, "temperature": 0}
    wanted = client.completions.create(prompt="昔々、", **asked).choices[0].text
    for prompt in (None, "", []):
        started = served.http.post("/v1/completions", json=asked | {"prompt": prompt})
        assert started.json()["usage"]["prompt_tokens"] == 1
    for prompt in (ids, [ids]):
        assert client.completions.create(prompt=prompt, **asked).choices[0].text == wanted
    for one in (wanted, client.completions.create(prompt=[ids, ids], **asked).choices[1].text):
        assert one == wanted
    [token] = served.http.post("/tokenize", json={"text": "雨"}).json()["tokens"][-1:]
    told = client.completions.create(prompt="昔々、", logit_bias={str(token): 100}, **asked)
    assert told.choices[0].text == "雨" * 8
    first = served.http.post("/tokenize", json={"text": f"昔々、{wanted}"}).json()["tokens"]
    banned = {str(token): -100 for token in first}
    text = client.completions.create(prompt="昔々、", logit_bias=banned, **asked).choices[0].text
    assert text[0] != wanted[0]
    with pytest.raises(openai.BadRequestError, match="has tokens 0 to"):
        client.completions.create(prompt=[10**6], **asked)


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_is_told_apart_and_limited_and_the_answer_follows_its_schema(
    client: openai.OpenAI, stream: bool
) -> None:
    town = {"type": "object", "properties": {"town": {"enum": ["東京", "大阪"]}}}
    town |= {"required": ["town"], "additionalProperties": False}
    asked: dict[str, Any] = {
        "model": "tooled", "messages": [QUESTION], "extra_body": THINKING, "seed": 3,
        "max_tokens": 90,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": town}},
    }  # fmt: skip
    create = client.chat.completions.create
    if stream:
        deltas = [chunk.choices[0].delta for chunk in create(**asked, stream=True)]
        thought = "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas)
        content = "".join(delta.content or "" for delta in deltas)
    else:
        answer = create(**asked)
        thought = getattr(answer.choices[0].message, "reasoning_content", "")
        content = answer.choices[0].message.content
        details = answer.usage.completion_tokens_details
        assert 6 < details.reasoning_tokens < answer.usage.completion_tokens
    assert thought
    assert json.loads(content)["town"] in ("東京", "大阪")


def test_a_limit_of_thoughts_alone_lets_the_answer_be_any_text(served: Served) -> None:
    def chat(**values: Any) -> httpx.Response:
        return served.http.post("/v1/chat/completions", json=CHAT | values)

    response = chat(**THINKING, max_tokens=60, stop=["。"], seed=5)
    message = response.json()["choices"][0]["message"]
    assert message["reasoning_content"]
    assert "。" not in (message["content"] or "")
    assert "think" not in (message["content"] or "")
    refused = chat(chat_template_kwargs={"enable_thinkin": True})
    assert refused.json()["error"]["param"] == "chat_template_kwargs.enable_thinkin"
