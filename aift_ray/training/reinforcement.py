"""`GRPOTrainer`: a model learns from rewards of completions that it generates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn

from aift_ray.config import DataConfig, GRPOConfig, LoRAConfig, RayConfig, TrainingConfig
from aift_ray.errors import ConfigError, Problem, check_arguments
from aift_ray.models.base_model import BaseModel
from aift_ray.training import trainer_args
from aift_ray.training.lora_finetuning import lora_sections
from aift_ray.training.train_rows import Items
from aift_ray.training.trainer import Trainer, check_full

Reward = str | Callable[..., Any]


class GRPOTrainer(Trainer):
    """Trains by rewards of generated completions (GRPO, Dr. GRPO, DAPO, GSPO).

    Args:
        model: which model; its weights are read anew from its name when training begins. One
            with load_in_4bit or load_in_8bit is trained by QLoRA.
        lora_config: the adapters, also as PEFT's own `LoraConfig`; None: all weights are trained.
        training_config: `batch_size` counts completions; with `ddp=True`, `world_size` Ray Train
            workers; else this process alone.
        reward: one reward or several: built-in names, `FILE.py:FUNCTION`, or functions that a file
            defines at its top level.
        train_dataset, eval_dataset: in place of the rows given to `train`: a torch Dataset, a
            Hugging Face dataset or an iterable, whose items are rows.
        grpo: further settings: `{"num_generations": 4, "loss_type": "grpo"}`.
        callbacks: see `Callback`.
        data, ray: further settings of the run, as on the command line.
        overwrite: empty the output folder where it is not empty.
        rope_scaling: rows longer than the model's context: "yarn:4", as on the command line.

    Raises:
        ArgumentError: a TypeError: an argument is of another type.
        ConfigError: all weights are to be trained, and they are held in 8 or 4 bits; or a reward
            function that no file defines.
    """

    def __init__(
        self,
        model: BaseModel,
        lora_config: LoRAConfig | LoraConfig | None,
        training_config: TrainingConfig,
        reward: Reward | Sequence[Reward],
        train_dataset: Items | None = None,
        eval_dataset: Items | None = None,
        *,
        grpo: GRPOConfig | Mapping[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        data: DataConfig | Mapping[str, Any] | None = None,
        ray: RayConfig | Mapping[str, Any] | None = None,
        overwrite: bool = False,
        rope_scaling: str | None = None,
    ) -> None:
        check_arguments(
            "GRPOTrainer",
            model=(model, BaseModel),
            lora_config=(lora_config, (LoRAConfig, LoraConfig, type(None))),
            training_config=(training_config, TrainingConfig),
        )
        if lora_config is None:
            check_full(model, "give a lora_config, or load it without load_in_8bit or load_in_4bit")
        options = trainer_args.TrainerOptions(callbacks, data, ray, overwrite, rope_scaling)
        super().__init__(model, train_dataset, eval_dataset, options)
        self.lora_config, self.training_config = lora_config, training_config
        rewards: Any = [reward] if isinstance(reward, str) or callable(reward) else reward
        self.reward = [_named(each) for each in rewards]
        self.grpo = grpo

    def train(
        self,
        train_texts: list[Any] | None = None,
        eval_texts: list[Any] | None = None,
        resume_from_checkpoint: str | None = None,
    ) -> nn.Module:
        """Train on prompts; the rest is as of `FullFinetuningTrainer.train`.

        Args:
            train_texts, eval_texts: rows: a `prompt` (a text or messages) or an `instruction`, and
                further keys for the rewards.
            resume_from_checkpoint: a folder checkpoints/step-N, or 'latest'.

        Raises:
            RewardError: a TrainingError: a reward function failed.
        """
        return super().train(train_texts, eval_texts, resume_from_checkpoint)

    def _settings(self) -> tuple[TrainingConfig, dict[str, Any], bool]:
        sections = lora_sections(self.model, self.lora_config)
        settings = {**trainer_args.section("grpo", self.grpo), "reward": self.reward}
        sections |= {"objective": "grpo", "grpo": settings}
        config = self.training_config
        return config, sections, trainer_args.here(config, self.options)


def _named(reward: Reward) -> str:
    """A reward as the command line names it."""
    if isinstance(reward, str):
        return reward
    name = getattr(reward, "__qualname__", "")
    try:
        file = Path(inspect.getfile(reward)) if name.isidentifier() else None
    except TypeError:
        file = None
    if file is None or not file.is_file():
        what = f"{name or reward!r} is no function that a file defines at its top level"
        remedy = "write it into a .py file: rewards are computed in processes of their own"
        raise ConfigError([Problem("GRPOTrainer: reward", what, remedy)])
    return f"{file}:{name}"
