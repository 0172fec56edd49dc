"""Fine-tune the shipped model on the shipped instructions, and show what it learned."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "aift_ray" / "data" / "assets" / "keitai"
OUTPUT = ROOT / "outputs" / "demo"


def main() -> None:
    """Train as a user would, then ask the saved adapter with plain transformers and peft."""
    command = [sys.executable, "-m", "aift_ray.train", "--config", str(ROOT / "examples/demo.yaml")]
    command += ["--train-file", str(ROWS / "train.jsonl"), "--eval-file", str(ROWS / "eval.jsonl")]
    command += ["--output-dir", str(OUTPUT), "--overwrite", "--num-workers", str(workers())]
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)
    row = json.loads((ROWS / "eval.jsonl").read_text(encoding="utf-8").splitlines()[0])
    print("\none held-out row, asked of the saved adapter with plain transformers and peft:")
    print(f"  instruction  {row['instruction']}\n  input        {row['input']}")
    print(f"  answer       {answer(row)}\n  expected     {row['output']}")
    print(f"\nall files are in {OUTPUT}")


def workers() -> int:
    """Two, or one where there is a single GPU, or no GPU and a single CPU."""
    import torch

    return min(2, torch.cuda.device_count() or os.cpu_count() or 1)


def answer(row: dict[str, str]) -> str:
    """The model's greedy answer to an instruction row."""
    # of kernels for 4 bits, which are not used here
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    # transformers warns of its own deprecated names
    warnings.simplefilter("ignore", FutureWarning)
    set_verbosity_error()
    disable_progress_bar()
    folder = OUTPUT / "model"
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    message = {"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}
    inputs = tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    text: str = tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text


if __name__ == "__main__":
    main()
