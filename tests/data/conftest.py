"""Tokenizers that the tests of prompts share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from tests.helpers import chat_templates as families
from tests.helpers.chat_templates import FAMILIES, wrap


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return families.bpe()


@pytest.fixture(scope="session", params=["always", "first", "legacy"])
def metaspace(request: pytest.FixtureRequest) -> Tokenizer:
    return families.metaspace(request.param)


@pytest.fixture(scope="session")
def encoder_of(bpe: Tokenizer) -> Callable[[str], PromptEncoder]:
    made: dict[str, PromptEncoder] = {}

    def get(name: str) -> PromptEncoder:
        if name not in made:
            template, bos, eos, _ = FAMILIES[name]
            made[name] = PromptEncoder(wrap(bpe, template, bos, eos, adds_bos=True))
        return made[name]

    return get
