"""`AdvancedMultiGPUTrainer`: a model spread over several workers by a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig

from aift_ray.config import (
    DataConfig,
    LoRAConfig,
    MultiGPUTrainingConfig,
    RayConfig,
    TrainingConfig,
)
from aift_ray.errors import check_arguments
from aift_ray.models.base_model import BaseModel
from aift_ray.training import trainer_args
from aift_ray.training.lora_finetuning import lora_sections
from aift_ray.training.train_rows import Items
from aift_ray.training.trainer import Trainer

__all__ = ["AdvancedMultiGPUTrainer", "MultiGPUTrainingConfig"]


class AdvancedMultiGPUTrainer(Trainer):
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
        rope_scaling: rows longer than the model's context: "yarn:4", as on the command line.

    Raises:
        ArgumentError: a TypeError: an argument is of another type.
    """

    def __init__(
        self,
        model: BaseModel,
        config: MultiGPUTrainingConfig,
        train_dataset: Items | None = None,
        eval_dataset: Items | None = None,
        *,
        lora_config: LoRAConfig | LoraConfig | None = None,
        callbacks: Sequence[Any] = (),
        data: DataConfig | Mapping[str, Any] | None = None,
        ray: RayConfig | Mapping[str, Any] | None = None,
        overwrite: bool = False,
        rope_scaling: str | None = None,
    ) -> None:
        check_arguments(
            "AdvancedMultiGPUTrainer",
            model=(model, BaseModel),
            config=(config, MultiGPUTrainingConfig),
            lora_config=(lora_config, (LoRAConfig, LoraConfig, type(None))),
        )
        options = trainer_args.TrainerOptions(callbacks, data, ray, overwrite, rope_scaling)
        super().__init__(model, train_dataset, eval_dataset, options)
        self.config, self.lora_config = config, lora_config

    def _settings(self) -> tuple[TrainingConfig, dict[str, Any], bool]:
        config: TrainingConfig = self.config
        sections = lora_sections(self.model, self.lora_config)
        if "world_size" in config.model_fields_set and config.local_rank < 0:
            if self.config.strategy == "ddp":
                config = config.model_copy(update={"ddp": True})
            else:
                sections["ray"] = {"num_workers": config.world_size}
                config = config.model_copy(update={"world_size": 1})
        return config, sections, False
