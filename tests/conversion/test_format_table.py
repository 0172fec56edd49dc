"""`aift-ray export --compare`: formats side by side, held against the files themselves."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from aift_ray import export
from aift_ray.config import ExportConfig
from aift_ray.conversion import format_table
from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.models.hub import load_tokenizer
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED, write_rows
from tests.quantization.conftest import make_adapter


def run(*argv: object) -> int:
    return guarded(export.run, [str(part) for part in argv])


@pytest.mark.parametrize("outtype", ["q4_0", pytest.param("q8_0", marks=pytest.mark.slow)])
def test_weights_are_those_that_transformers_reads_from_the_file(
    outtype: str, tmp_path: Path
) -> None:
    file = tmp_path / "hina.gguf"
    flags = ("--outtype", outtype, "--tokenizer", "nearest")
    assert run("--model", SHIPPED, *flags, "--output", file) == 0
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    ).state_dict()
    output = tmp_path / "table.json"
    config = ExportConfig(model=str(SHIPPED), compare=[f"gguf:{outtype}"], output=str(output))
    plan = format_table.prepare(config)
    ((_, built, size),) = format_table.built(plan)
    for name, weight in built.state_dict().items():
        assert torch.allclose(weight, read[name].float(), atol=1e-6), name
    assert 0 <= file.stat().st_size - size < 1 << 20


def test_the_table_is_measured_on_the_rows_of_the_user(tmp_path: Path, tiny_model: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    rows, output = write_rows(tmp_path / "rows.jsonl", 6), tmp_path / "out" / "table.json"
    flags: list[object] = ["--model", tiny_model, "--adapter", adapter, "--eval-file", rows]
    flags += ["--compare", "gguf:f16", "--compare", "gguf:q4_0", "--compare", "int8"]
    assert run(*flags, "--output", output) == 0
    found = json.loads(output.read_text("utf-8"))
    formats = found["formats"]
    assert (found["rows"], list(formats)) == (6, ["original", "gguf:f16", "gguf:q4_0", "int8"])
    assert formats["original"]["perplexity"] == pytest.approx(
        perplexity(tiny_model, adapter, rows), rel=1e-4
    )
    assert formats["gguf:f16"]["logit_difference"]["max"] < 2e-3
    moved = [formats[name]["logit_difference"]["mean"] for name in ("gguf:f16", "gguf:q4_0")]
    assert moved[0] < moved[1]
    sizes = [formats[name]["weights_mb"] for name in ("original", "gguf:f16", "gguf:q4_0")]
    assert sizes == sorted(sizes, reverse=True)
    assert [each.name for each in output.parent.iterdir()] == ["table.json"]
    assert run(*flags, "--output", output) == 2


def perplexity(base: Path, adapter: Path, rows: Path) -> float:
    """By PEFT and transformers' eager forward, one row at a time."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter).eval()
    encoder = PromptEncoder(load_tokenizer(str(base)))
    total, count = 0.0, 0
    for line in rows.read_text("utf-8").splitlines():
        row = json.loads(line)
        example = Example("instruction", "", 0, (), row["instruction"], "", row["output"])
        encoded = encoder.encode(example)
        labels = [
            token if flag else -100
            for token, flag in zip(encoded.ids, encoded.supervised, strict=True)
        ]
        with torch.no_grad():
            logits = model(torch.tensor([encoded.ids])).logits[0, :-1]
        wanted = torch.tensor(labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        count += sum(label != -100 for label in labels[1:])
    return math.exp(total / count)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llmcompressor"), reason="llm-compressor is not installed")
def test_gptq_and_fp8_beside_the_others(tmp_path: Path, tiny_model: Path) -> None:
    rows, output = write_rows(tmp_path / "rows.jsonl", 6), tmp_path / "table.json"
    flags: list[object] = ["--model", tiny_model, "--eval-file", rows, "--output", output]
    flags += ["--compare", "gptq", "--compare", "fp8", "--calibration-file", rows]
    assert run(*flags) == 0
    formats = json.loads(output.read_text("utf-8"))["formats"]
    assert list(formats) == ["original", "gptq", "fp8"]
    assert all(formats[name]["logit_difference"]["mean"] > 0 for name in ("gptq", "fp8"))


REFUSED = {
    ("--compare", "gguf:q4_k"): "there is no format 'gguf:q4_k'\n      did you mean 'gguf:q4_k_m'?",
    ("--compare", "nf4", "--compare", "nf4"): "a format is named twice",
    ("--compare", "nf4", "--outtype", "q8_0"): "outtype: does not act with compare",
    ("--compare", "gptq"): "give --calibration-file rows.jsonl",
    (
        "--compare",
        "nf4",
        "--calibration-rows",
        "3",
    ): "calibration_rows: acts with gptq and awq only",
    ("--compare", "nf4", "--eval-rows", "0"): "0 leaves nothing to compare by",
    ("--compare", "nf4", "--output", "table.txt"): "does not end in .json",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_can_not_be_compared_is_refused(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", SHIPPED, *flags) == 2
    assert REFUSED[flags] in capsys.readouterr().err


@pytest.mark.skipif(bool(find_spec("llmcompressor")), reason="llm-compressor is installed")
def test_a_format_whose_package_is_missing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", SHIPPED, "--compare", "fp8", "--compare", "nf4") == 2
    message = capsys.readouterr().err
    assert "compare fp8: fp8 is computed by llm-compressor, which is not installed" in message
    assert "pip install --no-deps llmcompressor" in message
