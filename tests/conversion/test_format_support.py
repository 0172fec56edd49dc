"""A model that a format can't hold: the format that is named in its place takes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

from aift_ray import export
from aift_ray.config import ExportConfig
from aift_ray.conversion import compressed_layers, format_support, llmcompressor_compat
from aift_ray.conversion.gguf_families import FAMILIES
from aift_ray.models.catalog import CATALOG
from aift_ray.utils.exit_status import guarded
from tests.helpers.tiny_families import make, save, with_towers
from tests.quantization.conftest import make_adapter

FORMATS = ("gguf", *compressed_layers.FORMATS)
# of each the formats that can't hold it, with llm-compressor; tiny gemma3s have other windows
MODELS = {
    "gpt_neox": ("gguf", "awq"),
    "phi3": ("gguf",),
    "stablelm": ("gguf", "awq"),
    "llama": (),
    "llama of odd rows": ("awq", "gptq"),
    "stablelm of odd rows": ("gguf", "awq", "gptq"),
    "gemma3": FORMATS,
    "llava": compressed_layers.FORMATS,
    "paligemma": FORMATS,
}
# what llm-compressor has mappings for, of these
MAPPED = ("LlamaForCausalLM", "Phi3ForCausalLM")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("formats"), {}
    for name in MODELS:
        folder = root / name.replace(" ", "-")
        if name in ("gemma3", "llava", "paligemma"):
            found[name] = save(with_towers(name), folder)
            continue
        changes = {"intermediate_size": 72} if "odd" in name else {}
        found[name] = make(name.split()[0], folder, **changes)
    return found


def has_mappings(model: nn.Module) -> bool:
    return type(model).__name__ in MAPPED


def settings(kind: str, model: Path, adapter: str | None) -> ExportConfig:
    rows = {"calibration_files": ["rows.jsonl"]} if kind in ("gptq", "awq") else {}
    return ExportConfig(model=str(model), adapter=adapter, format=kind, **rows)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_what_a_refusal_names_is_not_refused(
    name: str, installed: bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed_layers, "installed", lambda: installed)
    monkeypatch.setattr(llmcompressor_compat, "has_mappings", has_mappings)
    location, refused = str(folders[name]), []
    for kind in FORMATS:
        what = format_support.unwritable(kind, location)
        if "llm-compressor is not installed" in what:
            # told by the command that installs it
            continue
        if what:
            refused.append(kind)
        for adapter in (None, "adapter") if what else ():
            config = settings(kind, folders[name], adapter)
            remedy = format_support.refused(config, location, what).remedy
            other = re.match(r"--format (\w+)(, without --calibration-file)?;", remedy)
            if other is None:
                assert remedy.startswith("transformers loads its folder as it is;")
                assert adapter is None
            else:
                assert other[1] != kind
                again = settings(other[1], folders[name], adapter)
                assert bool(other[2]) == bool(config.calibration_files > again.calibration_files)
                assert again.contradictions() == []
                assert other[1] == "hf" or format_support.unwritable(other[1], location) == ""
            advised = CATALOG[remedy.partition("such as ")[2]].architecture.model_type
            assert advised in (FAMILIES if kind == "gguf" else format_support.PLAIN)
    if installed:
        assert refused == [kind for kind in FORMATS if kind in MODELS[name]]


def test_the_launched_remedy_is_taken(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folders["gpt_neox"]
    adapter = make_adapter(model, tmp_path / "adapter", target_modules=["query_key_value"])
    flags = ["--model", str(model), "--adapter", str(adapter), "--dry-run"]
    assert guarded(export.run, [*flags, "--format", "gguf"]) == 2
    assert "--format hf" in " ".join(capsys.readouterr().err.split())
    assert guarded(export.run, [*flags, "--format", "hf"]) == 0


def test_formats_that_can_not_be_compared_are_left_out(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(folders["gpt_neox"]), "--output", str(tmp_path / "table.json")]
    assert guarded(export.run, [*flags, "--compare", "gguf:q8_0", "--compare", "nf4"]) == 2
    message = capsys.readouterr().err
    assert "compare gguf:q8_0: it can't be written as GGUF" in message
    assert "leave it out" in message
    assert "--format" not in message


@pytest.mark.skipif(not compressed_layers.installed(), reason="llm-compressor is not installed")
def test_llm_compressor_maps_the_types_that_are_named() -> None:
    from llmcompressor.modifiers.transform import awq

    known = {*awq.AWQ_MAPPING_REGISTRY, *awq.AWQ_DYNAMIC_MAPPING_REGISTRY}
    names = {kind: kind.capitalize() for kind in format_support.PLAIN}
    assert {f"{name}ForCausalLM" for name in names.values()} <= known
