"""`LoRAFinetuningTrainer`: low-rank adapters are trained, the model's own weights stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from aift_ray.config import LoRAConfig, TrainingConfig
from aift_ray.data.prompts import PromptEncoder
from aift_ray.data.text_dataset import TextDataset
from aift_ray.models import folders, loading
from aift_ray.models.adapter_folder import check_adapter
from aift_ray.models.adapters import reload_adapters
from aift_ray.models.base_model import BaseModel
from aift_ray.models.folder_check import has_tokenizer
from aift_ray.models.japanese_model import JapaneseModel
from aift_ray.models.places import Place
from aift_ray.training import runs

__all__ = ["LoRAConfig", "LoRAFinetuningTrainer"]


class LoRAFinetuningTrainer:
    """Trains LoRA adapters; with QLoRA on a base held in 4 or 8 bits.

    Args:
        model: which model; its weights are read anew from its name when training begins. One
            with load_in_4bit or load_in_8bit is trained by QLoRA.
        lora_config: the adapters.
        training_config: with `ddp=True`, `world_size` Ray Train workers; else this process alone.
        train_dataset, eval_dataset: in place of the texts given to `train`.
    """

    def __init__(
        self,
        model: BaseModel,
        lora_config: LoRAConfig,
        training_config: TrainingConfig,
        train_dataset: TextDataset | None = None,
        eval_dataset: TextDataset | None = None,
    ) -> None:
        self.model, self.lora_config, self.training_config = model, lora_config, training_config
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset

    def train(
        self,
        train_texts: list[str] | None = None,
        eval_texts: list[str] | None = None,
        resume_from_checkpoint: str | None = None,
    ) -> nn.Module:
        """Train; `self.model` then stands for the model with its adapter.

        Args, errors: as `FullFinetuningTrainer.train`.

        Returns:
            PEFT's model around the base, in this process, in evaluation mode.
        """
        data = runs.data_settings(train_texts, eval_texts, self.train_dataset, self.eval_dataset)
        config, sections = self.training_config, lora_sections(self.model, self.lora_config)
        here = not config.ddp and config.local_rank < 0
        sections |= {"data": data}
        return runs.run(self.model, config, sections, resume_from_checkpoint, here)

    @staticmethod
    def load_lora_model(
        base_model_name: str, lora_adapter_path: str, device: torch.device | None = None
    ) -> tuple[Any, Any]:
        """Put a saved adapter on its base.

        Args:
            base_model_name: catalog name, Hub id or folder.
            lora_adapter_path: the folder that training or PEFT wrote.
            device: None: CUDA, else MPS, else the CPU.

        Returns:
            PEFT's model in evaluation mode, and the tokenizer.

        Raises:
            ModelError: one is missing or damaged, or the adapter was made for another base,
                which is named.
        """
        base = JapaneseModel(base_model_name, device)
        location = folders.resolve(base_model_name)
        skeleton = loading.skeleton(location)
        folder = check_adapter(lora_adapter_path, base_model_name, location, skeleton)
        own = str(folder) if has_tokenizer(folder) else location
        tokenizer = Place(location, own).load_tokenizer(base_model_name)
        # gives it a template where it has none
        PromptEncoder(tokenizer)
        adapted = reload_adapters(base.load_model(), str(folder), trainable=False)
        return adapted.eval(), tokenizer


def lora_sections(model: BaseModel, config: LoRAConfig) -> dict[str, Any]:
    """Method and adapters of a run."""
    values = config.model_dump(exclude_unset=True)
    if model.quantization is not None:
        values |= {"use_qlora": True, "qlora_4bit": model.quantization.bits == 4}
    return {"method": "qlora" if values.get("use_qlora") else "lora", "lora": values}
