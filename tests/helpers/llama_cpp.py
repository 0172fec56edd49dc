"""A real llama.cpp: the server in the package xllamacpp, in this process."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_GREEDY: dict[str, Any] = {"samplers": ["top_k"], "top_k": 1, "temperature": 0}


class LlamaCpp:
    """A GGUF file as llama.cpp computes it, in fp32 where the weights are.

    Args:
        lora: GGUF files of adapters that are added.
    """

    def __init__(self, file: Path, context: int = 512, lora: Sequence[Path] = ()) -> None:
        xllamacpp = pytest.importorskip(
            "xllamacpp", reason="the package xllamacpp is not installed"
        )
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.warmup = context, 1, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity, params.use_jinja, params.fit_params = 0, True, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = off
        if lora:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(f), 1.0) for f in lora]
        self.server = xllamacpp.Server(params)

    def post(self, route: str, **body: Any) -> Any:
        """The answer of a route."""
        request = urllib.request.Request(
            self.server.listening_address + route,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def greedy(self, prompt: Sequence[int], number: int) -> list[int]:
        """The most likely continuation of token ids."""
        found = self.post(
            "/completion",
            prompt=list(prompt),
            n_predict=number,
            return_tokens=True,
            cache_prompt=False,
            **_GREEDY,
        )
        return list(found["tokens"])

    def next_logprobs(self, prompt: Sequence[int], number: int) -> dict[int, float]:
        """Log-probabilities of the most likely next tokens; none where the first is no text."""
        found = self.post(
            "/completion",
            prompt=list(prompt),
            n_predict=1,
            n_probs=number,
            cache_prompt=False,
            **_GREEDY,
        )
        steps = found.get("completion_probabilities", [])
        return {each["id"]: each["logprob"] for step in steps for each in step["top_logprobs"]}

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, in which special tokens are read as such."""
        return list(
            self.post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        )
