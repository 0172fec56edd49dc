"""Families whose layers need more than a Llama's: the engine's answers are transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from aift_ray.config import ServeConfig
from aift_ray.errors import ModelError
from aift_ray.models import load
from aift_ray.models.families import family_support
from aift_ray.models.families.tiny_model import random_model, shrunk
from aift_ray.models.hub import load_config
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from aift_ray.serving.startup import check
from tests.families import configuration
from tests.helpers.tiny_families import companions, save, with_towers
from tests.serving.engines.transformers.test_transformers_engine import (
    generated,
    ids,
    prompt,
    request,
    together,
)


def made(family: str, folder: Path, vocabulary: int = 320) -> Path:
    config = configuration(family)
    assert config is not None
    tiny: Any = shrunk(config)
    tiny.vocab_size = vocabulary
    random_model(tiny, "eager").save_pretrained(folder)
    return companions(folder)


@pytest.mark.parametrize(
    "family",
    [
        "gemma2",
        "gemma3n_text",
        "gemma4_text",
        "gpt_oss",
        "stablelm",
        "granite",
        "cohere2",
        "bloom",
        "mpt",
        "llama4_text",
    ],
)
def test_answers_in_a_batch_are_those_of_eager_generate_alone(family: str, tmp_path: Path) -> None:
    folder = made(family, tmp_path / "model")
    attention = family_support.attention_of(load_config(str(folder)))
    model = load.load_model(str(folder), torch.float32, attention).eval()
    eager = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    compare(model, eager)


@pytest.mark.parametrize("family", ["mistral3", "qwen2_5_vl"])
def test_answers_of_a_language_model_are_those_of_its_whole(family: str, tmp_path: Path) -> None:
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    changes = {"rope_parameters": sections} if family == "qwen2_5_vl" else {}
    folder = save(with_towers(family, **changes), tmp_path / "model")
    checked = check(ServeConfig(model=str(folder), engine="transformers"), gpu=False)
    attention = family_support.attention_of(load_config(checked.location))
    assert attention == "documents"
    whole = AutoModelForMultimodalLM.from_pretrained(folder, attn_implementation="eager").eval()
    compare(load.load_model(str(folder), torch.float32, attention).eval(), whole)


def compare(model: Any, eager: Any) -> None:
    """Answers of the engine with a model, and of transformers alone."""
    eager.generation_config.eos_token_id = None
    engine = TransformersEngine(model, 4, 4)
    try:
        # longer and shorter than the window of a tiny model, and one that joins later
        asked = [request(prompt(n, 3 + 9 * n, 300), 8) for n in range(5)]
        expected = [generated(eager, each.prompt, 8) for each in asked]
        assert [ids(tokens) for tokens in together(engine, asked)] == expected
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("family", "why"),
    [("mamba2", "not keys and values by token"), ("phimoe", "can't be computed")],
)
def test_a_family_that_the_engine_cannot_answer_is_refused_before_it_is_loaded(
    family: str, why: str, tmp_path: Path
) -> None:
    folder = made(family, tmp_path / "model", 5056)
    with pytest.raises(ModelError, match=why):
        check(ServeConfig(model=str(folder), engine="transformers"), gpu=False)
