"""`AdvancedMultiGPUTrainer`: a model spread over several workers by a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from aift_ray.config import (
    DataConfig,
    LoRAConfig,
    MultiGPUTrainingConfig,
    ParallelConfig,
    RayConfig,
)
from aift_ray.errors import check_arguments
from aift_ray.models.base_model import BaseModel
from aift_ray.training import trainer_args, trainer_run
from aift_ray.training.lora_finetuning import lora_sections

__all__ = ["AdvancedMultiGPUTrainer", "MultiGPUTrainingConfig"]


class AdvancedMultiGPUTrainer:
    """Trains on Ray Train workers, one a GPU, by a strategy.

    Args:
        model: which model; its weights are read anew from its name when training begins.
        config: strategy and training; `world_size` workers where it is given, else one a GPU.
        train_dataset, eval_dataset: in place of the texts given to `train`: a `TextDataset`,
            another torch Dataset, or an iterable. Its items are texts, rows, or token ids
            (`input_ids`, with `labels` and `attention_mask` where some are not trained).
        lora_config: train adapters, by a `LoRAConfig` or PEFT's `LoraConfig`; None: all weights.
        callbacks: see `Callback`.
        data, ray: further settings of the run, as on the command line: `data={"packing": "fill"}`,
            `ray={"num_workers": 2}`. Files named in `data` take the place of texts.
        overwrite: empty the output folder where it is not empty.

    Raises:
        ArgumentError: a TypeError: an argument is of another type.
    """

    def __init__(
        self,
        model: BaseModel,
        config: MultiGPUTrainingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        lora_config: LoRAConfig | LoraConfig | None = None,
        callbacks: Sequence[Any] = (),
        data: DataConfig | Mapping[str, Any] | None = None,
        ray: RayConfig | Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        check_arguments(
            "AdvancedMultiGPUTrainer",
            model=(model, BaseModel),
            config=(config, MultiGPUTrainingConfig),
            lora_config=(lora_config, (LoRAConfig, LoraConfig, type(None))),
        )
        self.model, self.config, self.lora_config = model, config, lora_config
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.options = trainer_args.Options(callbacks, data, ray, overwrite)

    def train(
        self,
        train_texts: list[str] | None = None,
        eval_texts: list[str] | None = None,
        resume_from_checkpoint: str | None = None,
    ) -> nn.Module:
        """Train; `self.model` then stands for what was trained.

        Args, errors: as `FullFinetuningTrainer.train`.

        Returns:
            The trained model, in this process, in evaluation mode.
        """
        rows = trainer_args.Given(train_texts, eval_texts, self.train_dataset, self.eval_dataset)
        config, sections = self.config, dict[str, Any](method="full")
        if self.lora_config is not None:
            sections |= lora_sections(self.model, self.lora_config)
        sections["parallel"] = trainer_run.parts_of(config, ParallelConfig)
        if "world_size" in config.model_fields_set and config.local_rank < 0:
            if config.strategy == "ddp":
                config = config.model_copy(update={"ddp": True})
            else:
                sections["ray"] = {"num_workers": config.world_size}
                config = config.model_copy(update={"world_size": 1})
        resume = resume_from_checkpoint
        return trainer_run.run(
            self.model, config, rows, sections, self.options, resume, alone=False
        )
