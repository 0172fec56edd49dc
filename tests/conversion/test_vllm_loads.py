"""Exported folders in vLLM's CPU build: its next tokens are those of transformers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from aift_ray import export
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED, write_rows
from tests.serving import vllm_environment

# what vLLM's build for AVX2 lacks
PRODUCT = "cpu_gemm_wna16"
PROMPT = list(range(60, 90))
INSTALLED = importlib.util.find_spec("llmcompressor") is not None
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(model=sys.argv[1], dtype="bfloat16", max_model_len=128, enforce_eager=True)
ids = json.loads(sys.argv[2])
asked = SamplingParams(temperature=0, max_tokens=1, logprobs=5)
(found,) = llm.generate([{"prompt_token_ids": ids}], asked, use_tqdm=False)
print("FOUND", json.dumps({n: each.logprob for n, each in found.outputs[0].logprobs[0].items()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="llm-compressor is not installed")
@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8"])
def test_vllm_gives_the_next_tokens_that_transformers_gives(kind: str, tmp_path: Path) -> None:
    python = vllm_environment.python()
    if python is None:
        pytest.skip("there is no vLLM: make vllm-env")
    rows = write_rows(tmp_path / "rows.jsonl")
    flags = ["--calibration-file", str(rows)] if kind != "fp8" else []
    folder = tmp_path / "out"
    flags += ["--model", str(SHIPPED), "--format", kind, "--output", str(folder)]
    assert guarded(export.run, [*flags, "--eval-rows", "0"]) == 0
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    ran = subprocess.run(
        [str(python), "-c", SCRIPT, str(folder), json.dumps(PROMPT)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings,
        capture_output=True,
        text=True,
    )
    if kind != "fp8" and f"object has no attribute {PRODUCT!r}" in ran.stderr:
        # it has read the weights, and would have to multiply by them
        assert "Loading weights took" in ran.stdout
        pytest.skip("vLLM has loaded it; its products of 4 bits on a CPU need AVX-512")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.split("FOUND ")[1].splitlines()[0])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPT])).logits[0, -1].double().log_softmax(-1)
    assert len(found) >= 5
    assert all(abs(wanted[int(number)] - value) < 0.25 for number, value in found.items())
