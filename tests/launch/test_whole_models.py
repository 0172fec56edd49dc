"""`aift-ray train` and `quantize` on a model with towers: what is written is the whole model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.helpers.tiny_families import save, with_towers

ROW = '{"instruction": "挨拶してください。", "output": "こんにちは。"}\n'
IDS = torch.arange(5, 25)[None]


def command(*words: str) -> str:
    ran = subprocess.run([sys.executable, "-m", "aift_ray", *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_mistral3_is_trained_merged_and_opened_as_a_whole(tmp_path: Path) -> None:
    source = save(with_towers("mistral3"), tmp_path / "source")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROW * 8, "utf-8")
    usual = ["--model", str(source), "--train-file", str(rows), "--max-steps", "2"]
    usual += ["--training.learning_rate", "1e-2", "--training.warmup_steps", "0"]
    full = command("train", *usual, "--method", "full", "--output-dir", str(tmp_path / "full"))
    assert "the final folder holds the whole" in full
    again = ["--model", str(tmp_path / "full" / "model"), "--output-dir", str(tmp_path / "again")]
    command("train", *usual, *again, "--method", "full")
    lora = command("train", *usual, "--output-dir", str(tmp_path / "lora"))
    assert "plain PEFT loads it on AutoModelForImageTextToText" in lora
    adapter = str(tmp_path / "lora" / "model")
    merging = ["quantize", "--model", str(source), "--adapter", adapter, "--eval-rows", "2"]
    command(*merging, "--bits", "16", "--output-dir", str(tmp_path / "merged"))
    command(*merging, "--bits", "4", "--output-dir", str(tmp_path / "nf4"))
    before = load_file(source / "model.safetensors")
    for name in ("full", "again", "merged"):
        folder = tmp_path / name / "model" if name != "merged" else tmp_path / name
        after = load_file(folder / "model.safetensors")
        towers = [n for n in before if "vision" in n or "projector" in n]
        assert towers
        assert all(torch.equal(after[n], before[n]) for n in towers)
        assert any(not torch.equal(after[n], before[n]) for n in before)
        assert (folder / "config.json").read_bytes() == (source / "config.json").read_bytes()
    plain = AutoModelForImageTextToText.from_pretrained(source)
    adapted = PeftModel.from_pretrained(plain, adapter).eval()
    with torch.no_grad():
        wanted = adapted(input_ids=IDS).logits
        merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(merged(input_ids=IDS).logits, wanted, rtol=0, atol=1e-4)
        held = AutoModelForImageTextToText.from_pretrained(tmp_path / "nf4").eval()
        assert torch.isfinite(held(input_ids=IDS).logits).all()
