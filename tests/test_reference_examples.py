"""The usage examples of the toolkit's reference run here.

Each is kept as users have it; `src` becomes `aift_ray`, and the model the shipped one.
"""

from __future__ import annotations

import re
from typing import Any

import aift_ray

MODEL = """
from src.models.japanese_model import JapaneseModel

model = JapaneseModel("stabilityai/japanese-stablelm-3b-4e1t-instruct")
"""

ANSWER = """
answer = model.generate_japanese(
    instruction="次の文を繰り返してください。",
    input_text="富士山は日本で一番高い山です。",
    max_new_tokens=64,
    temperature=0.7,
)
"""

FALLBACK = """
loaded = model.load_with_fallback()
supported = JapaneseModel.list_supported_models()
"""


def executed(*examples: str) -> dict[str, Any]:
    """The names that the examples leave, run one after the other."""
    text = "".join(examples).replace("src.", "aift_ray.")
    names: dict[str, Any] = {}
    exec(re.sub(r'"stabilityai/[^"]*"', '"hina-4m"', text), names)
    return names


def test_a_model_is_made_and_answers() -> None:
    names = executed(MODEL, ANSWER)
    assert isinstance(names["model"], aift_ray.JapaneseModel)
    assert isinstance(names["answer"], str)
    assert "繰り返してください" not in names["answer"]


def test_a_model_is_loaded_with_fallbacks() -> None:
    names = executed(MODEL, FALLBACK)
    assert names["loaded"] is True
    assert names["model"].model_name == "hina-4m"
    assert names["supported"]["elyza/Llama-3-ELYZA-JP-8B"]["min_gpu_memory_gb"] == 16
