"""What the documented trainers share. They differ in what is trained, and by which processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from aift_ray.config import TrainingConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.models.base_model import BaseModel
from aift_ray.training import trainer_args, trainer_run
from aift_ray.training.train_rows import Items


class Trainer(ABC):
    """Trains the model of a name on rows, and opens what was trained in this process.

    Args:
        model: which model; its weights are read anew from its name when training begins.
        train_dataset, eval_dataset: in place of the rows given to `train`.
        options: further settings.
    """

    def __init__(
        self,
        model: BaseModel,
        train_dataset: Items | None,
        eval_dataset: Items | None,
        options: trainer_args.TrainerOptions,
    ) -> None:
        self.model, self.options = model, options
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset

    def train(
        self,
        train_texts: list[str] | None = None,
        eval_texts: list[str] | None = None,
        resume_from_checkpoint: str | None = None,
    ) -> nn.Module:
        """Train; `self.model` then stands for what was trained.

        Args:
            train_texts, eval_texts: plain texts, supervised as a whole; or instruction rows, of
                which the answers are supervised.
            resume_from_checkpoint: a folder checkpoints/step-N, or 'latest'.

        Returns:
            The trained model, in this process, in evaluation mode: PEFT's model around the base
            where adapters were trained.

        Raises:
            ConfigError, DataError, ModelError: what is wrong, before anything has started.
            Interrupted: stopped by Ctrl-C or SIGTERM, with a checkpoint.
            TrainingError: it failed.
        """
        rows = trainer_args.TrainerRows(
            train_texts, eval_texts, self.train_dataset, self.eval_dataset
        )
        config, sections, alone = self._settings()
        resume = resume_from_checkpoint
        return trainer_run.run(self.model, config, rows, sections, self.options, resume, alone)

    @abstractmethod
    def _settings(self) -> tuple[TrainingConfig, dict[str, Any], bool]:
        """The configuration, the other sections of the run, and whether this process alone trains.

        Raises:
            ConfigError: they contradict each other.
        """


def check_full(model: BaseModel, remedy: str) -> None:
    """Refuse to train all weights of a model whose weights are quantized.

    Args:
        remedy: what to do instead.

    Raises:
        ConfigError: the model's weights are held in 8 or 4 bits.
    """
    if model.quantization is None:
        return
    what = f"its weights are held in {model.quantization.bits} bits, which can't be trained"
    raise ConfigError([Problem(f"model {model.model_name}", what, remedy)])
