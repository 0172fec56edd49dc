"""The process in which rewards are computed: it answers requests over a socket until that closes.

Requests are tuples, answers are JSON: what a reward function makes is never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from aift_ray.rewards import process_guard, scorer
from aift_ray.rewards.episode_worker import Episodes
from aift_ray.rewards.spec import RewardSpec
from aift_ray.rewards.user_function import MORE_MEMORY, NO_MEMORY, Refused

# a reward and what computes it, or an environment and its episodes
_Loaded = tuple[RewardSpec, Any]


def main(descriptor: int, parent: int, memory: int | None) -> None:
    """Answer requests until the other side closes.

    Args:
        descriptor: of the socket.
        parent: the process that started this one; this one ends with it.
        memory: bytes of data that the process may hold, and of memory all that it starts with it;
            None: any number.
    """
    process_guard.split(parent, memory)
    # what a function prints is not an answer, and does not mix with the output of the command
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    if memory is not None:
        _limit(memory)
    loaded: dict[int, _Loaded] = {}
    connection.send_bytes(json.dumps({"started": os.getpid()}).encode())
    while True:
        try:
            request = connection.recv()
        except (EOFError, ConnectionError):
            return
        answer = _answer(loaded, request)
        try:
            connection.send_bytes(json.dumps(answer).encode())
        except BrokenPipeError:
            return
        except OSError:
            # a function has closed the socket; without the tracebacks of what else it holds
            os._exit(1)


def _answer(loaded: dict[int, _Loaded], request: tuple[Any, ...]) -> Any:
    try:
        if request[0] == "load":
            _, at, spec = request
            episodes = spec.kind == "environment"
            loaded[at] = (spec, Episodes(spec) if episodes else scorer.load(spec))
            return {}
        if request[0] == "episode":
            _, at, *rest = request
            return {"reply": loaded[at][1].reply(*rest)}
        if request[0] == "columns":
            _, at, columns = request
            scorer.check_columns(loaded[at][0], columns)
            return {}
        _, at, prompts, completions, columns, state = request
        return _scored(*loaded[at], prompts, completions, columns, state)
    except Refused as refused:
        told = {"row": refused.row, "remedy": refused.remedy, "always": refused.always}
        return {"refused": refused.what} | told
    except MemoryError:
        return {"refused": NO_MEMORY, "row": None, "remedy": MORE_MEMORY, "always": False}


def _scored(
    spec: RewardSpec,
    score: scorer.Scorer,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Any],
    state: Mapping[str, Any],
) -> dict[str, Any]:
    metrics: dict[str, list[float]] = {}
    extra: dict[str, list[Any]] = {}
    further = dict(columns)
    if spec.kind == "function":
        further.setdefault("completion_ids", [None] * len(completions))
        further["trainer_state"] = SimpleNamespace(**state)
        further["log_metric"] = lambda name, value: metrics.setdefault(name, []).append(
            float(value)
        )
        further["log_extra"] = lambda name, values: extra.setdefault(name, []).extend(
            str(value) for value in values
        )
    _seed(spec, prompts, completions)
    rewards = score(prompts, completions, further)
    return {"rewards": rewards, "metrics": metrics, "extra": extra}


def _seed(spec: RewardSpec, prompts: Sequence[Any], completions: Sequence[Any]) -> None:
    """Random numbers that depend on the rows alone, whichever process they come to."""
    text = repr((spec.name, list(prompts), list(completions)))
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _limit(memory: int) -> None:
    import resource

    # memory that is written to; unlike the address space it leaves out what is only reserved
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
