"""Trains by TRL on rows of token ids, in an environment that has it.

python -m tests.helpers.trl_trainer

Each line of its input names two files, SPEC.json and OUTPUT.json, separated by a tab; the line
"done" follows when the second is written. One process for all, as TRL takes long to import.

SPEC.json: objective, model, adapter, rows (token ids with where the answer begins), steps,
learning_rate, batch (rows of a micro-batch) and settings of TRL's configuration. OUTPUT.json: loss,
gradient norm, rewards and learning rate of each step.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any


def columns(objective: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as TRL's trainers have them once they are tokenized."""
    if objective == "kto":
        return [
            {
                "prompt_ids": own["ids"][: own["start"]],
                "completion_ids": own["ids"][own["start"] :],
                "KL_completion_ids": other["ids"][other["start"] :],
                "label": own["score"] > 0,
            }
            for own, other in zip(rows[::2], rows[1::2], strict=True)
        ]
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    if objective == "reward":
        margins = [{"margin": c["score"]} if c["score"] is not None else {} for c, _ in pairs]
        return [
            {"chosen_ids": c["ids"], "rejected_ids": r["ids"], **margin}
            for (c, r), margin in zip(pairs, margins, strict=True)
        ]
    if objective in ("orpo", "simpo", "cpo"):
        return [
            {"prompt_input_ids": c["ids"][: c["start"]], **_labelled("chosen", c)}
            | {"prompt_attention_mask": [1] * c["start"], **_labelled("rejected", r)}
            for c, r in pairs
        ]
    return [
        {
            "prompt_ids": c["ids"][: c["start"]],
            "chosen_ids": c["ids"][c["start"] :],
            "rejected_ids": r["ids"][r["start"] :],
        }
        for c, r in pairs
    ]


def _labelled(name: str, row: dict[str, Any]) -> dict[str, list[int]]:
    ids, start = row["ids"], row["start"]
    labels = [-100] * start + ids[start:]
    mask = [1] * len(ids)
    return {f"{name}_input_ids": ids, f"{name}_labels": labels, f"{name}_attention_mask": mask}


def trainer_of(spec: dict[str, Any], folder: str) -> Any:
    """TRL's trainer of an objective, with the rows in place."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class ByAnswer(ORPOTrainer):  # type: ignore[misc]
        """The chosen answer's own loss by its tokens, as in the paper: TRL takes those of the
        prompt as well, and the mean over all tokens of a micro-batch."""

        def concatenated_forward(self, model: Any, batch: Any) -> Any:
            found = super().concatenated_forward(model, batch)
            return (*found[:4], -found[0].mean(), *found[5:])

    objective = spec["objective"]
    trainers = {
        "kto": (KTOTrainer, KTOConfig),
        "reward": (RewardTrainer, RewardConfig),
        "orpo": (ByAnswer, ORPOConfig),
        "simpo": (CPOTrainer, CPOConfig),
        "cpo": (CPOTrainer, CPOConfig),
    }
    trainer, config = trainers.get(objective, (DPOTrainer, DPOConfig))
    dtype = getattr(torch, spec.get("dtype", "float32"))
    kind = AutoModelForSequenceClassification if objective == "reward" else AutoModelForCausalLM
    more = {"num_labels": 1} if objective == "reward" else {}
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = kind.from_pretrained(spec["model"], dtype=dtype, **more)
    model.config.pad_token_id = tokenizer.pad_token_id
    if spec.get("adapter"):
        model = PeftModel.from_pretrained(model, spec["adapter"], is_trainable=True)
    rows = columns(objective, spec["rows"])
    arguments: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": spec["accumulation"],
        "learning_rate": spec["learning_rate"],
        "max_steps": spec["steps"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_length": 128,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if objective == "kto":
        arguments["train_sampling_strategy"] = "sequential"
    words = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows)
    if objective == "kto":
        words = [{"prompt": "a", "completion": "b", "label": True}] * len(rows)
    made = trainer(
        model=model,
        args=config(**arguments, **spec["settings"]),
        train_dataset=Dataset.from_list(words),
        processing_class=tokenizer,
    )
    made.train_dataset = Dataset.from_list(rows)
    return made


def main() -> None:
    """Train what the lines of the input name."""
    for line in sys.stdin:
        train(*line.rstrip("\n").split("\t"))
        print("done", flush=True)


def trained(trainer: Any) -> tuple[list[float], list[dict[str, Any]]]:
    """Train: the loss of each micro-batch, and the log of each step."""
    losses: list[float] = []
    compute = trainer.compute_loss

    def noted(*args: Any, **more: Any) -> Any:
        found = compute(*args, **more)
        losses.append(float(found.detach()))
        return found

    trainer.compute_loss = noted
    trainer.train()
    return losses, [line for line in trainer.state.log_history if "grad_norm" in line]


def train(given: str, taken: str) -> None:
    """Train by the file `given`; write what was seen of each step to `taken`."""
    with open(given, encoding="utf-8") as file:
        spec = json.load(file)
    with tempfile.TemporaryDirectory() as folder:
        losses, history = trained(trainer_of(spec, folder))
    size = spec["accumulation"]
    means = [sum(losses[at : at + size]) / size for at in range(0, len(losses), size)]
    steps = [{**line, "loss": loss} for line, loss in zip(history, means, strict=True)]
    with open(taken, "w", encoding="utf-8") as file:
        json.dump(steps, file)


if __name__ == "__main__":
    main()
