"""The commands in both READMEs are the same, and are what they say they are."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aift_ray.commandline import given, parse
from aift_ray.config import (
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    PlanConfig,
    QuantizeConfig,
    RunConfig,
    ServeConfig,
)
from tests.conftest import ROOT

READMES = ("README.md", "README.ja.md")


def commands(name: str) -> list[str]:
    """Every line of the bash blocks of a README."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_both_readmes_show_the_same_commands() -> None:
    assert commands("README.md") == commands("README.ja.md")


def test_every_command_is_of_a_known_kind() -> None:
    verbs = ("train", "quantize", "export", "evaluate", "tune", "serve", "doctor", "plan")
    kinds = ("make ", "ray start ", "ray job submit ", *(f"aift-ray {verb} " for verb in verbs))
    kinds += ("ray get-auth-token ", "export RAY_AUTH_MODE=token", "ray stop")
    kinds += ("ray up -y cluster/a5000x2.yaml", "docker compose -f docker/compose.yaml up -d")
    assert [line for line in commands("README.md") if not line.startswith(kinds)] == []


TRAINING = [c for c in commands("README.md") if "aift-ray train " in c or "aift_ray.train" in c]
OTHERS = {
    "quantize": QuantizeConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
    "doctor": DoctorConfig,
    "plan": PlanConfig,
}


@pytest.mark.parametrize("verb", OTHERS)
def test_every_flag_of_the_other_verbs_is_one_that_they_take(verb: str) -> None:
    (line,) = [c for c in commands("README.md") if c.startswith(f"aift-ray {verb} ")]
    assert given(shlex.split(line)[2:], OTHERS[verb], verb, "").problems == []


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert code in (ROOT / "README.ja.md").read_text("utf-8")
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "outputs" / "run-1" / "model" / "adapter_config.json").is_file()


@pytest.mark.parametrize("line", TRAINING)
def test_every_flag_is_one_that_the_command_takes(line: str) -> None:
    words = shlex.split(line)
    verb = "aift_ray.train" if "job submit" in line else "train"
    parse(words[words.index(verb) + 1 :], RunConfig, "train", "")


@pytest.mark.parametrize("target", ["demo", "test", "images"])
def test_every_make_target_exists(target: str) -> None:
    assert f"make {target}" in commands("README.md")
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.ray
def test_the_commands_on_the_shipped_rows_run_as_shown(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown = [c for c in commands("README.md") if "examples/rows.jsonl" in c]
    assert len(shown) == 3
    outputs = [
        subprocess.run(
            shlex.split(line),
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
            timeout=180,
        ).stdout
        for line in shown
    ]
    assert "⟦" in outputs[0]
    assert "富士山" in outputs[0]
    assert (tmp_path / "outputs/first/model/adapter_model.safetensors").is_file()
    assert "nothing to do" in outputs[2]


def test_links_lead_somewhere() -> None:
    for name in READMES:
        links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text("utf-8"))
        for link in links:
            assert (ROOT / link).exists(), f"{name}: {link}"
