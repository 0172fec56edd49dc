"""Trains by TRL's GRPOTrainer or RLOOTrainer on completions that are given.

python -m tests.grpo.trl_grpo SPEC.json OUTPUT.json

Runs in an environment that has TRL. SPEC.json: trainer (grpo or rloo), model, adapter, generations
(of each: prompt and completion ids and rewards of each completion, those of a prompt one after the
other), steps, learning_rate, stop_ids and settings of GRPOConfig or RLOOConfig. OUTPUT.json: loss,
gradient norm and what was measured in each step.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from tests.helpers.trl_trainer import trained


def trainer_of(spec: dict[str, Any], folder: str) -> Any:
    """TRL's trainer, that generates nothing."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    rloo = spec["trainer"] == "rloo"
    kind, base = (RLOOConfig, RLOOTrainer) if rloo else (GRPOConfig, GRPOTrainer)
    generations: list[dict[str, Any]] = spec["generations"]
    size = spec["settings"]["num_generations"]
    number = len(generations[0]["completion_ids"])

    class Replaying(base):  # type: ignore[misc, valid-type]
        """Takes completions from the specification, in place of generating them."""

        made = 0

        def _generate(self, prompts: list[Any]) -> Any:
            given = generations[self.made]
            self.made += 1
            seen: dict[str, int] = {}
            order = []
            for prompt in prompts:
                again = seen.get(prompt, 0)
                seen[prompt] = again + 1
                order.append(int(prompt[1:]) * size + again)
            self.rewards = [given["rewards"][at] for at in order]
            prompt_ids = [given["prompt_ids"][at] for at in order]
            completions = [given["completion_ids"][at] for at in order]
            if rloo:
                return prompt_ids, completions, [""] * len(order)
            return prompt_ids, completions, None, [""] * len(order), None, {}, None, []

    def reward(completions: list[Any], **more: Any) -> list[float]:
        return list(trainer.rewards)

    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    if spec.get("adapter"):
        model = PeftModel.from_pretrained(model, spec["adapter"], is_trainable=True)
    config = kind(
        output_dir=folder,
        per_device_train_batch_size=number,
        gradient_accumulation_steps=1,
        learning_rate=spec["learning_rate"],
        max_steps=spec["steps"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        **spec["settings"],
    )
    rows = Dataset.from_list([{"prompt": f"p{at}"} for at in range(number // size)])
    trainer: Any = Replaying(
        model=model,
        reward_funcs=[reward],
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.eos_token_ids = spec["stop_ids"]
    return trainer


def main() -> None:
    """Train, and write what was seen of each step."""
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    with tempfile.TemporaryDirectory() as folder:
        losses, history = trained(trainer_of(spec, folder))
    steps = [{**line, "loss": loss} for line, loss in zip(history, losses, strict=True)]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(steps, file)


if __name__ == "__main__":
    main()
