"""Load on a server over HTTP: time to first token, tokens a second, errors, memory.

    python benchmarks/serve_load.py MODEL [--rounds N] [--tokens N] [--engine vllm] [--against vllm]
    python benchmarks/serve_load.py MODEL --pairs N [--engine vllm]
    python benchmarks/serve_load.py MODEL --before CHECKOUT
    python benchmarks/serve_load.py MODEL --minutes M [--tokens N]

`aift-ray serve` and `transformers serve --continuous-batching`, or with `--engine vllm` vLLM's own
server, which `--against vllm` takes for the engine transformers too (both from the Python that runs
this, see `make vllm-env`), asked in turn in one run by OpenAI's client: streamed greedy completions
of Japanese prompts, 1, 4 and 16 at once. With `--before` this project at another commit takes the
other's place: CHECKOUT is a folder that `git worktree add` made. With `--pairs` one request at a
time to each, and how much later our first token comes. With `--minutes` our server alone under a
mixed load: streams that are left, chats, several answers, schemas, prompts that are too long.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

sys.path.insert(0, str(Path(__file__).parent))
import measuring

from aift_ray.config.section import memory_bytes

TOPICS = ("春の京都", "江戸時代の商人", "味噌汁の作り方", "台風の備え", "図書館", "夏休みの思い出")
FORMS = ("{}について、", "昔々、{}のことを語る人が", "次の文章は{}に関するものです。\n", "{}とは")
TYPES = {"fp32": "float32", "bf16": "bfloat16"}
# of both servers on vLLM
CONTEXT, CACHE = 2048, "2GiB"
SCHEMA = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 4, "maxItems": 9}


def prompts(number: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [
        f"第{seed}の{index}話。" + chosen.choice(FORMS).format(chosen.choice(TOPICS))
        for index in range(number)
    ]


@dataclass
class Contestant:
    """A server in a process of its own."""

    name: str
    command: list[str]
    model: str
    options: dict[str, Any]
    health: str
    told_ready: str
    port: int
    log: Path
    process: Any = None
    ready_s: float = 0.0
    key: str = "none"
    # the folder of this project whose modules it loads
    checkout: Path = measuring.ROOT

    def start(self) -> None:
        begun = time.monotonic()
        environment = os.environ | {"XDG_STATE_HOME": str(self.log.parent / self.name)}
        environment["PYTHONPATH"] = str(self.checkout)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, cwd=self.checkout
            )
        while not self.healthy():
            assert self.process.poll() is None, self.log.read_text("utf-8")
            assert time.monotonic() < begun + 300, self.log.read_text("utf-8")[-2000:]
            time.sleep(0.2)
        told = self.log.read_text("utf-8")
        if "shown this once: " in told:
            self.key = told.split("shown this once: ")[1].split()[0]
        self.ready_s = time.monotonic() - begun

    def healthy(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}{self.health}"
            return httpx.get(url).status_code == 200 and self.told_ready in self.log.read_text()
        except httpx.HTTPError:
            return False

    def client(self) -> openai.AsyncOpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.AsyncOpenAI(api_key=self.key, base_url=url, max_retries=0, timeout=300)

    def memory_mb(self) -> float:
        """Of the process that holds the model: the largest of the family."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        sizes = [each.memory_info().rss for each in family if each.is_running()]
        return round(max([*sizes, psutil.Process(self.process.pid).memory_info().rss]) / 1e6, 1)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()


@dataclass
class Tally:
    """What a burst of requests came to."""

    first_s: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)


async def stream(who: Contestant, client: Any, prompt: str, tokens: int, tally: Tally) -> None:
    begun, seen = time.perf_counter(), False
    try:
        told = await client.completions.create(
            model=who.model, prompt=prompt, max_tokens=tokens, stream=True, **who.options
        )
        async for chunk in told:
            if chunk.choices and not seen and chunk.choices[0].text:
                tally.first_s.append(time.perf_counter() - begun)
                seen = True
            if chunk.usage:
                tally.tokens += chunk.usage.completion_tokens
    except openai.OpenAIError as error:
        tally.errors.append(f"{type(error).__name__}: {error}"[:200])


async def burst(who: Contestant, at_once: int, each: int, tokens: int, seed: int) -> Any:
    """`at_once` clients that ask `each` times one after the other."""
    tally = Tally()
    asked = prompts(at_once * each, seed)
    async with who.client() as client:

        async def one(index: int) -> None:
            for prompt in asked[index * each : (index + 1) * each]:
                await stream(who, client, prompt, tokens, tally)

        begun = time.perf_counter()
        await asyncio.gather(*(one(index) for index in range(at_once)))
    firsts = sorted(tally.first_s) or [float("nan")]
    return {
        "tokens_per_second": round(tally.tokens / (time.perf_counter() - begun), 1),
        "first_token_ms_median": round(firsts[len(firsts) // 2] * 1e3, 1),
        "first_token_ms_p95": round(firsts[int(len(firsts) * 0.95)] * 1e3, 1),
        "tokens": tally.tokens,
        "errors": tally.errors,
    }


async def first_tokens(asked: list[Contestant], pairs: int) -> dict[str, Any]:
    """How many ms later the first contestant's first token comes; single requests, in turn."""
    found: dict[str, list[float]] = {who.name: [] for who in asked}
    clients = {who.name: who.client() for who in asked}
    for turn in range(-3, pairs):
        [prompt] = prompts(1, turn + 10**4)
        for who in asked if turn % 2 else asked[::-1]:
            tally = Tally()
            await stream(who, clients[who.name], prompt, 4, tally)
            assert not tally.errors, tally.errors
            # four tokens may be less than a character
            if turn >= 0:
                found[who.name].append(tally.first_s[0] * 1e3 if tally.first_s else math.nan)
    later = [ours - theirs for ours, theirs in zip(*found.values(), strict=True)]
    later = [each for each in later if not math.isnan(each)]
    # of so many medians of pairs drawn anew, the middle 95%
    drawn = random.Random(0)
    medians = sorted(statistics.median(drawn.choices(later, k=len(later))) for _ in range(2000))
    return {
        "pairs": len(later),
        "median_ms": {
            name: round(statistics.median(filter(math.isfinite, each)), 1)
            for name, each in found.items()
        },
        "later_ms": round(statistics.median(later), 1),
        "later_ms_95": [round(medians[50], 1), round(medians[1949], 1)],
        "later_ms_quartiles": [round(each, 1) for each in statistics.quantiles(later)],
    }


async def mixed(who: Contestant, minutes: float, tokens: int) -> dict[str, Any]:
    """Eight clients that do what clients do; errors are those that nobody asked for."""
    end, chosen = time.monotonic() + minutes * 60, random.Random(0)
    counts: dict[str, int] = {}
    errors: list[str] = []
    memory: list[float] = []

    async def one(client: Any) -> None:
        while time.monotonic() < end:
            kind = chosen.choice(("stream", "left", "chat", "several", "schema", "too long"))
            [prompt] = prompts(1, chosen.randrange(10**6))
            turn = [{"role": "user", "content": prompt}]
            text = {"model": who.model, "prompt": prompt, "max_tokens": tokens}
            chat = {"model": who.model, "messages": turn, "max_tokens": tokens}
            wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
            counts[kind] = counts.get(kind, 0) + 1
            try:
                if kind in ("stream", "left"):
                    async with await client.completions.create(**text, stream=True) as told:
                        async for _ in told:
                            if kind == "left" and chosen.random() < 0.2:
                                break
                elif kind == "several":
                    await client.completions.create(**text, n=3)
                elif kind == "too long":
                    await client.completions.create(**text | {"prompt": "長" * 40_000})
                else:
                    extra = {"response_format": wanted} if kind == "schema" else {}
                    await client.chat.completions.create(**chat, **extra)
            except openai.BadRequestError as error:
                if kind != "too long":
                    errors.append(str(error)[:200])
            except openai.OpenAIError as error:
                errors.append(f"{kind}: {type(error).__name__} {error}"[:200])

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(who.memory_mb())
            await asyncio.sleep(15)

    async with who.client() as client:
        await asyncio.gather(watch(), *(one(client) for _ in range(8)))
    return {"minutes": minutes, "requests": counts, "errors": errors, "memory_mb": memory}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def ours(given: argparse.Namespace, folder: Path, before: Path | None = None) -> Contestant:
    """The server of this project, as it is or as a folder has it."""
    port, name = free_port(), "before" if before else "aift-ray"
    command = [sys.executable, "-m", "aift_ray.serve", "--model", given.model]
    command += ["--dtype", given.dtype, "--serving.cpus_per_replica", str(given.threads)]
    command += ["--engine", given.engine, "--port", str(port), "--served-model-name", "base"]
    if given.engine == "vllm":
        command += ["--vllm.max_model_len", str(CONTEXT), "--vllm.kv_cache_memory", CACHE]
        command += ["--vllm.enforce_eager"] * given.eager
    options = {"temperature": 0, "stream_options": {"include_usage": True}}
    log = folder / f"{name}.log"
    found = Contestant(name, command, "base", options, "/healthz", "ready on", port, log)
    found.checkout = before or measuring.ROOT
    return found


def transformers_serve(given: argparse.Namespace, folder: Path) -> Contestant:
    port, model = free_port(), given.model
    bare = [str(Path(sys.executable).with_name("transformers")), "serve", model]
    bare += ["--continuous-batching", "--cb-num-blocks", "256", "--cb-max-batch-tokens", "512"]
    bare += ["--device", "cpu", "--dtype", TYPES[given.dtype], "--host", "127.0.0.1"]
    bare += ["--port", str(port)]
    return Contestant(
        "transformers", bare, model, {}, "/health", "", port, folder / "transformers.log"
    )


def vllm_serve(given: argparse.Namespace, folder: Path) -> Contestant:
    port = free_port()
    bare = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", given.model]
    bare += ["--dtype", TYPES[given.dtype], "--max-num-seqs", "16", "--served-model-name", "base"]
    bare += ["--max-model-len", str(CONTEXT), "--kv-cache-memory-bytes", str(memory_bytes(CACHE))]
    bare += ["--enforce-eager"] * given.eager
    bare += ["--disable-uvicorn-access-log", "--host", "127.0.0.1", "--port", str(port)]
    options = {"temperature": 0, "stream_options": {"include_usage": True}}
    return Contestant("vllm", bare, "base", options, "/health", "", port, folder / "vllm.log")


def started(asked: list[Contestant]) -> None:
    for who in asked:
        who.start()


def compare(
    asked: list[Contestant], rounds: int, tokens: int, first: int = 0
) -> list[dict[str, Any]]:
    """What each server gives in rounds from number `first` on."""
    lines = []
    for who in asked:
        asyncio.run(burst(who, 2, 1, tokens, 10**6))
    for at_once in (1, 4, 16):
        for turn in range(first, first + rounds):
            for who in asked if turn % 2 else asked[::-1]:
                before = who.memory_mb()
                each = 4 if at_once == 1 else 1
                # no prompt comes twice: both servers keep what they have computed
                found = asyncio.run(burst(who, at_once, each, tokens, 100 * at_once + turn))
                found |= {"server": who.name, "at_once": at_once, "round": turn}
                found["memory_growth_mb"] = round(who.memory_mb() - before, 1)
                lines.append(found)
                print(found, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model", help="folder")
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    parser.add_argument("--against", choices=("transformers", "vllm"), help="default: the engine's")
    parser.add_argument("--before", help="folder of another commit of this project")
    parser.add_argument("--eager", action="store_true", help="vLLM compiles nothing, in both")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1, help="of computation, a server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=0, help="of first tokens")
    parser.add_argument("--minutes", type=float, default=0.0, help="of mixed load on our server")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    # both servers on vLLM: as many threads as are given, wherever the system puts them
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    given.model = str(Path(given.model).resolve())
    given.against = given.against or given.engine
    name = Path(given.model).name + ("_vllm" if given.engine == "vllm" else "")
    name += "_against_vllm" * (given.against != given.engine)
    name += "_before" * bool(given.before)
    with tempfile.TemporaryDirectory() as place:
        asked = [ours(given, Path(place))]
        if given.before:
            asked.append(ours(given, Path(place), Path(given.before).resolve()))
        elif not given.minutes:
            other = vllm_serve if given.against == "vllm" else transformers_serve
            asked.append(other(given, Path(place)))
        try:
            started(asked)
            if given.minutes:
                found: Any = asyncio.run(mixed(asked[0], given.minutes, given.tokens))
                print(found)
            elif given.pairs:
                found = asyncio.run(first_tokens(asked, given.pairs))
                print(found)
            else:
                found = compare(asked, given.rounds, given.tokens)
            if given.before:
                # of two equal servers the one that was started first is slower by up to 12%
                for who in asked:
                    who.stop()
                started(asked[::-1])
                found += compare(asked, given.rounds, given.tokens, given.rounds)
            kind = "mixed" if given.minutes else "first" if given.pairs else "load"
            ready = {who.name: round(who.ready_s, 1) for who in asked}
            about = {"model": name, "dtype": given.dtype, "threads": given.threads}
            about |= {"engine": given.engine, "eager": given.eager}
            content = about | {"ready_s": ready, "found": found}
            measuring.write(measuring.RESULTS / f"serve_{kind}_{name}.json", content)
        finally:
            for who in asked:
                who.stop()


if __name__ == "__main__":
    main()
