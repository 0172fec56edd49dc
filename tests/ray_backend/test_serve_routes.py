"""What `aift-ray serve` answers on its routes, page and Serve's own routes included."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from tests.conftest import SHIPPED
from tests.helpers.served import Served
from tests.serving.conftest import write_adapter
from tests.serving.http.test_openai_api import QUESTION

pytestmark = pytest.mark.ray
PAGE = Path(__file__).resolve().parents[2] / "aift_ray" / "serving" / "page"
BASE = "工房/hina"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("routes")
    adapter = write_adapter(folder / "kansai", 3)
    made = Served(folder, "--adapter", f"kansai={adapter}", "--served-model-name", BASE)
    yield made
    made.stop()


def is_error(response: httpx.Response) -> bool:
    return set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_server_that_is_loading_is_503(served: Served) -> None:
    statuses = {response.status_code for response in served.loading}
    assert 503 in statuses
    assert statuses <= {200, 503}
    assert all(is_error(each) for each in served.loading if each.status_code == 503)


def test_every_file_that_the_page_names_is_there_for_everybody(served: Served) -> None:
    index = served.anybody("GET", "/")
    assert 'data-asks-key="yes"' in index.text
    modules = [path.relative_to(PAGE.parent).as_posix() for path in PAGE.rglob("*.js")]
    named = [*re.findall(r'(?:src|href)="(page/[^"]+)"', index.text)]
    styles = {"page/page.css", "page/chat.css"}
    assert {"page/page.js", "page/icon.svg"} | styles == set(named)
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for path in (*named, *modules):
        for response in (served.anybody("GET", f"/{path}"), served.http.get(f"/{path}")):
            assert response.status_code == 200, path
            assert response.text == (PAGE.parent / path).read_text("utf-8")
            assert response.headers["content-type"].startswith(kinds[path.rsplit(".")[-1]])
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
    assert served.anybody("GET", "/page/%2e%2e/web.py").status_code == 401
    assert served.http.get("/page/nothing.js").status_code == 404


@pytest.mark.parametrize("path", ["/", "/healthz", "/page/page.js"])
def test_head_is_get_without_a_body(served: Served, path: str) -> None:
    head, whole = served.anybody("HEAD", path), served.anybody("GET", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_head_asks_for_the_key_where_get_does(served: Served) -> None:
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        assert served.http.head(path).status_code == 200
        assert served.anybody("HEAD", path).status_code == 401
    assert served.http.head("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/-/", "/-/routes/", "/docs"])
def test_serves_own_routes_are_not_open(served: Served, path: str) -> None:
    for method in ("GET", "HEAD", "POST"):
        assert served.anybody(method, path).status_code == 401
    known = served.http.get(path)
    assert known.status_code == 404
    assert is_error(known)


def test_a_wrong_method_is_405_on_the_page_too(served: Served) -> None:
    for path in ("/", "/page/page.js"):
        refused = served.http.request("PATCH", path)
        assert refused.status_code == 405
        assert refused.headers["allow"] == "GET, HEAD"
        assert is_error(refused)


def test_a_model_is_found_by_its_name_with_a_slash_too(served: Served) -> None:
    client = openai.OpenAI(api_key=served.key, base_url=f"http://127.0.0.1:{served.port}/v1")
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == [BASE, "kansai"]
    for name, model in listed.items():
        assert client.models.retrieve(name) == model
        # as it is, its slash not escaped
        assert served.http.get(f"/v1/models/{name}").json() == model.model_dump(exclude_unset=True)
    for name in ("hina", "工房", "kansai/", "../kansai", "a b"):
        response = served.http.get(f"/v1/models/{name.replace('.', '%2E')}")
        assert response.status_code == 404
        assert is_error(response)
    assert served.anybody("GET", "/v1/models/kansai").status_code == 401


def chat(served: Served, **values: Any) -> httpx.Response:
    body = {"model": BASE, "messages": QUESTION, "max_tokens": 60, "seed": 1} | values
    return served.http.post("/v1/chat/completions", json=body)


def following(schema: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"response_format": form}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if "{" in line]
    return [json.loads(line)["choices"][0] for line in lines]


def test_the_bytes_of_logprobs_are_those_of_the_content(served: Served) -> None:
    asked = {"logprobs": True, "top_logprobs": 5, "temperature": 0}
    for values in (following({"const": "窶🐈"}), {}):
        [choice] = chat(served, **asked, **values).json()["choices"]
        content, told = choice["message"]["content"], choice["logprobs"]["content"]
        assert bytes(byte for each in told for byte in each["bytes"]) == content.encode()
        assert [len(each["top_logprobs"]) for each in told] == [5] * len(told)
        deltas = events(chat(served, **asked, **values, stream=True))
        streamed = [
            each for delta in deltas for each in (delta["logprobs"] or {"content": ()})["content"]
        ]
        assert [each["bytes"] for each in streamed] == [each["bytes"] for each in told]
        for each in told:
            if each["bytes"] == list(each["token"].encode()):
                continue
            assert each["token"] == "".join(f"\\x{byte:02x}" for byte in each["bytes"])
    assert len(told) > 1


def test_an_empty_answer_has_an_empty_list_of_logprobs(served: Served) -> None:
    end = AutoTokenizer.from_pretrained(SHIPPED).eos_token_id
    [choice] = chat(served, logprobs=True, logit_bias={str(end): 100}).json()["choices"]
    assert choice["message"]["content"] == ""
    assert choice["logprobs"] == {"content": [], "refusal": None}
    body = {"model": BASE, "prompt": "昔々、", "logprobs": 2, "logit_bias": {str(end): 100}}
    [choice] = served.http.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"] == ""
    assert set(map(tuple, choice["logprobs"].values())) == {()}


@pytest.mark.parametrize("stream", [False, True])
def test_the_offsets_of_logprobs_count_in_the_text(served: Served, stream: bool) -> None:
    body: dict[str, Any] = {"model": BASE, "prompt": "昔々、", "max_tokens": 40, "logprobs": 5}
    body |= following({"const": "窶🐈 と犬"}) | {"stream": stream, "seed": 1}
    response = served.http.post("/v1/completions", json=body)
    choices = events(response) if stream else response.json()["choices"]
    text = "".join(choice["text"] for choice in choices)
    assert text == '"窶🐈 と犬"'
    told = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    names = [name for each in told for name in each["tokens"]]
    offsets = [at for each in told for at in each["text_offset"]]
    tops = [top for each in told for top in each["top_logprobs"]]
    assert len(names) == len(offsets) == len(tops) > 6
    assert [len(top) for top in tops] == [5] * len(tops)
    whole = [(name, at) for name, at in zip(names, offsets, strict=True) if "bytes:" not in name]
    assert all(text.startswith(name, at) for name, at in whole)
    assert "".join(name for name, _ in whole) == '" と犬"'
    parts = [(name, at) for name, at in zip(names, offsets, strict=True) if "bytes:" in name]
    assert {at for _, at in parts} == {1, 2}
    spelled = "".join(name.removeprefix("bytes:").replace("\\x", "") for name, _ in parts)
    assert bytes.fromhex(spelled).decode() == "窶🐈"


A = {"$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    "schema",
    [
        A | {"$defs": {"a": A}},
        {"properties": {"x": A}, "$defs": {"a": {"allOf": [A]}}},
        {"$ref": "#"},
        {"$ref": "#/$defs/b"},
        {"$ref": 3},
        {"$ref": "file:///etc/passwd"},
        {"enum": []},
        {"type": "string", "pattern": "("},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": ["string", 5]},
        {"properties": [1]},
        {"x-guidance": 5},
        {"x-guidance": {"nonsense": 1}},
        {"type": "number", "multipleOf": 0},
        {"minItems": 10**30, "type": "array"},
        {"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1},
        {"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2},
    ],
)
def test_a_schema_that_can_not_be_followed_is_refused(served: Served, schema: Any) -> None:
    for stream in (False, True):
        response = chat(served, **following(schema), stream=stream)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == "response_format.json_schema.schema"
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert chat(served, tools=[tool], tool_choice="required").status_code == 400


def test_no_schema_fails_the_server(served: Served) -> None:
    deep: Any = {"type": "string"}
    for _ in range(90):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    odd: list[Any] = [{}, deep, {"const": "\0"}, {"enum": list(range(3000))}, {"type": "integer"}]
    odd += [{"not": {}}, {"minimum": 1e308}, {"type": "string", "pattern": "(a{500}){500}"}]
    for schema in odd:
        response = chat(served, **following(schema), max_tokens=4)
        assert response.status_code in (200, 400), response.text
    assert served.http.get("/healthz").status_code == 200
