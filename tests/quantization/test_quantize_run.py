"""`aift-ray quantize`: merging, the report, the folder; every setting acts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from aift_ray import quantize
from aift_ray.config import QuantizeConfig
from aift_ray.quantization import quantize_report
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED, write_rows
from tests.quantization.conftest import Quantize

IDS = torch.tensor([[5, 99, 1203, 42, 7, 3000]])


def reported(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "quantization.json").read_text("utf-8"))
    return found


def adapted_logits(base: Path, adapter: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def test_a_merged_model_gives_the_logits_of_the_adapter(
    run: Quantize, tiny_model: Path, adapter: Path
) -> None:
    folder = run("--adapter", str(adapter), "--bits", "16")
    expected = adapted_logits(tiny_model, adapter)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tiny_model)(IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    # fp32: what is left is rounding
    torch.testing.assert_close(merged, expected, atol=2e-5, rtol=0)
    assert (plain - expected).abs().max() > 0.01
    assert 0 < reported(folder)["merging"]["merged"]["max"] < 1e-4


def test_an_adapter_is_merged_before_quantizing(
    run: Quantize, tiny_model: Path, adapter: Path
) -> None:
    folder = run("--adapter", str(adapter), "--bits", "8")
    found = reported(folder)
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    expected = adapted_logits(tiny_model, adapter)
    assert (ours - expected).abs().mean() < 0.1 * expected.std()
    assert set(found["merging"]) == {"merged", "on_quantized_base"}
    assert found["merging"]["on_quantized_base"]["max"] > found["merging"]["merged"]["max"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (adapter / name).read_bytes()
    assert not list(folder.glob(".*")), "nothing is left of the way there"


def test_the_folder_holds_model_report_and_plot(run: Quantize) -> None:
    folder = run()
    found = reported(folder)
    assert {"original", "quantized", "ratio", "logit_difference", "settings"} <= set(found)
    assert found["rows"] == 4
    assert (folder / "quantization.png").read_bytes().startswith(b"\x89PNG")
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert sorted(p.name for p in folder.parent.iterdir()) == ["out"]


def test_without_rows_nothing_is_measured(run: Quantize, adapter: Path) -> None:
    folder = run("--eval-rows", "0", "--adapter", str(adapter))
    assert "ratio" not in reported(folder)
    assert not (folder / "quantization.png").exists()
    assert (folder / "model.safetensors").is_file()


def test_overwrite_replaces_what_this_command_has_written_and_nothing_else(
    run: Quantize, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    (folder / "stale.txt").touch()
    run("--overwrite", "--bits", "8")
    assert not (folder / "stale.txt").exists()
    assert reported(folder)["settings"]["bits"] == 8
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    argv = ["--output-dir", str(tmp_path / "home"), "--overwrite"]
    assert guarded(quantize.run, argv) == 2
    assert "something other than an earlier result" in capsys.readouterr().err
    assert (tmp_path / "home" / "letter.txt").exists()


FAILURES = {
    "No space left": OSError(28, "No space left on device"),
    "--eval-rows 0": torch.OutOfMemoryError("out of memory"),
}


@pytest.mark.parametrize("part", FAILURES)
def test_a_failure_leaves_the_folder_as_it_was(
    part: str,
    run: Quantize,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: Any) -> None:
        raise FAILURES[part]

    folder = run()
    before = reported(folder)
    monkeypatch.setattr(quantize_report, "write", fails)
    argv = ["--output-dir", str(folder), "--overwrite", "--eval-rows", "1", "--num-runs", "1"]
    assert guarded(quantize.run, argv) == 1
    assert part in capsys.readouterr().err
    assert reported(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert guarded(quantize.run, ["--dry-run"]) == 0
    shown = capsys.readouterr().out
    for part in ("hina-4m", "4,245,760", "nf4", "64 rows", "cpu"):
        assert part in shown
    assert list(tmp_path.iterdir()) == []


BASE = {"--bits": "4", "--eval-rows": "3", "--num-runs": "1"}
EIGHT = {"--bits": "8"}
# setting -> what is given beside it, and its flag
CHANGES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "model": ({}, {"--model": "hina-4m"}),
    "adapter": ({}, {"--adapter": "adapter"}),
    "bits": ({}, EIGHT),
    "quant_type": ({}, {"--quant-type": "fp4"}),
    "double_quant": ({}, {"--double-quant": "false"}),
    "compute_dtype": ({}, {"--compute-dtype": "bf16"}),
    "threshold": (EIGHT, {"--threshold": "0.5"}),
    "fp16_weight": (EIGHT, {"--fp16-weight": "true"}),
    "cpu_offload": (EIGHT, {"--cpu-offload": "true"}),
    "device": ({}, {"--device": "cuda"}),
    "eval_files": ({}, {"--eval-file": "rows.jsonl"}),
    "eval_rows": ({}, {"--eval-rows": "2"}),
    "sequence_length": ({}, {"--sequence-length": "40"}),
    "num_runs": ({}, {"--num-runs": "3"}),
}


def observed(flags: dict[str, str], folder: Path, model: Path) -> Any:
    """Everything a run leaves but for times and the settings themselves; None: it refuses."""
    given = {"--model": str(model), "--output-dir": str(folder)} | flags
    if guarded(quantize.run, [part for pair in given.items() for part in pair]) == 2:
        return None
    found = reported(folder)
    del found["settings"]
    for name in ("original", "quantized", "ratio"):
        found[name] = {k: v for k, v in found[name].items() if k in ("memory_mb", "perplexity")}
    files = ("model.safetensors", "config.json")
    return found, [hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in files]


def test_every_setting_is_an_effect_or_an_error(
    tmp_path: Path, tiny_model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(CHANGES) | {"output_dir", "overwrite"} == set(QuantizeConfig.model_fields)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").symlink_to(adapter)
    write_rows(tmp_path / "rows.jsonl", 5)
    timed: list[int] = []
    from aift_ray.quantization import measure

    plain = measure._times
    monkeypatch.setattr(measure, "_times", lambda m, s, r: timed.append(r) or plain(m, s, r))
    bases = {
        bits: observed(BASE | {"--bits": bits}, tmp_path / f"base{bits}", tiny_model)
        for bits in ("4", "8")
    }
    dead = []
    for name, (beside, change) in CHANGES.items():
        flags = BASE | beside
        before, runs = bases[flags["--bits"]], len(timed)
        after = observed(flags | change, tmp_path / name, tiny_model)
        if after == before and timed[runs:] == [1]:
            dead.append(name)
    assert dead == []


def test_the_shipped_model_is_the_default(tmp_path: Path) -> None:
    argv = ["--output-dir", str(tmp_path / "out"), "--eval-rows", "2", "--num-runs", "1"]
    assert guarded(quantize.run, argv) == 0
    shipped = (SHIPPED / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == shipped
