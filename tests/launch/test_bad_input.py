"""What a user does wrong is said plainly, with exit status 2, before anything is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aift_ray import train
from aift_ray.__main__ import VERBS
from aift_ray.errors import UserError
from aift_ray.utils.exit_status import guarded
from tests.conftest import KEITAI

Refused = Callable[..., str]
GOOD = '{"instruction": "挨拶して", "output": "こんにちは。"}\n'


@pytest.fixture
def refused(
    tmp_path: Path, tiny_model: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Run the command in this process; it must refuse. The message."""

    def call(*argv: str, file: Path = rows_file, model: str = str(tiny_model)) -> str:
        common = ["--model", model, "--train-file", str(file), "--training.warmup_steps", "0"]
        if "--output-dir" not in argv:
            common += ["--output-dir", str(tmp_path / "run")]
        status = guarded(train.run, [*common, *argv])
        message = capsys.readouterr().err
        assert status == 2, message
        assert "Traceback" not in message
        assert not (tmp_path / "run" / "config.yaml").exists(), "nothing was started"
        return message

    return call


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


BAD_FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty.jsonl": ("", ["no row"]),
    "binary.jsonl": (bytes(range(256)) * 8, ["UTF-8"]),
    "broken.jsonl": (GOOD + '{"instruction": "切れた\n' + GOOD, [":2:", "JSON"]),
    "keys.jsonl": (GOOD + '{"instructions": "a", "output": "b"}\n', [":2:", "instruction"]),
    "empty_answer.jsonl": (
        '{"instruction": "a", "output": ""}\n' + GOOD,
        [":1:", "output", "empty"],
    ),
    "shift_jis.jsonl": (GOOD.encode("cp932"), ["UTF-8", "CP932"]),
    "table.xyz": (GOOD, [".jsonl"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_wrong_data_file_is_named(name: str, refused: Refused, tmp_path: Path) -> None:
    content, parts = BAD_FILES[name]
    message = refused(file=written(tmp_path / name, content))
    for part in (name, *parts):
        assert part.lower() in message.lower()


def test_a_missing_data_file_is_named(refused: Refused, tmp_path: Path) -> None:
    assert "nowhere.jsonl" in refused(file=tmp_path / "nowhere.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_data_file_is_named(refused: Refused, tmp_path: Path) -> None:
    file = written(tmp_path / "secret.jsonl", GOOD)
    file.chmod(0)
    assert "secret.jsonl" in refused(file=file)


def test_all_wrong_rows_are_named_at_once_and_the_first_with_their_reasons(
    refused: Refused, tmp_path: Path
) -> None:
    rows = "".join('{"instruction": "a"}\n' + GOOD for _ in range(30))
    message = refused(file=written(tmp_path / "many.jsonl", rows))
    assert "30 problems" in message
    assert "many.jsonl:1:" in message
    assert "many.jsonl:39:" in message
    assert "many.jsonl:41:" not in message
    assert "and 10 more" in message
    assert "many.jsonl:41,43,45,47,49,51,53,55,57,59" in message


def test_no_supervised_token_is_refused(refused: Refused, tmp_path: Path) -> None:
    row = {"instruction": "長い答え", "output": "長" * 500}
    file = written(tmp_path / "long.jsonl", json.dumps(row, ensure_ascii=False))
    message = refused("--data.sequence_length", "64", file=file)
    assert "token to train on" in message
    assert "1 rows were dropped" in message


def test_a_long_row_is_an_error_where_that_is_asked_for(refused: Refused, tmp_path: Path) -> None:
    row = {"instruction": "長い" * 500, "output": "はい。"}
    file = written(tmp_path / "long.jsonl", GOOD + json.dumps(row, ensure_ascii=False))
    message = refused("--data.sequence_length", "64", "--data.on_long_row", "error", file=file)
    assert "long.jsonl:2:" in message
    assert "at most 64" in message


def test_a_sequence_longer_than_the_model_takes_is_refused(refused: Refused) -> None:
    message = refused("--data.sequence_length", "4096")
    assert "data.sequence_length" in message
    assert "at most 2048" in message


def test_an_unknown_model_is_named_with_the_known_ones(refused: Refused) -> None:
    message = refused(model="hina-5m")
    assert "hina-5m" in message
    assert "hina-4m" in message


def test_a_model_that_is_not_to_be_had_is_said_to_be_so(refused: Refused) -> None:
    message = refused(model="nobody/no-such-model")
    assert "nobody/no-such-model" in message
    assert "local folder" in message


@pytest.mark.parametrize(
    ("removed", "part"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer"),
        (["model.safetensors"], "no weights"),
        (["config.json"], "no config.json"),
    ],
)
def test_an_incomplete_model_folder_is_named(
    removed: list[str], part: str, refused: Refused, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    for name in removed:
        (folder / name).unlink()
    assert part in refused(model=str(folder))


DAMAGED: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "weights cut": ("model.safetensors", lambda held: held[:-100], "bytes of weights, its header"),
    "header cut": ("model.safetensors", lambda held: held[:60], "its header is cut"),
    "no header": ("model.safetensors", lambda held: b"\x08" + bytes(7) + b"{" * 8, "can't be read"),
    "no weights": ("model.safetensors", lambda held: b"", "its header is cut"),
    "config cut": ("config.json", lambda held: held[:-20], "config.json is damaged"),
    "config a list": ("config.json", lambda held: b"[]", "it is no JSON object"),
    "tokenizer cut": ("tokenizer.json", lambda held: held[:-500], "it ends too early"),
    "a shard missing": (
        "model.safetensors.index.json",
        lambda held: b'{"weight_map": {"a": "model-1.safetensors"}}',
        "lacks model-1.safetensors",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_model_folder_is_told_before_anything_heavy_is_loaded(
    kind: str, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    file, change, part = DAMAGED[kind]
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    held = (folder / file).read_bytes() if (folder / file).exists() else b""
    (folder / file).write_bytes(change(held))
    code = (
        "import sys\nfrom aift_ray.__main__ import main\ntry:\n    main()\nfinally:\n"
        "    print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules], file=sys.stderr)\n"
    )
    argv = ["train", "--model", str(folder), "--train-file", str(rows_file)]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv, "--output-dir", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert part in done.stderr
    assert done.stderr.endswith("[]\n")


def test_pickled_weights_are_refused(refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(model=str(folder))
    assert "pytorch_model.bin" in message
    assert "safe_serialization" in message


def test_an_adapter_is_not_a_base_model(refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_model, folder)
    written(folder / "adapter_config.json", "{}")
    assert "holds an adapter" in refused(model=str(folder))


def test_an_output_folder_in_use_is_refused_with_the_ways_out(
    refused: Refused, tmp_path: Path
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    written(used / "mine.txt", "keep me")
    message = refused("--output-dir", str(used))
    for part in ("is not empty", "--resume latest", "--overwrite"):
        assert part in message
    assert (used / "mine.txt").read_text("utf-8") == "keep me"


def test_an_output_folder_that_is_a_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    file = written(tmp_path / "file", "")
    assert "is a file" in refused("--output-dir", str(file))


def test_a_disk_too_full_for_the_checkpoints_is_seen_before_the_start(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(100, 99, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr("aift_ray.runs.run_dir.shutil.disk_usage", lambda path: usage)
    message = refused()
    assert "GiB are free" in message
    assert "keep_checkpoints" in message


def test_a_checkpoint_that_is_not_there_is_named(refused: Refused) -> None:
    assert "step-9" in refused("--resume", "checkpoints/step-9")


def test_an_unknown_target_module_is_named_with_the_known_ones(refused: Refused) -> None:
    message = refused("--lora.target_modules", "c_attn")
    assert "c_attn" in message
    assert "q_proj" in message


def test_no_training_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(train.run, []) == 2
    assert "--train-file" in capsys.readouterr().err


def test_more_workers_than_processors_are_refused(refused: Refused) -> None:
    message = refused("--num-workers", "999", "--dry-run")
    assert "999 workers need 999 CPU" in message


def test_workers_on_gpus_that_are_not_there_are_refused(refused: Refused) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "GPU" in refused("--ray.use_gpu", "true", "--dry-run")


def test_a_byte_order_mark_is_accepted_and_wrong_rows_can_be_skipped(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "bom.jsonl", "\ufeff" + GOOD + '{"text": ""}\n')
    argv = ["--model", str(tiny_model), "--train-file", str(file), "--dry-run"]
    assert guarded(train.run, argv) == 2
    assert guarded(train.run, [*argv, "--data.on_bad_row", "skip"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 row, " in shown
    assert "1 skipped" in shown
    assert "bom.jsonl:2: skipped" in shown


def test_a_dry_run_shows_plan_preview_and_configuration_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    argv = ["--model", str(tiny_model), "--train-file", str(KEITAI / "train.jsonl")]
    argv += ["--eval-file", str(KEITAI / "eval.jsonl"), "--output-dir", str(folder), "--dry-run"]
    assert guarded(train.run, argv) == 0
    shown = capsys.readouterr().out
    assert not folder.exists()
    for part in ("3,000 rows", "supervised", "steps", "learning_rate: 0.0002", "packing: concat"):
        assert part in shown
    assert shown.count("⟦") >= 3
    assert "です" in shown


def test_errors_travel_between_processes() -> None:
    import pickle

    from aift_ray.errors import DataError, Interrupted, Problem

    error = DataError([Problem("a", "b", "c"), *(Problem(f"rows[{n}]", "b") for n in range(40))])
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, UserError)
    assert (str(again), again.problems) == (str(error), error.problems)
    assert str(error).endswith("... and 21 more, at\n      rows[19-39]")
    assert pickle.loads(pickle.dumps(Interrupted("m", 75))).exit_status == 75


def test_both_commands_are_the_same_and_an_unknown_verb_is_refused() -> None:
    for command in (
        ["-m", "aift_ray.train", "--nonsense"],
        ["-m", "aift_ray", "train", "--nonsense"],
    ):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "--nonsense: there is no such flag" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "aift_ray", "tain"], capture_output=True, check=False
    )
    assert done.returncode == 2


@pytest.mark.parametrize("verb", ["export", "quantize", "serve"])
def test_settings_models_and_adapters_are_told_in_one_message(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = f"a={tmp_path}" if verb == "serve" else str(tmp_path)
    argv = ["--model", "no/such/folder", "--adapter", adapter, "--no-such-flag", "1"]
    assert guarded(VERBS[verb], argv) == 2
    said = capsys.readouterr().err
    for part in (
        "--no-such-flag",
        "model no/such/folder: missing",
        f"{tmp_path} holds no adapter_config.json",
    ):
        assert part in said
