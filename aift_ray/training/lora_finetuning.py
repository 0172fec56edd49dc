"""`LoRAFinetuningTrainer`: low-rank adapters are trained, the model's own weights stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from aift_ray.config import DataConfig, LoRAConfig, RayConfig, TrainingConfig
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.errors import check_arguments
from aift_ray.models import hub, load, provenance
from aift_ray.models.base_and_adapter import Place
from aift_ray.models.base_model import BaseModel
from aift_ray.models.folder_check import has_tokenizer
from aift_ray.models.japanese_model import JapaneseModel
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.training import trainer_args
from aift_ray.training.peft_config import as_own
from aift_ray.training.train_rows import Items
from aift_ray.training.trainer import Trainer

__all__ = ["LoRAConfig", "LoRAFinetuningTrainer"]


class LoRAFinetuningTrainer(Trainer):
    """Trains LoRA adapters; with QLoRA on a base held in 4 or 8 bits.

    Args:
        model: which model; its weights are read anew from its name when training begins. One
            with load_in_4bit or load_in_8bit is trained by QLoRA.
        lora_config: the adapters; PEFT's own `LoraConfig` is taken too, and what it asks for that
            is not done here is refused by name.
        training_config: with `ddp=True`, `world_size` Ray Train workers; else this process alone.
        train_dataset, eval_dataset: in place of the texts given to `train`: a `TextDataset`,
            another torch Dataset, or an iterable. Its items are texts, rows, or token ids
            (`input_ids`, with `labels` and `attention_mask` where some are not trained).
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
        lora_config: LoRAConfig | LoraConfig,
        training_config: TrainingConfig,
        train_dataset: Items | None = None,
        eval_dataset: Items | None = None,
        *,
        callbacks: Sequence[Any] = (),
        data: DataConfig | Mapping[str, Any] | None = None,
        ray: RayConfig | Mapping[str, Any] | None = None,
        overwrite: bool = False,
        rope_scaling: str | None = None,
    ) -> None:
        check_arguments(
            "LoRAFinetuningTrainer",
            model=(model, BaseModel),
            lora_config=(lora_config, (LoRAConfig, LoraConfig)),
            training_config=(training_config, TrainingConfig),
        )
        options = trainer_args.TrainerOptions(callbacks, data, ray, overwrite, rope_scaling)
        super().__init__(model, train_dataset, eval_dataset, options)
        self.lora_config, self.training_config = lora_config, training_config

    def _settings(self) -> tuple[TrainingConfig, dict[str, Any], bool]:
        config, sections = self.training_config, lora_sections(self.model, self.lora_config)
        return config, sections, trainer_args.here(config, self.options)

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
        own_folder = Path(lora_adapter_path).expanduser()
        location = provenance.opened_as_trained(hub.resolve(base_model_name), own_folder)
        skeleton = load.skeleton(location)
        folder = check_adapter(lora_adapter_path, base_model_name, location, skeleton)
        own = str(folder) if has_tokenizer(folder) else location
        place = Place(location, own, folder)
        tokenizer = place.load_tokenizer(base_model_name)
        # gives it a template where it has none
        PromptEncoder(tokenizer)
        return base.open_place(place), tokenizer


def lora_sections(model: BaseModel, config: object) -> dict[str, Any]:
    """Method and adapters of a run, by a LoRAConfig or PEFT's; None: all weights are trained."""
    if config is None:
        return {"method": "full"}
    values = as_own(config, model.model_name).model_dump(exclude_unset=True)
    if model.quantization is not None:
        values |= {"use_qlora": True, "qlora_4bit": model.quantization.bits == 4}
    return {"method": "qlora" if values.get("use_qlora") else "lora", "lora": values}
