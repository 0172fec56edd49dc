"""Tokenizing on the cluster gives the cache of tokenizing here, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SHIPPED, write_rows

pytestmark = pytest.mark.ray

PROGRAM = """
import json, sys
import ray
from aift_ray.config import DataConfig
from aift_ray.data import token_cache
from aift_ray.data.tokenize import encode_here
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.ray_backend import ray_tokenize
from aift_ray.models import hub

rows, place, shipped = sys.argv[1:]
encoder = PromptEncoder(hub.load_tokenizer(shipped))
ray_tokenize._BATCH = ray_tokenize.FIRST = 16
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
for name, encode in (("here", encode_here), ("there", ray_tokenize.encode_on_cluster)):
    data = DataConfig(train_files=[rows], cache_dir=f"{place}/{name}", on_bad_row="skip")
    token_cache.prepare(data, encoder, 64, encode)
"""


def test_the_cache_is_the_same_to_the_byte(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 300)
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"instruction": "答えがない"}\n')
        file.write(json.dumps({"text": "長い文。" * 200}, ensure_ascii=False) + "\n")
    command = [sys.executable, "-c", PROGRAM, str(rows), str(tmp_path), str(SHIPPED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    here, there = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*")
            if p.is_file()
        }
        for n in ("here", "there")
    )
    assert {path.name for path in here} >= {"train.arrow", "eval.arrow"}
    assert here == there
