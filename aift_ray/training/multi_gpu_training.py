"""`AdvancedMultiGPUTrainer`: a model spread over several workers by a strategy."""

from __future__ import annotations

from torch import nn

from aift_ray.config import LoRAConfig, MultiGPUTrainingConfig, ParallelConfig
from aift_ray.data.text_dataset import TextDataset
from aift_ray.models.base_model import BaseModel
from aift_ray.training import runs
from aift_ray.training.lora_finetuning import lora_sections

__all__ = ["AdvancedMultiGPUTrainer", "MultiGPUTrainingConfig"]


class AdvancedMultiGPUTrainer:
    """Trains on Ray Train workers, one a GPU, by a strategy.

    Args:
        model: which model; its weights are read anew from its name when training begins.
        config: strategy and training; `world_size` workers where it is given, else one a GPU.
        train_dataset, eval_dataset: in place of the texts given to `train`.
        lora_config: train adapters; None: all weights.
    """

    def __init__(
        self,
        model: BaseModel,
        config: MultiGPUTrainingConfig,
        train_dataset: TextDataset | None = None,
        eval_dataset: TextDataset | None = None,
        *,
        lora_config: LoRAConfig | None = None,
    ) -> None:
        self.model, self.config, self.lora_config = model, config, lora_config
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset

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
        data = runs.data_settings(train_texts, eval_texts, self.train_dataset, self.eval_dataset)
        config, sections = self.config, {"method": "full", "data": data}
        if self.lora_config is not None:
            sections |= lora_sections(self.model, self.lora_config)
        sections["parallel"] = runs.parts_of(config, ParallelConfig)
        if "world_size" in config.model_fields_set and config.local_rank < 0:
            if config.strategy == "ddp":
                config = config.model_copy(update={"ddp": True})
            else:
                sections["ray"] = {"num_workers": config.world_size}
                config = config.model_copy(update={"world_size": 1})
        return runs.run(self.model, config, sections, resume_from_checkpoint, here=False)
