"""What docs/quantization.md shows runs as shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from aift_ray.commandline import parse
from aift_ray.config import QuantizeConfig
from tests.conftest import ROOT, SHIPPED

PAGE = (ROOT / "docs" / "quantization.md").read_text("utf-8")
COMMANDS = re.findall(r"^    aift-ray quantize (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one_that_is_taken(line: str) -> None:
    assert parse(shlex.split(line), QuantizeConfig, "quantize", "").config.output_dir


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(SHIPPED)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    values: dict[str, Any] = {}
    exec(code, values)
    assert (tmp_path / "outputs" / "nf4" / "chat_template.jinja").is_file()
    ratio, moved = capsys.readouterr().out.split()
    assert float(ratio) == pytest.approx(0.49, abs=0.01)
    assert float(moved) > 0
