"""Faster ways to tokenize give what the plain one gives, to the byte."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from aift_ray.config import DataConfig
from aift_ray.data import token_cache, tokenize
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.prompts.safe_tokenizer import SafeTokenizer
from aift_ray.data.tokenize import encode_here, encode_in_threads
from tests.conftest import SHIPPED, write_rows
from tests.helpers import chat_templates as families

PIECES = [
    "日本",
    "の首都",
    " ",
    "\n",
    "\n\n",
    "  x",
    "は",
    "assistant\n",
    "。",
    "a",
    "\u3000",
    "<",
    "\t",
]


def _check(safe: SafeTokenizer) -> int:
    """How many random texts were encoded at once; each as by parts."""
    source, names, at_once = random.Random(0), list(safe.names.values()), 0
    for _ in range(300):
        text, borders = "", list[int]()
        for _ in range(source.randint(1, 5)):
            text += source.choice([*names, ""])
            text += "".join(source.choices(PIECES, k=source.randint(0, 4)))
            borders.append(len(text))
            text += "".join(source.choices(PIECES, k=source.randint(0, 4)))
        known = safe._controls(text, borders)
        whole = safe._grown_whole(text, borders, *known, safe.encode(text)) if known else None
        by_parts = safe._grown_by_parts(text, borders)
        at_once += whole is not None
        if whole is not None:
            assert not by_parts.piecewise
            assert (whole.ids, whole.counts) == (by_parts.ids, by_parts.counts), repr(text)
        grown = safe.grow(text, borders)
        assert (grown.ids, grown.counts) == (by_parts.ids, by_parts.counts)
    return at_once


def test_a_text_encoded_at_once_is_as_by_parts(bpe: Tokenizer) -> None:
    assert _check(families.safe(bpe)) > 50
    shipped = AutoTokenizer.from_pretrained(SHIPPED).backend_tokenizer
    assert _check(families.safe(shipped)) > 50


def test_so_with_blanks_as_signs(metaspace: Tokenizer) -> None:
    _check(families.safe(metaspace))


def test_threads_give_the_cache_of_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "FIRST", 16)
    monkeypatch.setattr(tokenize, "_BATCH", 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    rows = write_rows(tmp_path / "rows.jsonl", 300)
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"instruction": "答えがない"}\n')
        file.write(json.dumps({"text": "長い文。" * 200}, ensure_ascii=False) + "\n")
    made = {}
    for encode in (encode_here, encode_in_threads):
        encoder = PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))
        folder = str(tmp_path / encode.__name__)
        data = DataConfig(train_files=[str(rows)], cache_dir=folder, on_bad_row="skip")
        prepared = token_cache.prepare(data, encoder, 64, encode)
        files = sorted(prepared.folder.iterdir())
        made[encode.__name__] = [(file.name, file.read_bytes()) for file in files]
    assert made["encode_here"] == made["encode_in_threads"]


def test_the_name_of_a_cache_does_not_depend_on_earlier_calls_of_the_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    encoder = PromptEncoder(tokenizer)
    before = encoder.digest()
    tokenizer(["あ", "いう"], padding=True, truncation=True, max_length=8, pad_to_multiple_of=4)
    assert encoder.digest() == before
    tokenizer.add_tokens(["窶"])
    assert encoder.digest() != before
