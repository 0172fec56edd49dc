"""Pretrain the shipped model from random weights with this project's own loop.

    python examples/shipped_model/make_corpus.py --corpus AOZORA.jsonl --output CORPUS
    python examples/shipped_model/make_tokenizer.py --corpus CORPUS --output START
    python examples/shipped_model/make_model.py --corpus CORPUS --start START --output RUN

The result, in bf16, goes to aift_ray/models/assets/hina-4m with the figures of the run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aift_ray.commandline import validated
from aift_ray.launch import training_run

ASSETS = Path(__file__).resolve().parents[2] / "aift_ray" / "models" / "assets" / "hina-4m"
SETTINGS = {
    "method": "full",
    "training": {
        "learning_rate": 2e-3,
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 100,
        "eval_steps": 250,
        "save_steps": 250,
        "logging_steps": 10,
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
        "gradient_checkpointing": False,
    },
    "data": {"packing": "fill", "sequence_length": 512, "validation_fraction": 0.01},
    "ray": {"num_workers": 2},
}


def main() -> None:
    """Make random weights, train them, and store the result in bf16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of make_corpus.py")
    parser.add_argument("--start", type=Path, required=True, help="folder of make_tokenizer.py")
    parser.add_argument("--output", type=Path, required=True, help="output folder of the run")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    arguments = parser.parse_args()
    if not (arguments.start / "model.safetensors").is_file():
        start(arguments.start)
    settings = json.loads(json.dumps(SETTINGS))
    settings["training"]["num_epochs"] = arguments.epochs
    settings["data"]["train_files"] = [str(p) for p in sorted(arguments.corpus.glob("*.jsonl"))]
    settings |= {"model": str(arguments.start), "output_dir": str(arguments.output)}
    if arguments.resume:
        settings["resume"] = "latest"
    summary = training_run.run(validated(settings))
    store(arguments.output / "model", summary)


def start(folder: Path) -> None:
    """Write random weights for the configuration in `folder`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)


def store(folder: Path, summary: dict[str, object]) -> None:
    """Put the trained model into the package, in bf16, with the figures of its run."""
    shutil.copytree(folder, ASSETS, dirs_exist_ok=True)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(ASSETS)
    kept = ("steps", "eval_loss_before", "eval_loss", "wall_s", "tokens_per_second", "world_size")
    figures = {name: summary[name] for name in kept}
    (ASSETS / "training.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
