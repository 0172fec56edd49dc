"""A file written tensor by tensor reads back; with a full disk nobody is left waiting."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from aift_ray.engine.checkpoint import tensor_files


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Of several shapes, one of them empty and one a view with gaps."""
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(5, 3),
        "b": torch.randn(7).bfloat16(),
        "nothing": torch.empty(0, 4),
        "turned": torch.randn(4, 6).T,
    }


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_file_reads_back(
    dtype: torch.dtype | None, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    tensor_files.GatheredTensors({"x": tensors}).write("x", tmp_path / "x.safetensors", dtype)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor.to(dtype or tensor.dtype))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_disk_that_is_full_is_told_after_all_has_been_gathered(
    tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = []

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        gathered.append(tensor)
        return tensor

    monkeypatch.setattr(tensor_files, "whole", whole)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    parts = tensor_files.GatheredTensors({"weights": tensors, "moments": tensors})
    with pytest.raises(OSError, match="No space left"):
        parts.write("weights", full)
    parts.finish()
    assert len(gathered) == 2 * len(tensors), "the rest is gathered too"
