"""Rows in a bucket are those of the same file on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from aift_ray.config import DataConfig
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.readers.bucket_files import brought
from aift_ray.data.token_cache import prepare
from aift_ray.errors import DataError
from aift_ray.models import hub
from tests.conftest import SHIPPED, write_rows


@pytest.fixture
def place(bucket: str, rows_file: Path) -> str:
    """A URI of a folder with rows, a second file of them, and one that holds none."""
    files, path = fs.FileSystem.from_uri(bucket)
    second = write_rows(rows_file.with_name("a-second.jsonl"), 5, 100)
    for source in (rows_file, second):
        with files.open_output_stream(f"{path}/{source.name}") as stream:
            stream.write(source.read_bytes())
    with files.open_output_stream(f"{path}/picture.png") as stream:
        stream.write(b"x")
    return bucket


def test_a_folder_in_a_bucket_gives_the_cache_of_the_same_files_here(
    place: str, rows_file: Path, tmp_path: Path
) -> None:
    encoder = PromptEncoder(hub.load_tokenizer(str(SHIPPED)))
    here = [str(rows_file.with_name(name)) for name in ("a-second.jsonl", "train.jsonl")]
    made = [
        prepare(DataConfig(train_files=files, cache_dir=str(tmp_path / name)), encoder, 128)
        for name, files in (("there", [place]), ("here", here))
    ]
    there, local = (each.rows("train") for each in made)
    assert len(there) == len(local) == 29
    for index in range(29):
        assert there.row(index)[0].tolist() == local.row(index)[0].tolist()


def test_a_file_is_fetched_once(place: str, tmp_path: Path) -> None:
    (first, second) = brought([place], tmp_path)
    before = Path(first).stat().st_mtime_ns
    assert brought([place], tmp_path) == [first, second]
    assert Path(first).stat().st_mtime_ns == before
    assert [Path(name).name for name in (first, second)] == ["a-second.jsonl", "train.jsonl"]
    assert brought(["plain.jsonl"], tmp_path) == ["plain.jsonl"]


def test_what_is_not_there_is_named_without_its_key(bucket: str, tmp_path: Path) -> None:
    missing = bucket.replace("runs/lab", "runs/nothing")
    with pytest.raises(DataError) as error:
        brought([missing, missing], tmp_path)
    assert len(error.value.problems) == 2
    assert "s3://runs/nothing: names no file of rows" in str(error.value)
    assert "secret" not in str(error.value)
