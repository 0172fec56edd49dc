"""How long does a large set take to tokenize, in which memory, here and on a Ray cluster?

python benchmarks/large_data.py FOLDER --megabytes 1000: writes synthetic text rows into FOLDER,
makes the token cache of them with `data.prepare` local and ray, compares the caches, and writes
results/large_data.json.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from measuring import RESULTS, ROOT, table, write

WORDS = ("朝", "昼", "山", "海", "学校", "会社", "電車", "図書館", "料理", "音楽", "歴史", "科学")
ENDS = ("を見ました。", "へ行きます。", "について話しましょう。", "が好きです。", "は遠い。")


def rows(path: Path, megabytes: int) -> None:
    """Text rows of some hundred characters; the same ones again for the same size."""
    source, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 2**20:
            parts = (source.choice(WORDS) + source.choice(ENDS) for _ in range(40))
            line = json.dumps({"text": "".join(parts)}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())


class Memory:
    """Resident memory of this process and of its children, once a second, in MiB."""

    def __init__(self) -> None:
        self.own: list[float] = []
        self.children: list[float] = []

    def watch(self, over: threading.Event) -> None:
        """Look until it is over."""
        me = psutil.Process()
        while not over.wait(1.0):
            total = 0
            for child in me.children(recursive=True):
                try:
                    total += child.memory_full_info().uss
                except psutil.Error:
                    continue
            self.own.append(me.memory_info().rss / 2**20)
            self.children.append(total / 2**20)

    def during(self, work: Callable[[], Any]) -> float:
        """Watch a call; its seconds."""
        over = threading.Event()
        thread = threading.Thread(target=self.watch, args=(over,), daemon=True)
        thread.start()
        began = time.monotonic()
        work()
        seconds = time.monotonic() - began
        over.set()
        thread.join()
        return seconds


def tenths(values: list[float]) -> list[int]:
    """The largest value of each tenth of the time: what grows shows here."""
    parts = [values[len(values) * n // 10 : len(values) * (n + 1) // 10] for n in range(10)]
    return [round(max(part)) for part in parts if part]


def one(how: str, source: Path, cache_dir: Path) -> dict[str, Any]:
    """Make the cache of one file in this process."""
    import ray

    from aift_ray.config import DataConfig
    from aift_ray.data import token_cache
    from aift_ray.data.prompts.prompt_encoder import PromptEncoder
    from aift_ray.models import hub
    from aift_ray.ray_backend.ray_tokenize import encode_of

    encoder = PromptEncoder(hub.load_tokenizer(hub.resolve("hina-4m")))
    data = DataConfig(train_files=[str(source)], cache_dir=str(cache_dir), prepare=how)
    if how == "ray":
        ray.init("local", include_dashboard=False, log_to_driver=False)
    made: list[Any] = []
    memory = Memory()

    def work() -> None:
        made.append(token_cache.prepare(data, encoder, 512, encode_of(data)))

    seconds = memory.during(work)
    return {
        "prepare": how,
        "seconds": round(seconds, 1),
        "megabytes_per_second": round(source.stat().st_size / 2**20 / seconds, 2),
        "tokens": made[0].train.tokens,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mib_of_children": round(max(memory.children, default=0)),
        "mib_by_tenth": tenths(memory.own),
        "mib_of_children_by_tenth": tenths(memory.children),
    }


def main() -> None:
    """Write the rows, make both caches in processes of their own, compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--one", choices=["local", "ray"], help="used by the script itself")
    given = parser.parse_args()
    source = given.folder / "rows.jsonl"
    if given.one:
        print(json.dumps(one(given.one, source, given.folder / given.one)))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    rows(source, given.megabytes)
    found = []
    for how in ("local", "ray"):
        command = [sys.executable, __file__, str(given.folder), "--one", how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    here, there = (sorted((given.folder / how).rglob("*.arrow")) for how in ("local", "ray"))
    same = [filecmp.cmp(a, b, shallow=False) for a, b in zip(here, there, strict=True)]
    size = source.stat().st_size / 2**20
    result = {"rows_mib": round(size), "runs": found, "same_bytes": all(same) and len(same) == 2}
    write(RESULTS / "large_data.json", result)
    keys = [key for key in found[0] if not key.endswith("tenth")]
    print(table(keys, [[str(run[key]) for key in keys] for run in found]))


if __name__ == "__main__":
    main()
