"""Token ids are made once, by content, and two runs at once make one cache."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from aift_ray.config import DataConfig
from aift_ray.data import token_cache, token_rows
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from tests.conftest import SHIPPED, write_rows


def encoder() -> PromptEncoder:
    return PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))


def config(tmp_path: Path, file: Path, **values: Any) -> DataConfig:
    return DataConfig(train_files=[str(file)], cache_dir=str(tmp_path / "cache"), **values)


def test_rows_come_back_as_they_were_encoded(rows_file: Path, tmp_path: Path) -> None:
    from aift_ray.data.examples import Example
    from aift_ray.data.readers.sources import read_examples

    made = encoder()
    prepared = token_cache.prepare(config(tmp_path, rows_file), made, 128)
    rows = prepared.rows("train")
    examples = [e for e in read_examples([rows_file]) if isinstance(e, Example)]
    assert len(rows) == len(examples) == prepared.train.rows
    for index, example in enumerate(examples):
        ids, flags = rows.row(index)
        encoded = made.encode(example)
        assert ids.tolist() == encoded.ids
        assert flags.astype(bool).tolist() == encoded.supervised
        assert rows.place(index) == f"{rows_file}:{example.line}"
        assert rows.lengths[index] == len(encoded)
        assert rows.num_label_tokens[index] == sum(encoded.supervised[1:])


def test_more_rows_than_a_batch_of_the_file_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_rows, "_BATCH_ROWS", 7)
    file = write_rows(tmp_path / "many.jsonl", 24)
    rows = token_cache.prepare(config(tmp_path, file), encoder(), 128).rows("train")
    assert [rows.place(i).rsplit(":", 1)[1] for i in range(24)] == [str(i + 1) for i in range(24)]


def test_a_cache_is_made_once_and_again_when_anything_that_counts_changes(
    rows_file: Path, tmp_path: Path
) -> None:
    first = token_cache.prepare(config(tmp_path, rows_file), encoder(), 128)
    stamp = (first.folder / "train.arrow").stat().st_mtime_ns
    assert token_cache.prepare(config(tmp_path, rows_file), encoder(), 128).folder == first.folder
    assert (first.folder / "train.arrow").stat().st_mtime_ns == stamp
    others = {
        token_cache.prepare(config(tmp_path, rows_file), encoder(), 64).folder,
        token_cache.prepare(
            config(tmp_path, rows_file), PromptEncoder(encoder().tokenizer, "短く。"), 128
        ).folder,
    }
    changed = encoder()
    changed.tokenizer.chat_template += "{# another #}"
    others.add(
        token_cache.prepare(
            config(tmp_path, rows_file), PromptEncoder(changed.tokenizer), 128
        ).folder
    )
    write_rows(rows_file, 23)
    others.add(token_cache.prepare(config(tmp_path, rows_file), encoder(), 128).folder)
    assert len(others) == 4
    assert first.folder not in others


def _prepare(arguments: tuple[Path, Path]) -> str:
    tmp_path, file = arguments
    return str(token_cache.prepare(config(tmp_path, file), encoder(), 128).folder)


def test_two_processes_at_once_make_one_cache(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", 300)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(_prepare, [(tmp_path, file)] * 4, chunksize=1)
    assert len(set(folders)) == 1
    assert os.listdir(tmp_path / "cache") == [Path(folders[0]).name], "nothing half-made is left"
    assert len(token_cache.load(Path(folders[0])).rows("train")) == 300


def test_long_rows_are_counted_and_documents_split(tmp_path: Path) -> None:
    import json

    rows = [
        {"instruction": "長い" * 300, "output": "はい。"},
        {"instruction": "短い", "output": "長" * 900},
        {"text": "吾輩は猫である。" * 100},
    ]
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), "utf-8")
    prepared = token_cache.prepare(config(tmp_path, file), encoder(), 64)
    counts = prepared.train
    assert (counts.truncated_rows, counts.dropped_rows, counts.split_documents) == (1, 1, 1)
    assert "long.jsonl:2: dropped" in counts.notes[0]
    assert prepared.rows("train").lengths.max() <= 64
    tokenizer = encoder().tokenizer
    pieces = [prepared.rows("train").row(i)[0] for i in range(1, counts.rows)]
    text = tokenizer.decode(np.concatenate(pieces).tolist(), skip_special_tokens=True)
    assert text == rows[2]["text"], "nothing of a document is lost"
    kept = tokenizer.decode(prepared.rows("train").row(0)[0].tolist())
    assert kept.endswith("はい。<|im_end|>\n") or "はい。<|im_end|>" in kept


def test_repeated_and_overlapping_rows_are_warned_of(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", 5)
    train.write_text(train.read_text("utf-8") * 2, "utf-8")
    held_out = write_rows(tmp_path / "eval.jsonl", 2)
    settings = config(tmp_path, train, eval_files=[str(held_out)])
    warnings = " ".join(token_cache.prepare(settings, encoder(), 128).warnings)
    assert "5" in warnings
    assert "eval" in warnings
