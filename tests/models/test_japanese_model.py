"""A model answers with new text only, from the prompt that training made, as it is told to."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessor

from aift_ray.data.examples import Example
from aift_ray.data.prompts import PromptEncoder
from aift_ray.errors import ConfigError, DataError, ModelError
from aift_ray.models import attention, folders, places
from aift_ray.models.japanese_model import JapaneseModel
from aift_ray.models.quantized import layers
from tests.conftest import SHIPPED

QUESTION = "日本で一番高い山の名前を繰り返してください。"


class Forced(LogitsProcessor):
    """Makes a model write the given ids, whatever it would say."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.prompt: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.prompt = self.prompt or input_ids[0].tolist()
        at = input_ids.shape[1] - len(self.prompt)
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[at % len(self.ids)]] = 0
        return forced


@pytest.fixture(scope="module")
def hina() -> JapaneseModel:
    return JapaneseModel("hina-4m", torch.device("cpu"))


def ids(model: JapaneseModel, text: str) -> list[int]:
    return list(model.load_tokenizer().encode(text, add_special_tokens=False))


def altered(source: Path, folder: Path, **config: Any) -> Path:
    """A copy of a model folder with other values in its config.json."""
    shutil.copytree(source, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("given", ["", "富士山は三七七六メートルある。"])
def test_the_prompt_is_what_training_puts_before_the_answer(
    hina: JapaneseModel, given: str
) -> None:
    forced = Forced(ids(hina, "<|im_end|>"))
    assert hina.generate_japanese(QUESTION, given or None, logits_processor=[forced]) == ""
    encoder = PromptEncoder(folders.load_tokenizer(str(SHIPPED)))
    row = encoder.encode(Example("instruction", "f", 1, (), QUESTION, given, "はい"))
    assert forced.prompt == row.ids[: row.supervised.index(True)]


def test_a_system_prompt_stands_before_that_call_only(hina: JapaneseModel) -> None:
    with_it, without = (Forced(ids(hina, "<|im_end|>")) for _ in range(2))
    hina.generate_japanese(QUESTION, system_prompt="短く。", logits_processor=[with_it])
    hina.generate_japanese(QUESTION, logits_processor=[without])
    tokenizer = hina.load_tokenizer()
    assert "短く。" in tokenizer.decode(with_it.prompt)
    assert "短く。" not in tokenizer.decode(without.prompt)


def test_only_new_text_up_to_the_turns_end_is_returned(hina: JapaneseModel) -> None:
    forced = Forced(ids(hina, "富士山です。<|im_end|>\n<|im_start|>user\n"))
    assert hina.generate_japanese(QUESTION, logits_processor=[forced]) == "富士山です。"


def test_a_reasoning_models_answer_is_what_follows_its_thoughts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(SHIPPED, tmp_path / "thinking")
    template = folder / "chat_template.jinja"
    header = "<|im_start|>assistant\n"
    source = template.read_text("utf-8")
    assert header in source
    before, _, after = source.rpartition(header)
    template.write_text(f"{before}{header}<think>\n{after}", encoding="utf-8")
    model = JapaneseModel(str(folder), torch.device("cpu"))
    forced = Forced(ids(model, "山の話だ。</think>\n\n富士山です。<|im_end|>"))
    asked: dict[str, Any] = {"logits_processor": [forced]}
    assert model.generate_japanese(QUESTION, **asked) == "富士山です。"
    assert model.load_tokenizer().decode(forced.prompt).endswith("<think>\n")
    thoughts = model.generate_japanese(QUESTION, return_reasoning=True, **asked)
    assert thoughts == "山の話だ。</think>\n\n富士山です。"
    assert model.generate_japanese(QUESTION, max_new_tokens=2, **asked) == ""
    assert "still reasoning after 2 tokens" in caplog.text


def test_no_half_character_is_returned(hina: JapaneseModel) -> None:
    forced = Forced(ids(hina, "はい𠮟"))
    length = len(forced.ids) - 1
    answer = hina.generate_japanese(QUESTION, max_new_tokens=length, logits_processor=[forced])
    assert answer == "はい"


def test_without_sampling_the_answer_is_the_same_every_time(hina: JapaneseModel) -> None:
    answers = {
        hina.generate_japanese(QUESTION, max_new_tokens=24, do_sample=False) for _ in range(3)
    }
    answers.add(hina.generate_japanese(QUESTION, max_new_tokens=24, temperature=0))
    answers.add(hina.generate_japanese(QUESTION, max_new_tokens=24, top_k=1))
    assert len(answers) == 1


def test_the_sampling_options_act(hina: JapaneseModel) -> None:
    def answers(**options: Any) -> set[str]:
        found = set()
        for seed in range(4):
            torch.manual_seed(seed)
            found.add(hina.generate_japanese(QUESTION, max_new_tokens=8, **options))
        return found

    hot = answers(temperature=5.0, top_p=1.0, top_k=0)
    assert len(hot) == 4
    assert answers(temperature=5.0, top_p=1.0, top_k=0) == hot, "a seed gives the same answer"
    assert len(answers(temperature=5.0, top_p=1e-6, top_k=0)) == 1
    assert len(answers(temperature=5.0, top_p=1.0, top_k=1)) == 1
    assert len(answers(temperature=1e-3, top_p=1.0, top_k=0)) == 1


def test_further_options_reach_generate(hina: JapaneseModel) -> None:
    forced = Forced(ids(hina, "富士山です。"))
    stopped = hina.generate_japanese(QUESTION, stop_strings=["です"], logits_processor=[forced])
    assert stopped.startswith("富士山です")
    assert len(stopped) < 10


def test_the_answer_ends_where_the_context_ends(tiny_model: Path, tmp_path: Path) -> None:
    model = JapaneseModel(
        str(altered(tiny_model, tmp_path / "short", max_position_embeddings=48)),
        torch.device("cpu"),
    )
    forced = Forced(ids(model, "あ"))
    answer = model.generate_japanese("はい", logits_processor=[forced])
    assert len(forced.prompt) + len(answer) == 48
    with pytest.raises(DataError, match="the model takes 48"):
        model.generate_japanese("長い文。" * 40)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"do_sample": "no"}, "do_sample"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"input_ids": []}, "input_ids"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
def test_a_wrong_option_is_named(hina: JapaneseModel, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        hina.generate_japanese(QUESTION, **options)


def test_every_wrong_option_is_told_at_once(hina: JapaneseModel) -> None:
    with pytest.raises(ConfigError) as caught:
        hina.generate_japanese(QUESTION, None, 0, -1.0, 2.0, -1, 1)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("instruction", ["", "  \n", None, 3, ["問い"], "\ufdd0aift-"])
def test_an_instruction_that_is_no_text_is_refused(hina: JapaneseModel, instruction: Any) -> None:
    with pytest.raises(DataError, match="instruction"):
        hina.generate_japanese(instruction)


def test_an_input_that_is_no_text_is_refused(hina: JapaneseModel) -> None:
    with pytest.raises(DataError, match="input_text"):
        hina.generate_japanese(QUESTION, ["富士山"])  # type: ignore[arg-type]


def test_model_and_tokenizer_are_loaded_once_and_ready_to_answer(hina: JapaneseModel) -> None:
    model = hina.load_model()
    assert hina.load_model() is model
    assert hina.load_tokenizer() is hina.load_tokenizer()
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_answer_leaves_training_as_it_was(hina: JapaneseModel) -> None:
    model = hina.load_model()
    model.train()
    try:
        hina.generate_japanese(QUESTION, max_new_tokens=1)
        assert model.training
    finally:
        model.eval()


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
    places.say_once.cache_clear()
    with caplog.at_level(logging.INFO, "aift_ray"):
        for _ in range(2):
            model = JapaneseModel("hina-4m", torch.device("cpu")).load_model()
    assert model.config._attn_implementation == "sdpa"
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
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: package)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    assert attention.has_flash(torch.device("cuda"), dtype) is has
    assert not attention.has_flash(torch.device("cpu"), dtype)


def test_supported_models_are_told_as_a_copy() -> None:
    told = JapaneseModel.list_supported_models()
    assert told == JapaneseModel.SUPPORTED_MODELS
    assert all({"display_name", "min_gpu_memory_gb"} <= fields.keys() for fields in told.values())
    told["hina-4m"]["licence"] = "?"
    assert JapaneseModel.SUPPORTED_MODELS["hina-4m"]["licence"] == "Apache-2.0"


def test_a_network_that_was_code_beside_its_weights_is_loaded_without_that_code(
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer, StableLmConfig

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
    coded, plain = (folders.load_tokenizer(str(place)) for place in (folder, tiny_model))
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
