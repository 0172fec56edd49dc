"""GPTQ, AWQ and fp8 through llm-compressor: refused without it, opened by transformers with it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from aift_ray import export
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED, make_tiny_model, write_rows

INSTALLED = importlib.util.find_spec("llmcompressor") is not None


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *flags: object) -> str:
    named = ["--output", str(folder / "out"), *map(str, flags)]
    assert guarded(export.run, named) == 2
    assert not (folder / "out").exists()
    return capsys.readouterr().err


@pytest.mark.skipif(INSTALLED, reason="llm-compressor is installed")
@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8"])
def test_without_llm_compressor_the_command_to_install_it_is_shown(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    flags = ["--calibration-file", rows] if kind != "fp8" else []
    message = refused(capsys, tmp_path, "--format", kind, *flags)
    assert f"{kind} is computed by llm-compressor, which is not installed" in message
    assert "pip install --no-deps llmcompressor==" in message


def test_four_bits_need_rows_to_be_fitted_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, tmp_path, "--format", "gptq", "--eval-rows", 0, "--eval-file", "x")
    assert "gptq is fitted to rows like those it will read" in message
    assert "eval_files: are not read with eval_rows 0" in message


def test_rows_that_groups_do_not_part_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny_model(tmp_path / "model", intermediate_size=72)
    rows = write_rows(tmp_path / "rows.jsonl")
    flags = ("--model", model, "--format", "gptq", "--calibration-file", rows)
    assert "have 72 weights, which groups of 32 don't part" in refused(capsys, tmp_path, *flags)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="llm-compressor is not installed")
@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8"])
def test_the_folder_is_smaller_and_nearly_as_good(kind: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    flags = ["--calibration-file", str(rows)] if kind != "fp8" else []
    flags += ["--format", kind, "--output", str(tmp_path / "out")]
    assert guarded(export.run, flags) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert report["weights_mb"]["quantized"] < 0.8 * report["weights_mb"]["original"]
    assert report["perplexity"]["quantized"] < 1.2 * report["perplexity"]["original"]
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    original = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype="auto")
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        pair = [each(ids).logits.float() for each in (model, original)]
    assert 0 < (pair[0] - pair[1]).abs().mean() < 0.2 * pair[1].abs().mean()
