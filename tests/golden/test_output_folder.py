"""What a run leaves in its output folder, and that a checkpoint made earlier is resumed exactly.

The command resumes a stored checkpoint and ends. Its losses, its files, the keys of its
configuration, metrics and summary, and the names of the saved tensors are compared with stored
ones. Files and tensors are the stored ones exactly; keys may be added, and none goes away. After an
intended change: `python -m tests.golden.test_output_folder` (the checkpoint stays as it is, since
old checkpoints are resumed; `--checkpoint` makes that anew, too).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from tests.conftest import ROOT, write_rows
from tests.golden.test_losses import make_model
from tests.helpers.command import Command, curve_of

STORED = Path(__file__).with_name("output_folder.json")
CHECKPOINT = Path(__file__).with_name("step-2")
SETTINGS: dict[str, Any] = {
    "model": "model",
    "method": "lora",
    "train-file": "train.jsonl",
    "eval-file": "eval.jsonl",
    "output-dir": "run",
    "num-workers": 1,
    "lora.r": 2,
    "lora.lora_dropout": 0,
    "data.sequence_length": 128,
    "training.batch_size": 4,
    "training.gradient_accumulation_steps": 1,
    "training.warmup_steps": 0,
    "training.logging_steps": 1,
    "training.learning_rate": 1e-3,
    "training.adam_epsilon": 1e-4,
    "training.precision": "fp32",
    "training.max_steps": 4,
    "training.save_steps": 2,
    "training.eval_steps": 2,
    "training.exact_match_rows": 2,
}


def run(folder: Path, **more: Any) -> Path:
    """The output folder of the command, in `folder`."""
    make_model(folder / "model")
    write_rows(folder / "train.jsonl")
    write_rows(folder / "eval.jsonl", 6, 100)
    flags = [x for name, value in (SETTINGS | more).items() for x in (f"--{name}", str(value))]
    others = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    cache = {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        command = Command(flags, others | cache | {"PYTHONPATH": str(ROOT)})
        status, output = command.done()
    finally:
        os.chdir(before)
    assert status == 0, output
    return folder / "run"


def resumed(folder: Path) -> Path:
    """The output folder of a run that goes on from the stored checkpoint."""
    shutil.copytree(CHECKPOINT, folder / "run" / "checkpoints" / CHECKPOINT.name)
    return run(folder, resume="latest")


def dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of settings; those of the sections are one level deep."""
    return [
        name
        for key, value in values.items()
        for name in (dotted(value, f"{key}.") if isinstance(value, dict) else [prefix + key])
    ]


def outline(folder: Path) -> dict[str, Any]:
    """The names and keys in an output folder."""
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    newest = folder / "checkpoints" / "step-4"
    tensors = {}
    for name in ("adapter_model.safetensors", "optimizer.moments"):
        with safe_open(newest / name, "pt") as file:
            tensors[name] = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return {
        "files": [re.sub(r"tfevents\..*", "tfevents", name) for name in files],
        "tensors": tensors,
        "config": sorted(dotted(config)),
        "metrics": sorted({", ".join(line) for line in lines}),
        "summary": sorted(json.loads((folder / "summary.json").read_text("utf-8"))),
        "state": sorted(json.loads((newest / "state.json").read_text("utf-8"))),
        "curve": curve_of(folder),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outline(resumed(tmp_path_factory.mktemp("golden")))


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(STORED.read_text("utf-8"))
    return kept


def test_steps_after_a_stored_checkpoint_are_those_of_the_whole_run(
    found: dict[str, Any], stored: dict[str, Any]
) -> None:
    steps = [x for step in found["curve"] for x in step]
    assert steps == pytest.approx([x for step in stored["whole"][2:] for x in step], rel=1e-5)


@pytest.mark.parametrize("kind", ["files", "tensors"])
def test_names_are_the_stored_ones(
    kind: str, found: dict[str, Any], stored: dict[str, Any]
) -> None:
    assert found[kind] == stored[kind]


@pytest.mark.parametrize("kind", ["config", "metrics", "summary", "state"])
def test_no_stored_key_is_gone(kind: str, found: dict[str, Any], stored: dict[str, Any]) -> None:
    if kind != "metrics":
        assert set(stored[kind]) <= set(found[kind])
        return
    lines = [set(line.split(", ")) for line in found[kind]]
    for line in stored[kind]:
        assert any(set(line.split(", ")) <= keys for keys in lines), line


def store_checkpoint(folder: Path) -> list[tuple[float, float]]:
    """Make the stored checkpoint anew, without the tokenizer; the curve of the whole run."""
    whole = run(folder)
    shutil.rmtree(CHECKPOINT, ignore_errors=True)
    shutil.copytree(whole / "checkpoints" / CHECKPOINT.name, CHECKPOINT)
    (CHECKPOINT / "tokenizer.json").unlink()
    manifest = json.loads((CHECKPOINT / "manifest.json").read_text("utf-8"))
    del manifest["tokenizer.json"]
    # the folder in which it was made is not stored
    for name in ("aift_ray.json", "adapter_config.json"):
        text = (CHECKPOINT / name).read_text("utf-8").replace(f"{folder}/", "")
        (CHECKPOINT / name).write_text(text, "utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        manifest[name] = {"bytes": len(text.encode()), "sha256": digest}
    (CHECKPOINT / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")
    return curve_of(whole)


def main() -> None:
    """Store the outline anew, and the checkpoint where that is asked for."""
    with tempfile.TemporaryDirectory() as name:
        if "--checkpoint" in sys.argv:
            whole = store_checkpoint(Path(name) / "whole")
        else:
            whole = json.loads(STORED.read_text("utf-8"))["whole"]
        kept = outline(resumed(Path(name) / "resumed")) | {"whole": whole}
    del kept["curve"]
    STORED.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
