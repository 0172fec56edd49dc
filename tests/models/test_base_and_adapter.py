"""An adapter folder is a model: its base is found, or it is said why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aift_ray.errors import ModelError
from aift_ray.models.japanese_model import JapaneseModel
from tests.conftest import SHIPPED

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the shipped model that changes what it says, with a template of its own."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted: PeftModel = get_peft_model(base, settings)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.chat_template += "{# of the adapter #}"
    tokenizer.save_pretrained(folder)
    return folder


def copied(adapter: Path, folder: Path, **settings: Any) -> str:
    """A copy of an adapter folder with other values in adapter_config.json."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), encoding="utf-8")
    return str(folder)


def logits(model: JapaneseModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.load_model()(torch.arange(100, 116)[None]).logits
    return found


def test_the_base_is_loaded_with_the_adapter_and_its_template(adapter: Path) -> None:
    model = JapaneseModel(str(adapter), CPU)
    base = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        wanted = plain(torch.arange(100, 116)[None]).logits
    assert torch.equal(logits(model), wanted)
    assert not torch.equal(logits(JapaneseModel("hina-4m", CPU)), wanted)
    assert "of the adapter" in str(model.load_tokenizer().chat_template)
    assert isinstance(model.generate_japanese("はい", max_new_tokens=2), str)


def test_an_adapter_goes_on_a_base_in_4_bits(adapter: Path) -> None:
    model = JapaneseModel(str(adapter), CPU, load_in_4bit=True)
    assert isinstance(model.generate_japanese("はい", max_new_tokens=2), str)


def test_a_shipped_base_is_found_where_the_package_is_now(adapter: Path, tmp_path: Path) -> None:
    moved = copied(adapter, tmp_path / "a", base_model_name_or_path="/elsewhere/hina-4m")
    assert torch.equal(logits(JapaneseModel(moved, CPU)), logits(JapaneseModel(str(adapter), CPU)))


def test_a_tokenizer_comes_from_the_base_where_the_adapter_has_none(
    adapter: Path, tmp_path: Path
) -> None:
    bare = copied(adapter, tmp_path / "a")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (Path(bare) / file).unlink()
    assert "of the adapter" not in str(JapaneseModel(bare, CPU).load_tokenizer().chat_template)


def test_a_base_that_is_not_there_is_named(adapter: Path, tmp_path: Path) -> None:
    lost = copied(adapter, tmp_path / "a", base_model_name_or_path=str(tmp_path / "lost"))
    with pytest.raises(ModelError, match=rf"made for the base model {tmp_path}/lost"):
        JapaneseModel(lost, CPU).load_model()


def test_a_base_that_is_not_recorded_is_asked_for(adapter: Path, tmp_path: Path) -> None:
    unknown = copied(adapter, tmp_path / "a", base_model_name_or_path=None)
    with pytest.raises(ModelError, match="names no base model"):
        JapaneseModel(unknown, CPU).load_model()


@pytest.mark.parametrize("change", [{"hidden_size": 128}, {"num_hidden_layers": 2}])
def test_an_adapter_of_another_network_is_refused(
    adapter: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    config = AutoConfig.from_pretrained(SHIPPED)
    for name, value in change.items():
        setattr(config, name, value)
    other = tmp_path / "other"
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(other)
    wrong = copied(adapter, tmp_path / "a", base_model_name_or_path=str(other))
    with pytest.raises(ModelError, match=rf"made for another base \({other}\)"):
        JapaneseModel(wrong, CPU).load_model()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_refused(adapter: Path, tmp_path: Path, file: str) -> None:
    damaged = Path(copied(adapter, tmp_path / "a")) / file
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(ModelError):
        JapaneseModel(str(damaged.parent), CPU).load_model()
