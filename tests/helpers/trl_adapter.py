"""Trains an adapter by TRL's SFTTrainer, in an environment that has it.

python -m tests.helpers.trl_adapter MODEL ROWS OUTPUT [SETTINGS of LoraConfig in JSON]

The adapter is in OUTPUT as `save_model` writes it, and in OUTPUT/checkpoint-4.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Four steps of rows with `messages`."""
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model, rows, output, *given = sys.argv[1:]
    settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    arguments = SFTConfig(
        output,
        per_device_train_batch_size=2,
        max_steps=4,
        save_steps=4,
        learning_rate=1e-2,
        model_init_kwargs={"dtype": "float32"},
        bf16=False,
        report_to="none",
        use_cpu=True,
    )
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        peft_config=LoraConfig(**settings | json.loads(given[0] if given else "{}")),
    )
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main()
