"""What a user of `aift-ray quantize` does wrong is said plainly, with exit status 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aift_ray import quantize
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED
from tests.quantization.conftest import Quantize, make_adapter

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path) -> Refused:
    """Run the command; it must refuse and write nothing. The message."""

    def call(*argv: str, model: Path | str = tiny_model) -> str:
        flags = ["--model", str(model)]
        flags += [] if "--output-dir" in argv else ["--output-dir", str(tmp_path / "out")]
        for dry in ([], ["--dry-run"]):
            status = guarded(quantize.run, [*flags, *argv, *dry])
            message = capsys.readouterr().err
            assert status == 2, message
            assert "Traceback" not in message
            assert not (tmp_path / "out").exists()
        return message

    return call


@pytest.fixture
def broken(tmp_path: Path, adapter: Path) -> Callable[..., Path]:
    """A copy of the adapter, to be spoilt; settings given change its configuration."""

    def copy(**settings: object) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(adapter, folder)
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps(config | settings), "utf-8")
        return folder

    return copy


def test_both_numbers_of_bits_are_refused(refused: Refused) -> None:
    assert "both 8 and 4" in refused("--bits", "8", "--bits=4")


def test_unknown_values_are_named_with_those_allowed(refused: Refused) -> None:
    message = refused("--bits", "3", "--quant-type", "nf5", "--quant_typ", "nf4")
    for part in ("3", "4, 8 or 16", "nf5", "'nf4' or 'fp4'", "did you mean '--quant-type'"):
        assert part in message


@pytest.mark.parametrize(
    "flags",
    [
        ["--bits", "8", "--quant-type", "nf4"],
        ["--bits", "8", "--double-quant", "true"],
        ["--bits", "4", "--threshold", "5"],
        ["--bits", "16"],
    ],
)
def test_settings_that_would_do_nothing_are_refused(refused: Refused, flags: list[str]) -> None:
    assert "1 problem" in refused(*flags)


def test_files_that_are_missing_are_told_with_settings_that_would_do_nothing(
    refused: Refused,
) -> None:
    message = refused("--bits", "16", "--adapter", "x", "--threshold", "5")
    assert "threshold: acts with bits 8 only" in message
    assert "no such folder: x" in message
    message = refused("--eval-rows", "0", "--eval-file", "rows.jsonl")
    assert "eval_files: are not read with eval_rows 0" in message
    assert "rows.jsonl: there is no such file" in message


@pytest.mark.parametrize("flag", ["--fp16-weight", "--cpu-offload"])
def test_what_a_cpu_can_not_do_is_refused(refused: Refused, flag: str) -> None:
    message = refused("--bits", "8", flag, "--device", "cpu")
    assert "on a CPU" in message or "on the CPU" in message


def test_a_quantized_model_is_not_quantized_again(refused: Refused, run: Quantize) -> None:
    folder = run("--bits", "8", name="eight")
    message = refused(model=folder)
    assert "already quantized (bitsandbytes, 8 bits)" in message


def test_a_folder_without_weights_is_named(refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "no weights" in refused(model=tmp_path / "empty")
    assert "no such folder" in refused(model="hina-5m")


def test_an_output_folder_with_something_in_it_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    assert "not empty" in refused("--output-dir", str(tmp_path / "full"))
    assert "is a file" in refused("--output-dir", str(tmp_path / "full" / "a.txt"))
    message = refused("--output-dir", str(tmp_path / "full" / "a.txt" / "b"))
    assert "can't be written" in message


def test_a_disk_that_is_too_small_is_seen_before(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    message = refused()
    assert "needed for the weights" in message
    assert "checkpoints" not in message


def test_all_mistakes_come_at_once(refused: Refused, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    message = refused("--output-dir", str(tmp_path / "full"), "--adapter", "nowhere")
    assert "2 problems" in message
    assert "no such folder" in message


def test_an_adapter_for_another_base_says_which_it_wants(
    refused: Refused, tmp_path: Path, adapter: Path, tiny_model: Path
) -> None:
    message = refused("--adapter", str(adapter), model="hina-4m")
    assert f"made for another base: {tiny_model}, not hina-4m" in message
    assert f"give --model {tiny_model}" in message


def test_an_adapter_whose_layers_do_not_fit_is_refused(
    refused: Refused, broken: Callable[..., Path]
) -> None:
    folder = broken(base_model_name_or_path="/elsewhere/hina-4m")
    message = refused("--adapter", str(folder), model="hina-4m")
    assert "another base (/elsewhere/hina-4m)" in message
    assert "in another size" in message


def test_a_base_that_was_copied_is_the_same_base(
    run: Quantize, tmp_path: Path, tiny_model: Path, adapter: Path
) -> None:
    copied = shutil.copytree(tiny_model, tmp_path / "another name")
    run("--adapter", str(adapter), "--eval-rows", "0", model=copied, name="copied")


def test_a_base_that_is_gone_and_left_no_fingerprint_is_asked_for(
    refused: Refused, run: Quantize, tiny_model: Path, broken: Callable[..., Path]
) -> None:
    moved = broken(base_model_name_or_path=f"/elsewhere/{tiny_model.name}")
    message = refused("--adapter", str(moved))
    assert f"trained on /elsewhere/{tiny_model.name}" in message
    assert f"base_model_name_or_path in {moved / 'adapter_config.json'}" in message
    config = json.loads((moved / "adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = str(tiny_model)
    (moved / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    run("--adapter", str(moved), "--eval-rows", "0", "--bits", "16")


@pytest.mark.parametrize("rank", [0, -4, "four", None])
def test_a_rank_that_is_none_is_refused(
    refused: Refused, broken: Callable[..., Path], rank: object
) -> None:
    assert f"r = {rank!r}, expected" in refused("--adapter", str(broken(r=rank)))


def test_a_rank_that_the_weights_contradict_is_refused(
    refused: Refused, broken: Callable[..., Path]
) -> None:
    assert "r = 8, its weights have 4" in refused("--adapter", str(broken(r=8)))


def test_a_damaged_adapter_is_named(refused: Refused, broken: Callable[..., Path]) -> None:
    folder = broken()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "adapter_model.safetensors is damaged" in refused("--adapter", str(folder))
    weights.rename(folder / "adapter_model.bin")
    assert "pickle" in refused("--adapter", str(folder))
    (folder / "adapter_config.json").write_text("{", "utf-8")
    assert "adapter_config.json is damaged" in refused("--adapter", str(folder))
    assert "IA3" in refused("--adapter", str(of_kind(folder, "IA3")))
    assert "no adapter_config.json" in refused("--adapter", str(SHIPPED))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [5, 6]),
        ("arrow_config", {"top_k": 2}),
        ("lora_bias", True),
    ],
)
def test_an_adapter_that_is_more_than_low_ranks_is_refused(
    refused: Refused, broken: Callable[..., Path], option: str, value: Any
) -> None:
    told = refused("--adapter", str(broken(**{option: value})))
    assert f"has {option}" in told
    assert "use it with plain PEFT" in told


def of_kind(folder: Path, kind: str) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}), "utf-8")
    return folder


def test_ranks_by_layer_are_allowed(run: Quantize, tmp_path: Path, tiny_model: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "uneven", rank_pattern={"q_proj": 2})
    run("--adapter", str(folder), "--eval-rows", "0", "--bits", "16")


def test_wrong_evaluation_rows_are_named(refused: Refused, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a"}\n', "utf-8")
    assert "rows.jsonl:1" in refused("--eval-file", str(rows))
    assert "no such file" in refused("--eval-file", str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("command", [["aift_ray", "quantize"], ["aift_ray.quantize"]])
def test_the_command_exits_with_2_and_one_message(command: list[str]) -> None:
    argv = [sys.executable, "-m", *command, "--bits", "5", "--threshold", "-1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "2 problems" in done.stderr
    assert "Traceback" not in done.stderr
