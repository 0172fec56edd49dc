"""An adapter belongs to weights, wherever they are; a folder remembers its prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aift_ray import quantize, serve
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.errors import ModelError
from aift_ray.models import fingerprint, hub, load, provenance
from aift_ray.models.base_and_adapter import find_place
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.japanese_model import JapaneseModel
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.quantization import quantizer
from aift_ray.serving.engines.transformers import lora_manager
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED

CPU = torch.device("cpu")
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (
        lambda f: cut(f / "adapter_model.safetensors", -40),
        "adapter_model.safetensors is damaged",
    ),
    "empty": (lambda f: shutil.rmtree(f) or f.mkdir(), "holds no adapter_config.json"),
    "empty file": (
        lambda f: cut(f / "adapter_model.safetensors", 0),
        "adapter_model.safetensors is damaged",
    ),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "holds no adapter_model.safetensors",
    ),
    "half of its layers": (lambda f: halve(f), "lacks weights that adapter_config.json asks for"),
    "not finite": (lambda f: spoil(f), "infinite or NaN"),
    "wrong rank": (lambda f: configure(f, r=8), "rank r = 8, its weights have 4"),
    "a rank that is none": (
        lambda f: configure(f, r="four"),
        "r = 'four', expected a whole number",
    ),
    "a list": (
        lambda f: (f / "adapter_config.json").write_text("[]"),
        "adapter_config.json holds list",
    ),
    "cut configuration": (
        lambda f: cut(f / "adapter_config.json", -40),
        "adapter_config.json is damaged",
    ),
    "configuration of nonsense": (
        lambda f: configure(f, target_modules=5),
        "adapter_config.json",
    ),
    "cut tokenizer": (lambda f: cut(f / "tokenizer.json", -40), "tokenizer.json"),
    "tokenizer of nonsense": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json is damaged",
    ),
    "cut record": (lambda f: cut(f / "aift_ray.json", -10), "aift_ray.json"),
    "another template": (
        lambda f: append(f / "chat_template.jinja", "{# more #}"),
        "chat template of",
    ),
}


def cut(file: Path, at: int) -> None:
    file.write_bytes(file.read_bytes()[:at])


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text("utf-8") + text, "utf-8")


def configure(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")


def halve(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({key: weights[key] for key in sorted(weights)[: len(weights) // 2]}, file)


def spoil(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[3] = float("nan")
    save_file(weights, file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The bases and the adapter, from which each test takes copies."""
    place = tmp_path_factory.mktemp("made")
    one, two, other = place / "A" / "model", place / "B" / "copy", place / "C" / "model"
    shutil.copytree(tiny_model, one)
    model = AutoModelForCausalLM.from_pretrained(one)
    model.save_pretrained(two, max_shard_size="400KB")
    assert len(list(two.glob("*.safetensors"))) > 1
    AutoTokenizer.from_pretrained(one).save_pretrained(two)
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][5, 7] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted: PeftModel = get_peft_model(model, settings)
    adapted.save_pretrained(str(place / "adapter"), save_embedding_layers=False)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(place / "adapter")
    return place


@pytest.fixture
def bases(made: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, the same weights in other files under another name, and others under its name."""
    for name in "ABC":
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path / "A" / "model", tmp_path / "B" / "copy", tmp_path / "C" / "model"


@pytest.fixture
def adapter(made: Path, tmp_path: Path, bases: tuple[Path, ...]) -> Path:
    """An adapter on the first base, which is recorded."""
    folder = shutil.copytree(made / "adapter", tmp_path / "adapter")
    configure(folder, base_model_name_or_path=str(bases[0]))
    provenance.record(folder, base=str(bases[0]))
    return folder


def answers(base: Path | str, adapter: Path) -> list[str]:
    """What each entrance says of an adapter on a base; "" where it takes it."""
    location = hub.resolve(str(base))
    encoder = PromptEncoder(hub.load_tokenizer(location))
    served = "\n".join(map(str, lora_manager.check("a", str(adapter), location, encoder)))
    python = quantized = ""
    try:
        check_adapter(adapter, str(base), location, load.skeleton(location))
    except ModelError as error:
        quantized = str(error)
    file = adapter / "adapter_config.json"
    kept = file.read_bytes() if file.is_file() else b""
    try:
        if kept and isinstance(json.loads(kept), dict):
            configure(adapter, base_model_name_or_path=str(base))
    except ValueError:
        pass
    try:
        find_place(str(adapter))
    except ModelError as error:
        python = str(error)
    if kept:
        file.write_bytes(kept)
    return [served, quantized, python]


def test_a_base_is_its_weights_not_its_folder(bases: tuple[Path, ...], adapter: Path) -> None:
    one, two, other = bases
    assert answers(one, adapter) == answers(two, adapter) == ["", "", ""]
    for told in answers(other, adapter):
        assert "made for another base" in told
    # the base's own folder is not needed
    shutil.rmtree(one)
    assert answers(two, adapter) == ["", "", ""]
    for told in answers(other, adapter):
        assert "made for another base" in told


def test_an_adapter_that_peft_has_made_is_compared_with_the_base_that_it_names(
    bases: tuple[Path, ...], adapter: Path
) -> None:
    one, two, other = bases
    (adapter / provenance.FILE).unlink()
    assert answers(two, adapter)[:2] == ["", ""]
    assert all("made for another base" in told for told in answers(other, adapter)[:2])
    shutil.rmtree(one)
    for told in answers(two, adapter)[:2]:
        assert "can't be told here" in told
        assert f"name it as base_model_name_or_path in {adapter}" in told
    configure(adapter, base_model_name_or_path=str(two))
    assert answers(two, adapter) == ["", "", ""]


def test_hub_ids_that_are_not_here_are_compared_by_name(tmp_path: Path, adapter: Path) -> None:
    from aift_ray.models.lora.adapter_folder import _same_weights

    assert _same_weights("a/model", None, "a/model") is True
    assert _same_weights("a/model", "0" * 64, "a/model") is True
    assert _same_weights("a/model", None, "b/model") is False
    assert _same_weights("a/model", "0" * 64, "b/model") is None


def test_an_adapter_goes_on_its_base_in_fewer_bits(
    bases: tuple[Path, ...], adapter: Path, tmp_path: Path
) -> None:
    for base, fits in ((bases[1], True), (bases[2], False)):
        folder = tmp_path / f"four of {base.parent.name}"
        folder.mkdir()
        quantizer.quantize(str(base), Quantization(4), CPU, folder)
        assert [told == "" for told in answers(folder, adapter)] == [fits] * 3
    # the record does not vouch for other weights
    shutil.copy(tmp_path / "four of B" / provenance.FILE, bases[2] / provenance.FILE)
    assert all("another base" in told for told in answers(bases[2], adapter))


def set_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")


def test_an_adapter_belongs_to_the_numbers_of_its_base_too(
    bases: tuple[Path, ...], adapter: Path
) -> None:
    one, two, _ = bases
    rope = AutoConfig.from_pretrained(one).rope_parameters
    set_config(two, use_cache=False, max_position_embeddings=64, dtype="bfloat16")
    assert answers(two, adapter) == ["", "", ""]
    set_config(two, rope_parameters=rope | {"rope_theta": 123.0}, rms_norm_eps=1e-2)
    for told in answers(two, adapter):
        assert "with other settings in its config.json" in told
        assert f"rope_parameters.rope_theta is 123.0, and was {rope['rope_theta']}" in told
        assert "rms_norm_eps is 0.01, and was" in told
    # an adapter that was written before settings were recorded: its weights alone are compared
    file = adapter / provenance.FILE
    record = json.loads(file.read_text("utf-8"))
    assert record["base"].pop("settings")
    file.write_text(json.dumps(record), "utf-8")
    assert answers(two, adapter) == ["", "", ""]


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_whatever_is_wrong_with_a_folder_is_one_problem_that_names_the_file(
    bases: tuple[Path, ...], adapter: Path, damage: str
) -> None:
    spoilt, expected = DAMAGES[damage]
    spoilt(adapter)
    served, quantized, python = answers(bases[0], adapter)
    for told in (served, quantized):
        assert expected in told
        assert str(adapter) in told
        assert told.count("- adapter") <= 1
    if damage != "empty":
        assert expected in python


def test_large_models_are_told_apart_by_samples_of_every_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE", 2**20)
    torch.manual_seed(0)
    weights = {name: torch.randn(512, 512) for name in "abc"}
    found = set()
    for number, change in enumerate((None, *weights)):
        folder = tmp_path / str(number)
        folder.mkdir()
        moved = weights | ({change: weights[change] * (1 + 1e-6)} if change else {})
        save_file(moved, folder / "model.safetensors")
        found.add(fingerprint.fingerprint(str(folder)))
    assert len(found) == 4
    split = tmp_path / "split"
    split.mkdir()
    for name, tensor in weights.items():
        save_file({name: tensor}, split / f"{name}.safetensors", {"of": "others"})
    assert fingerprint.fingerprint(str(split)) == fingerprint.fingerprint(str(tmp_path / "0"))


def test_a_folder_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors")
    first = fingerprint.fingerprint(str(tmp_path))
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    assert first != fingerprint.fingerprint(str(tmp_path))


def test_a_model_whose_prompts_were_changed_after_training_is_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    flags = ["--model", str(folder), "--dry-run"]
    append(folder / "chat_template.jinja", "{# before #}")
    provenance.record(folder)
    assert guarded(serve.run, flags) == 0
    # what changes nothing
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer("長い文", padding="max_length", truncation=True, max_length=8)
    tokenizer.save_pretrained(folder)
    assert guarded(serve.run, flags) == 0
    changes: dict[str, Callable[[str], str]] = {
        "chat_template.jinja": lambda text: text + "{# after #}",
        "tokenizer.json": lambda text: text.replace('"add_prefix_space": false', '"x": 0'),
    }
    for change, changed in changes.items():
        before = (folder / change).read_text("utf-8")
        assert changed(before) != before
        (folder / change).write_text(changed(before), "utf-8")
        for verb in (serve.run, quantize.run):
            more = ["--output-dir", str(tmp_path / "out")] if verb is quantize.run else []
            assert guarded(verb, flags + more) == 2
            told = capsys.readouterr().err
            assert "was changed after it was trained" in told
            assert f"remove {folder / provenance.FILE}" in told
        with pytest.raises(ModelError, match="changed after it was trained"):
            JapaneseModel(str(folder), CPU).load_tokenizer()
        (folder / change).write_text(before, "utf-8")
    assert guarded(serve.run, flags) == 0
