"""How fast are rows tokenized, against `datasets.map` with the same tokenizer on the same rows?

python benchmarks/tokenizing.py MODEL ... [--rounds 5] [--rows 6000]: makes the token cache of
instruction rows with `data.prepare local`, and `datasets.map(batched=True, num_proc=2)` with the
same chat template, the same ids and the same labels, which are compared; in turn, each in a process
of its own, timed inside it without imports. Then `data.prepare ray` with one and with two CPUs: its
time has the start of the actors (1 s of a CPU each, 5 with a vocabulary of 262,144), so that ratio
needs rows enough (--rows 40000), and cores for the actors beside the one that reads and writes.
Writes results/tokenizing.json. `datasets` is in the extra `bench`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT.parent / "shared" / "data" / "instruction" / "dolly_ja.train.jsonl"
WAYS = ("here", "datasets", "ray-1", "ray-2")


def encoder_of(model: str) -> Any:
    """Makes the prompts; a tokenizer without a chat template has one from here on."""
    from aift_ray.data.prompts.prompt_encoder import PromptEncoder
    from aift_ray.models import hub

    return PromptEncoder(hub.load_tokenizer(model), extra_stop_ids=hub.stop_ids(model))


def by_us(model: str, rows: str, folder: str, way: str) -> tuple[float, float, Any]:
    """Seconds to the finished cache, files read and checked in them; ids and labels."""
    import ray

    from aift_ray.config import DataConfig
    from aift_ray.data import token_cache
    from aift_ray.ray_backend.ray_tokenize import encode_on_cluster

    encoder = encoder_of(model)
    if way.startswith("ray"):
        ray.init("local", num_cpus=int(way[-1]), include_dashboard=False, log_to_driver=False)
        # what Ray imports in this process is there before the time counts
        warm = Path(folder, "warm.jsonl")
        lines = Path(rows).read_text("utf-8").splitlines(keepends=True)
        warm.write_text("".join(lines[:1100]), "utf-8")
        data = DataConfig(train_files=[str(warm)], cache_dir=folder)
        token_cache.prepare(data, encoder, 1 << 20, encode_on_cluster)
    data = DataConfig(train_files=[rows], cache_dir=folder)
    began, used = time.perf_counter(), cpu_seconds()
    prepared = token_cache.prepare(data, encoder, 1 << 20, encode_on_cluster)
    seconds, used = time.perf_counter() - began, cpu_seconds() - used
    token_rows = prepared.rows("train")
    pairs = (token_rows.row(index) for index in range(len(token_rows)))
    return seconds, used, ((ids.tolist(), flags.tolist()) for ids, flags in pairs)


def by_datasets(model: str, rows: str, folder: str) -> tuple[float, float, Any]:
    """Seconds of map alone, to its finished cache file."""
    import datasets

    datasets.disable_progress_bars()
    encoder = encoder_of(model)
    tokenizer, stops = encoder.tokenizer, set(encoder.stop_ids)
    from aift_ray.data.prompts.alpaca import before_input

    joint = before_input(tokenizer.chat_template)
    table = datasets.load_dataset("json", data_files=rows, split="train", cache_dir=folder)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        given = batch.get("input") or [""] * len(batch["output"])
        chats = []
        for instruction, more, output in zip(
            batch["instruction"], given, batch["output"], strict=True
        ):
            question = instruction + (joint + more if more else "")
            chats.append([{"role": "user", "content": question},
                          {"role": "assistant", "content": output}])  # fmt: skip
        template = tokenizer.apply_chat_template
        full = [template(chat, tokenize=False) for chat in chats]
        asked = [template(c[:1], tokenize=False, add_generation_prompt=True) for c in chats]
        ids = tokenizer(full, add_special_tokens=False)["input_ids"]
        before = tokenizer(asked, add_special_tokens=False)["input_ids"]
        labels = []
        for row, prompt in zip(ids, before, strict=True):
            last = max(at for at, token in enumerate(row) if token in stops)
            labels.append([len(prompt) <= at <= last for at in range(len(row))])
        return {"ids": ids, "supervised": labels}

    began, used = time.perf_counter(), cpu_seconds()
    # named, so that the tokenizer is not hashed, which takes longer than to tokenize
    made = table.map(
        tokenize,
        batched=True,
        num_proc=2,
        remove_columns=table.column_names,
        new_fingerprint="measured",
    )
    seconds, used = time.perf_counter() - began, cpu_seconds() - used
    return seconds, used, ((row["ids"], list(map(int, row["supervised"]))) for row in made)


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended; Ray's are not."""
    times = os.times()
    return sum(times[:4])


def measure(model: str, rows: str, way: str) -> dict[str, Any]:
    """One way in this process: its seconds, and a digest of ids and labels."""
    with tempfile.TemporaryDirectory() as folder:
        made = by_datasets(model, rows, folder) if way == "datasets" else None
        seconds, cpu, found = made or by_us(model, rows, folder, way)
        state = hashlib.sha256()
        for row in found:
            state.update(json.dumps(row).encode())
    return {"seconds": seconds, "cpu": cpu, "digest": state.hexdigest()}


def alternated(model: str, rows: str, rounds: int, ways: list[str]) -> dict[str, Any]:
    """Each way in turn, `rounds` times; the results must be equal."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    # for the processes of map; each of them tokenizes on one thread, as ours do
    environment |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    digests = set()
    for turn in range(rounds):
        for way in ways if turn % 2 == 0 else ways[::-1]:
            argv = [sys.executable, __file__, model, "--rows-file", rows, "--way", way]
            done = subprocess.run(argv, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found = json.loads(done.stdout.splitlines()[-1])
            seconds[way].append(found["seconds"])
            cpu[way].append(found["cpu"])
            digests.add(found["digest"])
            shown = f"{found['seconds']:.2f} s, {found['cpu']:.2f} of a CPU"
            print(Path(model).name, turn, way, shown, flush=True)
    if len(digests) != 1:
        raise SystemExit("the ids or labels differ")
    return {
        "model": Path(model).name,
        "seconds": seconds,
        "cpu": cpu,
        "bytes": Path(rows).stat().st_size,
    }


def ratios(slow: list[float], fast: list[float]) -> str:
    """Median, least and most of the ratios of rounds."""
    found = [one / other for one, other in zip(slow, fast, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--train-file", type=Path, default=ROWS, help="rows as JSON Lines")
    parser.add_argument("--rows-file", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.models[0], given.rows_file, given.way)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        lines = given.train_file.read_text("utf-8").splitlines(keepends=True)
        # more rows than there are repeat
        number = given.rows
        rows.write_text("".join(lines[n % len(lines)] for n in range(number)), "utf-8")
        for model in given.models:
            results.append(alternated(model, str(rows), given.rounds, given.ways))
    for result in results:
        seconds = result["seconds"]
        megabytes = result["bytes"] / 1e6
        print(result["model"])
        for way, times in seconds.items():
            print(f"  {way}: {megabytes / statistics.median(times):.2f} MB/s (median)")
        for slow, fast in (("datasets", "here"), ("ray-1", "ray-2")):
            if slow in seconds and fast in seconds:
                print(f"  {slow} / {fast}: {ratios(seconds[slow], seconds[fast])}")
        if "datasets" in seconds and "here" in seconds:
            used = ratios(result["cpu"]["datasets"], result["cpu"]["here"])
            print(f"  datasets / here, seconds of a CPU: {used}")
    file = ROOT / "benchmarks" / "results" / "tokenizing.json"
    file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
