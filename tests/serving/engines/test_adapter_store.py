"""Copies of adapters: by content, so that no cache takes one for another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aift_ray.errors import ModelError
from aift_ray.serving.engines.adapter_store import KeptAdapters
from tests.conftest import SHIPPED
from tests.serving.conftest import write_adapter


@pytest.fixture
def kept() -> Iterator[KeptAdapters]:
    made = KeptAdapters(str(SHIPPED))
    yield made
    made.close()


def test_other_content_under_one_name_is_another_adapter(
    kept: KeptAdapters, adapters: dict[str, Path], tmp_path: Path
) -> None:
    one, other = adapters.values()
    folder = tmp_path / "adapter"
    shutil.copytree(one, folder)
    first = kept.keep("a", str(folder))
    held = (first.folder / "adapter_model.safetensors").read_bytes()
    shutil.copytree(other, folder, dirs_exist_ok=True)
    # what is on its way keeps what it began with
    assert (first.folder / "adapter_model.safetensors").read_bytes() == held
    assert kept.drop("a") == first.number
    second = kept.keep("a", str(folder))
    assert second.digest != first.digest
    assert second.number != first.number
    assert second.folder != first.folder
    kept.drop("a")
    shutil.copytree(one, folder, dirs_exist_ok=True)
    again = kept.keep("a", str(folder))
    assert (again.digest, again.number) == (first.digest, first.number)


def test_an_adapter_of_two_names_is_kept_until_both_are_gone(
    kept: KeptAdapters, adapters: dict[str, Path]
) -> None:
    folder = str(adapters["b"])
    one, other = kept.keep("a", folder), kept.keep("b", folder)
    assert one == other
    assert kept.drop("a") is None
    assert other.folder.is_dir()
    assert kept.drop("b") == other.number
    assert not other.folder.exists()


def test_an_adapter_of_another_shape_is_refused(
    kept: KeptAdapters, tiny_model: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "other", 0, tiny_model)
    with pytest.raises(ModelError, match="the model has"):
        kept.keep("other", str(folder))
