"""A trained language model goes into the folder of its whole; all else there stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM

from aift_ray.errors import AiftError
from aift_ray.models.full_model_folder import WholeFolder
from aift_ray.models.load import load_model
from tests.helpers.tiny_families import save, with_towers

IDS = torch.arange(5, 25)[None]
# several files; files with the names of older versions; experts that transformers merges
KINDS: dict[str, dict[str, Any]] = {
    "mistral3": {"max_shard_size": "2MB"},
    "llava": {"save_original_format": False},
    "gemma3": {},
    "gemma4": {},
    "internvl": {},
    "qwen3_5": {"max_shard_size": "2MB"},
    "llama4": {},
    "mllama": {},
    "qwen3_vl_moe": {"max_shard_size": "2MB"},
}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def moved(location: str) -> Any:
    """The language model of a location with other weights."""
    model = load_model(location, None, None).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=draw).to(weight.dtype) * 0.01)
    return model


@pytest.mark.parametrize("family", KINDS)
def test_all_but_the_language_model_is_the_source_byte_for_byte(
    family: str, tmp_path: Path
) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    result.mkdir()
    save(with_towers(family), source, **KINDS[family])
    (source / "preprocessor_config.json").write_text('{"size": 16}', "utf-8")
    model = moved(str(source))
    WholeFolder(str(source)).write(result, model.state_dict().items())
    before, after = stored(source), stored(result)
    assert before.keys() == after.keys()
    whole, opened = (AutoModelForMultimodalLM.from_pretrained(f).eval() for f in (source, result))
    language = {p.shape for p in model.parameters()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) >= sum(p.requires_grad for p in model.parameters()) > 0
    assert {before[name].shape for name in changed if "expert" not in name} <= language
    towers = [n for n in dict(whole.named_parameters()) if "vision" in n or "visual" in n]
    assert towers
    for name in towers:
        assert torch.equal(opened.get_parameter(name), whole.get_parameter(name)), name
    again = load_model(str(result), None, None).eval()
    for (name, mine), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        torch.testing.assert_close(opened(input_ids=IDS).logits, wanted, rtol=0, atol=1e-4)
        assert not torch.allclose(whole(input_ids=IDS).logits, wanted, atol=1e-2)
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        assert (result / name).read_bytes() == (source / name).read_bytes()


def test_weights_take_the_dtype_that_they_have_in_the_source(tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    result.mkdir()
    save(with_towers("mistral3"), source)
    narrow = {name: weight.bfloat16() for name, weight in stored(source).items()}
    save_file(narrow, source / "model.safetensors", {"format": "pt"})
    model = moved(str(source)).float()
    WholeFolder(str(source)).write(result, model.state_dict().items())
    assert {weight.dtype for weight in stored(result).values()} == {torch.bfloat16}
    opened = load_model(str(result), None, None)
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight.bfloat16())


def test_a_shared_weight_is_written_once(tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    result.mkdir()
    save(with_towers("qwen3_vl", tie_word_embeddings=True), source)
    model = moved(str(source))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    WholeFolder(str(source)).write(result, model.state_dict().items())
    opened = AutoModelForMultimodalLM.from_pretrained(result)
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight)


def test_a_source_that_has_no_place_for_a_weight_is_refused_by_name(tmp_path: Path) -> None:
    save(with_towers("internvl"), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "a" / "model.safetensors"
    weights = load_file(file)
    norm = next(name for name in weights if name.endswith("language_model.model.norm.weight"))
    save_file({k: v for k, v in weights.items() if k != norm}, file)
    with pytest.raises(AiftError, match=r"(?s)model family internvl: .*norm.weight.*--method lora"):
        WholeFolder(str(tmp_path / "a"))
    # one that disappears while the run goes on
    whole, model = WholeFolder(str(tmp_path / "b")), moved(str(tmp_path / "b"))
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("norm.weight")}
    with pytest.raises(AiftError, match="was not trained here"):
        whole.write(tmp_path / "a", state.items())


def test_the_source_may_hold_more_files_than_its_weights(tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    result.mkdir()
    save(with_towers("mistral3"), source, max_shard_size="2MB")
    save_file({"other": torch.zeros(3)}, source / "consolidated.safetensors")
    (source / "params.json").write_text(json.dumps({"dim": 64}), "utf-8")
    WholeFolder(str(source)).write(result, moved(str(source)).state_dict().items())
    assert not (result / "consolidated.safetensors").exists()
    assert not (result / "params.json").exists()
    AutoModelForMultimodalLM.from_pretrained(result)
