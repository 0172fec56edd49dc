"""A prompt told back with its probabilities, as evaluation harnesses ask for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import SHIPPED
from tests.serving.conftest import Site

TEXT = "昔々、あるところに、窶🐈と暮らすおじいさんがいました。" * 12


def complete(site: Site, **asked: Any) -> Any:
    body = {"model": "hina-4m", "max_tokens": 4, "temperature": 0, "echo": True} | asked
    return site.send("POST", "/v1/completions", json=body)


@pytest.mark.parametrize("prompt", [TEXT, "雨", "窶🐈"])
@pytest.mark.parametrize("max_tokens", [0, 4])
def test_the_probabilities_of_a_prompt_are_the_models(
    site: Site, plain: Any, prompt: str, max_tokens: int
) -> None:
    answer = complete(site, prompt=prompt, max_tokens=max_tokens, logprobs=2).json()
    [choice] = answer["choices"]
    assert choice["text"].startswith(prompt)
    assert (choice["text"] == prompt) is (max_tokens == 0)
    assert answer["usage"]["completion_tokens"] <= max_tokens
    ids = site.send("POST", "/tokenize", json={"text": prompt}).json()["tokens"]
    told = choice["logprobs"]
    number = len(told["tokens"])
    assert number - len(ids) in (range(1, 5) if max_tokens else (0,))
    with torch.inference_mode():
        wanted = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    for at in range(1, len(ids)):
        found = told["token_logprobs"][at]
        assert found == pytest.approx(float(wanted[at - 1, ids[at]]), abs=2e-3)
        assert len(told["top_logprobs"][at]) == 2
        best = float(wanted[at - 1].max())
        assert max(told["top_logprobs"][at].values()) == pytest.approx(best, abs=2e-3)
    # the bytes of all tokens are the text, and offsets count in it
    for name, start in zip(told["tokens"], told["text_offset"], strict=True):
        assert "bytes:" in name or choice["text"].startswith(name, start)
    spelled = [name for name in told["tokens"] if "bytes:" not in name]
    assert len("".join(spelled)) <= len(choice["text"])


def test_ids_lists_and_several_answers_are_echoed(site: Site) -> None:
    ids = AutoTokenizer.from_pretrained(SHIPPED).encode("昔々、", add_special_tokens=False)
    whole = complete(site, prompt=[ids, ids], n=2, logprobs=0, seed=1, temperature=1).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    for choice in whole["choices"]:
        assert choice["text"].startswith("昔々、")
        assert choice["logprobs"]["token_logprobs"][1] < 0
    plain = complete(site, prompt="昔々、").json()["choices"][0]
    assert (plain["text"][:3], plain["logprobs"]) == ("昔々、", None)


def test_a_stream_begins_with_the_prompt(site: Site) -> None:
    import json

    asked: dict[str, Any] = {"prompt": "昔々、", "logprobs": 1}
    whole = complete(site, **asked).json()["choices"][0]
    lines = complete(site, **asked, stream=True).text.splitlines()
    chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        joined = [value for each in chunks if each["logprobs"] for value in each["logprobs"][name]]
        if name == "token_logprobs":
            assert joined[1:] == pytest.approx(whole["logprobs"][name][1:], abs=1e-4)
        else:
            assert joined == whole["logprobs"][name]


def test_adapters_have_probabilities_of_their_own(site: Site) -> None:
    one, other = (
        complete(site, model=model, prompt="昔々、", logprobs=1, max_tokens=0).json()
        for model in ("hina-4m", "大阪弁")
    )
    values = [each["choices"][0]["logprobs"]["token_logprobs"][1:] for each in (one, other)]
    assert values[0] != values[1]


def test_nothing_at_all_is_refused(site: Site) -> None:
    response = complete(site, prompt="昔々、", max_tokens=0, echo=False)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")


def test_a_top_p_of_nothing_is_the_likeliest(site: Site) -> None:
    asked: dict[str, Any] = {"prompt": "昔々、", "max_tokens": 12}
    greedy = complete(site, **asked).json()["choices"][0]["text"]
    for seed in range(3):
        told = complete(site, **asked, temperature=1, top_p=0, seed=seed).json()
        assert told["choices"][0]["text"] == greedy
