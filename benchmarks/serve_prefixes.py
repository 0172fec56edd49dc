"""What it saves to keep the keys and values of earlier requests: a conversation, turn by turn.

    python benchmarks/serve_prefixes.py MODEL [DTYPE] [ROUNDS]

The engine transformers twice in one process, with `prefix_memory` and without, asked in turn: the
same conversation of five turns, each prompt the one before with its answer and 30 tokens more.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import measuring
import torch
from transformers import AutoModelForCausalLM

from aift_ray.serving.engines.interface import Request, SamplingParams
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine

TURNS, START, NEW, ANSWER = 5, 200, 30, 40


async def converse(engine: Any, seed: int, vocabulary: int) -> list[float]:
    """Milliseconds to the first token of each turn."""
    generator = torch.Generator().manual_seed(seed)

    def said(tokens: int) -> list[int]:
        return torch.randint(10, vocabulary, (tokens,), generator=generator).tolist()

    prompt, found = said(START), []
    for _ in range(TURNS):
        answer: list[int] = []
        begun = time.perf_counter()
        request = Request(prompt, ANSWER, frozenset(), SamplingParams(temperature=0))
        async for token in engine.submit(request):
            if not answer:
                found.append((time.perf_counter() - begun) * 1e3)
            answer.append(token.id)
        prompt = prompt + answer + said(NEW)
    return found


def main() -> None:
    folder = sys.argv[1]
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float32"
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    engines = {
        name: TransformersEngine(model, 4, 8, prefix_memory=memory)
        for name, memory in (("kept", 2**29), ("not kept", 0))
    }
    found: dict[str, list[list[float]]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        for name in list(engines)[:: 1 if turn % 2 else -1]:
            told = asyncio.run(converse(engines[name], turn, model.config.vocab_size))
            if turn:
                found[name].append(told)
    table = {
        name: [measuring.spread([told[turn] for told in each]) for turn in range(TURNS)]
        for name, each in found.items()
    }
    for turn in range(TURNS):
        kept, other = (table[name][turn]["median"] for name in ("kept", "not kept"))
        print(f"turn {turn + 1}: first token after {kept:.1f} ms, {other:.1f} without")
    name = Path(folder).name
    content = {"model": name, "dtype": dtype, "threads": torch.get_num_threads(), "ms": table}
    measuring.write(measuring.RESULTS / f"serve_prefixes_{name}.json", content)
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
