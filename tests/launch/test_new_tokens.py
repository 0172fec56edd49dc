"""New tokens through the launched commands: trained, resumed, merged, exported and answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import make_tiny_model, write_rows
from tests.helpers.llama_cpp import LlamaCpp
from tests.helpers.runs import spawn
from tests.helpers.served import Served

TOKENS = ["番目の言葉", "花鳥風月"]
TEXT = "3番目の言葉は花鳥風月です。"


def command(*words: str, status: int = 0) -> str:
    ran = subprocess.run([sys.executable, "-m", "aift_ray", *words], capture_output=True, text=True)
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([ids])).logits[0, -1]
    return found


@pytest.mark.slow
def test_a_trained_adapter_is_resumed_merged_exported_and_answered(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=False)
    rows = write_rows(tmp_path / "rows.jsonl")
    words = tmp_path / "words.txt"
    words.write_text(f"{TOKENS[1]}\n", "utf-8")
    usual = ["--model", str(base), "--train-file", str(rows), "--max-steps", "4"]
    usual += ["--tokens.add", TOKENS[0], "--tokens.add", str(words), "--training.save_steps", "2"]
    usual += ["--training.learning_rate", "1e-2", "--training.warmup_steps", "0"]
    run, again = tmp_path / "run", tmp_path / "again"
    told = command("train", *usual, "--output-dir", str(run))
    assert "ids 5056 to 5057, from the mean of their pieces; their" in told
    resumed = ["--output-dir", str(again), "--resume", str(run / "checkpoints" / "step-2")]
    command("train", *usual, *resumed)
    files = [one / "model" / "adapter_model.safetensors" for one in (run, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    adapter = str(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = tokenizer(TEXT).input_ids
    assert set(tokenizer.convert_tokens_to_ids(TOKENS)) < set(ids)
    wanted = logits(AutoPeftModelForCausalLM.from_pretrained(adapter), ids)
    source = ["--model", str(base), "--adapter", adapter]
    merged = tmp_path / "merged"
    command("export", *source, "--format", "hf", "--output", str(merged))
    assert AutoTokenizer.from_pretrained(merged)(TEXT).input_ids == ids
    found = logits(AutoModelForCausalLM.from_pretrained(merged), ids)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    gguf = tmp_path / "model.gguf"
    flags = ["--outtype", "f32", "--tokenizer", "nearest", "--output", str(gguf)]
    command("export", *source, *flags)
    server = LlamaCpp(gguf)
    assert server.tokenize(TEXT) == ids
    ours = wanted.double().log_softmax(-1)
    theirs = server.next_logprobs(ids, 20)
    assert theirs
    assert all(abs(ours[token] - value) < 2e-3 for token, value in theirs.items())
    mixed = ["serve", "--model", str(base), "--adapter", f"a={adapter}", "--dry-run"]
    refused = command(*mixed, status=2)
    assert "--format hf --output FOLDER, and serve FOLDER" in " ".join(refused.split())
    # the folder of the adapter itself, merged while it is loaded
    served = Served(tmp_path, "--model", adapter, "--dtype", "fp32", "--engine", "transformers")
    try:
        counted = served.http.post("/tokenize", json={"text": TEXT}).json()
        asked = {"model": "model", "prompt": TEXT, "temperature": 0, "max_tokens": 1}
        asked["logprobs"] = 1
        answer = served.http.post("/v1/completions", json=asked).json()
    finally:
        served.stop()
    assert counted["tokens"] == ids
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [
        pytest.approx(float(ours.max()), abs=2e-3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero3"])
def test_two_workers_train_and_save_what_one_does(strategy: str, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=False)
    rows = write_rows(tmp_path / "rows.jsonl")
    training = {"learning_rate": 1e-2, "num_epochs": 1, "warmup_steps": 0}
    training |= {"gradient_accumulation_steps": 1, "gradient_checkpointing": False}
    kinds = {"alone": "lora", "whole": "lora", "full": "full"}

    def runs(workers: int) -> dict[str, Path]:
        folder = tmp_path / str(workers)
        folder.mkdir()
        found = {
            name: {
                "model": str(base),
                "method": method,
                "output_dir": str(folder / name),
                "tokens": {"add": TOKENS, "train": "alone" if name == "alone" else "whole"},
                "lora": {"lora_dropout": 0.0},
                "parallel": {"strategy": strategy if workers > 1 else "ddp"},
                "data": {"train_files": [str(rows)], "sequence_length": 128},
                "training": training | {"batch_size": 8 // workers},
            }
            for name, method in kinds.items()
        }
        file = folder / "configurations.json"
        file.write_text(json.dumps(found), "utf-8")
        spawn(file, workers)
        return {name: folder / name / "model" for name in found}

    one, two = runs(1), runs(2)
    ids = AutoTokenizer.from_pretrained(one["full"])(TEXT).input_ids
    for name in kinds:
        opener: Any = AutoModelForCausalLM if name == "full" else AutoPeftModelForCausalLM
        pair = [logits(opener.from_pretrained(each[name]), ids) for each in (one, two)]
        torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-3)
