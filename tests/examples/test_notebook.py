"""The notebook runs from its first cell to its last, and is committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "examples" / "finetune.ipynb"


def printed(cell: Any) -> str:
    """What a cell printed."""
    return "".join(part["text"] for part in cell.outputs if part.output_type == "stream")


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_it_runs_twice_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    resources = {"metadata": {"path": str(tmp_path)}}
    for _ in range(2):
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    cells = {cell.id: cell for cell in notebook.cells}
    lines = (tmp_path / "outputs" / "notebook" / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 2
    assert "step 40/40" in printed(cells["train"])
    assert "\x1b[" not in printed(cells["train"]), "no codes of a terminal"
    assert any("image/png" in part.get("data", {}) for part in cells["curve"].outputs)
    assert (tmp_path / "outputs" / "notebook" / "model" / "adapter_config.json").is_file()
    (ratio,) = (part for part in cells["quantize"].outputs if part.output_type == "execute_result")
    assert "memory_mb" in ratio["data"]["text/plain"]
