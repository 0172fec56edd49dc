"""Each family that is written as GGUF is computed by llama.cpp as transformers computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from aift_ray import export
from aift_ray.conversion.gguf_families import FAMILIES
from aift_ray.utils.exit_status import guarded
from tests.helpers.llama_cpp import LlamaCpp
from tests.helpers.tiny_families import make

ALTERNATING = [("sliding_attention", "full_attention")[at % 2] for at in range(4)]
FIVE_IN_SIX = ["full_attention" if at == 5 else "sliding_attention" for at in range(6)]
ROTARY = {"rope_theta": 10000.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True}),
    "llama3 rotations": (
        "llama",
        {
            "rope_parameters": ROTARY
            | {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "linear rotations": (
        "llama",
        {"rope_parameters": ROTARY | {"rope_type": "linear", "factor": 2.0}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "yarn rotations": (
        "qwen3",
        {
            "rope_parameters": ROTARY
            | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
        },
    ),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_5_text": (
        "qwen3_5_text",
        {
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "head_dim": 32,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "default",
                "partial_rotary_factor": 0.25,
                "mrope_section": [2, 1, 1],
            },
        },
    ),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {"tie_word_embeddings": True, "num_hidden_layers": 4, "layer_types": ALTERNATING},
    ),
    "gemma3_text": (
        "gemma3_text",
        {"tie_word_embeddings": True, "num_hidden_layers": 6, "layer_types": FIVE_IN_SIX},
    ),
}
END = 3
PROMPT = [5 + (at * 37) % 4000 for at in range(60)]


# the others take minutes of CI together
QUICK = ("qwen3_moe", "gemma3_text")


def _param(case: str) -> Any:
    return pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow)


def exported(model: Path, file: Path, *flags: str) -> Path:
    """A model as GGUF."""
    named = ["--model", str(model), "--output", str(file), *flags]
    named += [] if "--merge-adapter" in flags else ["--tokenizer", "nearest"]
    assert guarded(export.run, named) == 0
    return file


def test_every_family_has_a_case() -> None:
    assert {family for family, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", [_param(case) for case in CASES])
def test_llama_cpp_gives_the_same_logits(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    folder = make(family, tmp_path / "model", **changes)
    server = LlamaCpp(exported(folder, tmp_path / "model.gguf", "--outtype", "f32"))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    compared = 0
    for length in (2, 9, 30, 60):
        prompt = PROMPT[:length]
        with torch.no_grad():
            ours = model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        theirs = server.next_logprobs(prompt, 20)
        compared += bool(theirs)
        assert [i for i, value in theirs.items() if abs(ours[i] - value) > 2e-3] == []
        assert int(ours.argmax()) in (server.greedy(prompt, 1) or [END])
    assert compared > 1
