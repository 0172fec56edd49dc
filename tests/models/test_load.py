"""A model is loaded as it is told to: in its bits and dtype, with no code run, or refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StableLmConfig

from aift_ray.errors import ModelError
from aift_ray.models import base_and_adapter, hub
from aift_ray.models.attention import document_attention, flash_attention
from aift_ray.models.bnb.bnb_layers import layers
from aift_ray.models.japanese_model import JapaneseModel
from aift_ray.models.load import load_model
from tests.conftest import SHIPPED

QUESTION = "日本で一番高い山の名前を繰り返してください。"


@pytest.fixture(scope="module")
def hina() -> JapaneseModel:
    return JapaneseModel("hina-4m", torch.device("cpu"))


def test_model_and_tokenizer_are_loaded_once_and_ready_to_answer(hina: JapaneseModel) -> None:
    model = hina.load_model()
    assert hina.load_model() is model
    assert hina.load_tokenizer() is hina.load_tokenizer()
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_models_hold_their_linear_layers_in_that_many_bits(
    hina: JapaneseModel, bits: int
) -> None:
    model = JapaneseModel(
        "hina-4m", torch.device("cpu"), load_in_8bit=bits == 8, load_in_4bit=bits == 4
    )
    loaded = model.load_model()
    assert len(layers(loaded, bits)) == 4 * 7
    assert loaded.get_memory_footprint() < hina.load_model().get_memory_footprint()
    first = model.generate_japanese(QUESTION, max_new_tokens=12, do_sample=False)
    assert model.generate_japanese(QUESTION, max_new_tokens=12, do_sample=False) == first


def test_a_quantized_folder_is_loaded_as_it_is_and_not_in_other_bits(
    tmp_path: Path,
) -> None:
    made = JapaneseModel("hina-4m", torch.device("cpu"), load_in_4bit=True)
    made.load_model().save_pretrained(tmp_path / "4bit")
    made.load_tokenizer().save_pretrained(tmp_path / "4bit")
    again = JapaneseModel(str(tmp_path / "4bit"), torch.device("cpu"))
    assert len(layers(again.load_model(), 4)) == 4 * 7
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    assert again.generate_japanese(QUESTION, **asked) == made.generate_japanese(QUESTION, **asked)
    other = JapaneseModel(str(tmp_path / "4bit"), torch.device("cpu"), load_in_8bit=True)
    with pytest.raises(ModelError, match="in 4 bits already"):
        other.load_model()


def test_dtype_and_gradient_checkpointing_act() -> None:
    model = JapaneseModel(
        "hina-4m",
        torch.device("cpu"),
        torch_dtype=torch.bfloat16,
        gradient_checkpointing=True,
    ).load_model()
    assert model.dtype is torch.bfloat16
    assert model.is_gradient_checkpointing


def test_the_attention_in_use_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    base_and_adapter.say_once.cache_clear()
    with caplog.at_level(logging.INFO, "aift_ray"):
        for _ in range(2):
            model = JapaneseModel("hina-4m", torch.device("cpu")).load_model()
    assert model.config._attn_implementation == document_attention.NAME
    assert [r.getMessage() for r in caplog.records] == ["attention: PyTorch's SDPA"]


@pytest.mark.parametrize(
    ("package", "card", "dtype", "has"),
    [
        (True, (8, 6), torch.bfloat16, True),
        (True, (8, 6), torch.float32, False),
        (True, (7, 5), torch.float16, False),
        (False, (9, 0), torch.bfloat16, False),
    ],
)
def test_flash_attention_is_taken_where_replaced_cuda_has_it(
    monkeypatch: pytest.MonkeyPatch,
    package: bool,
    card: tuple[int, int],
    dtype: torch.dtype,
    has: bool,
) -> None:
    monkeypatch.setattr(flash_attention, "is_flash_attn_2_available", lambda: package)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    assert flash_attention.has_flash(torch.device("cuda"), dtype) is has
    assert not flash_attention.has_flash(torch.device("cpu"), dtype)


def test_supported_models_are_told_as_a_copy() -> None:
    told = JapaneseModel.list_supported_models()
    assert told == JapaneseModel.SUPPORTED_MODELS
    assert all({"display_name", "min_gpu_memory_gb"} <= fields.keys() for fields in told.values())
    told["hina-4m"]["licence"] = "?"
    assert JapaneseModel.SUPPORTED_MODELS["hina-4m"]["licence"] == "Apache-2.0"


def test_a_network_that_was_code_beside_its_weights_is_loaded_without_that_code(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    config = StableLmConfig(
        vocab_size=5056, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, layer_norm_eps=1e-3, eos_token_id=3,
        rope_parameters={"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    original = AutoModelForCausalLM.from_config(config)
    original.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(tmp_path)
    old = {
        "model_type": "stablelm_epoch",
        "auto_map": {"AutoConfig": "configuration_stablelm_epoch.StableLMEpochConfig"},
        "vocab_size": 5056, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_heads": 4, "num_key_value_heads": 4, "norm_eps": 1e-3,
        "rope_pct": 0.5, "rope_theta": 5e3, "eos_token_id": 3, "torch_dtype": "float32",
        "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(old), encoding="utf-8")
    model = JapaneseModel(str(tmp_path), torch.device("cpu"))
    assert model.generate_japanese(QUESTION, max_new_tokens=2) is not None
    row = torch.arange(100, 116)[None]
    with torch.no_grad():
        logits = original.eval()(row).logits
        assert torch.equal(model.load_model()(row).logits, logits)


def test_a_tokenizer_with_code_beside_it_is_loaded_without_that_code(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "coded")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8"))
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    file.write_text(json.dumps(settings), encoding="utf-8")
    (folder / "own.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    coded, plain = (hub.load_tokenizer(str(place)) for place in (folder, tiny_model))
    text = "<|im_start|>user\n富士山𠮟<|im_end|>"
    assert coded.encode(text) == plain.encode(text)
    assert (coded.chat_template, coded.eos_token) == (plain.chat_template, plain.eos_token)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_part_is_refused(
    tiny_model: Path, tmp_path: Path, missing: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "part")
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=r"config.json|no weights|no tokenizer"):
        JapaneseModel(str(folder)).load_model()


def test_an_unknown_name_finds_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean hina-4m"):
        JapaneseModel("hina").load_model()


@pytest.mark.parametrize("prompts", [1, 4])
def test_prompts_read_on_frozen_weights_copy_no_weights(prompts: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    model: Any = load_model(str(SHIPPED), torch.float32, "sdpa")
    model.requires_grad_(False)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        model(torch.zeros(prompts, 9, dtype=torch.long), logits_to_keep=1)
    head = model.get_output_embeddings().weight
    copied = [event.input_shapes for event in seen.events() if event.name == "aten::bmm"]
    assert [prompts, *head.T.shape] not in [shape for shapes in copied for shape in shapes]
