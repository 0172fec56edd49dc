"""A mixture of experts is served; adapters on its experts are merged first."""

from __future__ import annotations

from pathlib import Path

from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.models.hub import load_tokenizer
from aift_ray.serving.engines.transformers import lora_manager
from tests.quantization.conftest import make_adapter


def test_an_adapter_of_experts_is_refused_with_the_remedy(
    tiny_mixture: Path, tmp_path: Path
) -> None:
    encoder = PromptEncoder(load_tokenizer(str(tiny_mixture)))
    plain = make_adapter(tiny_mixture, tmp_path / "plain")
    assert lora_manager.check("plain", str(plain), str(tiny_mixture), encoder) == []
    experts = ["mlp.experts.gate_up_proj"]
    folder = make_adapter(tiny_mixture, tmp_path / "experts", target_parameters=experts)
    (problem,) = lora_manager.check("mine", str(folder), str(tiny_mixture), encoder)
    assert "adapters of experts (target_parameters in " in problem.what
    assert "can't be mixed in a batch" in problem.what
    assert "aift-ray quantize --adapter" in problem.remedy
