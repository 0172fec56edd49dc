"""`PreferenceTrainer`: a model learns which of two answers is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from aift_ray.config import DataConfig, LoRAConfig, PreferenceConfig, RayConfig, TrainingConfig
from aift_ray.config.preference_config import PREFERENCE_OBJECTIVES
from aift_ray.errors import ConfigError, Problem, check_arguments
from aift_ray.models.base_model import BaseModel
from aift_ray.training import trainer_args
from aift_ray.training.lora_finetuning import lora_sections
from aift_ray.training.train_rows import Items
from aift_ray.training.trainer import Trainer, check_full

# which other trainer has an objective
_TRAINERS = {
    "sft": "use FullFinetuningTrainer or LoRAFinetuningTrainer",
    "grpo": "use GRPOTrainer",
}


class PreferenceTrainer(Trainer):
    """Trains by comparing answers: DPO, IPO, ORPO, SimPO, CPO, KTO, or a reward model.

    Args:
        model: which model; its weights are read anew from its name when training begins. One
            with load_in_4bit or load_in_8bit is trained by QLoRA.
        lora_config: the adapters, also as PEFT's own `LoraConfig`; None: all weights are trained.
        training_config: with `ddp=True`, `world_size` Ray Train workers; else this process alone.
        train_dataset, eval_dataset: in place of the rows given to `train`: a torch Dataset, a
            Hugging Face dataset or an iterable, whose items are rows.
        objective: dpo, ipo, hinge, robust, orpo, simpo, cpo, kto or reward.
        preference: further settings of the objective: `{"beta": 0.1}`.
        callbacks: see `Callback`.
        data, ray: further settings of the run, as on the command line.
        overwrite: empty the output folder where it is not empty.
        rope_scaling: rows longer than the model's context: "yarn:4", as on the command line.

    Raises:
        ArgumentError: a TypeError: an argument is of another type.
        ConfigError: an objective that compares no answers; or all weights are to be trained, and
            they are held in 8 or 4 bits; or a reward model by other processes, which this one
            can't open.
    """

    def __init__(
        self,
        model: BaseModel,
        lora_config: LoRAConfig | LoraConfig | None,
        training_config: TrainingConfig,
        train_dataset: Items | None = None,
        eval_dataset: Items | None = None,
        *,
        objective: str = "dpo",
        preference: PreferenceConfig | Mapping[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        data: DataConfig | Mapping[str, Any] | None = None,
        ray: RayConfig | Mapping[str, Any] | None = None,
        overwrite: bool = False,
        rope_scaling: str | None = None,
    ) -> None:
        check_arguments(
            "PreferenceTrainer",
            model=(model, BaseModel),
            lora_config=(lora_config, (LoRAConfig, LoraConfig, type(None))),
            training_config=(training_config, TrainingConfig),
            objective=(objective, str),
        )
        if lora_config is None:
            check_full(model, "give a lora_config, or load it without load_in_8bit or load_in_4bit")
        options = trainer_args.TrainerOptions(callbacks, data, ray, overwrite, rope_scaling)
        super().__init__(model, train_dataset, eval_dataset, options)
        self.lora_config, self.training_config = lora_config, training_config
        self.objective, self.preference = objective, preference

    def train(
        self,
        train_texts: list[Any] | None = None,
        eval_texts: list[Any] | None = None,
        resume_from_checkpoint: str | None = None,
    ) -> nn.Module:
        """Train on comparisons; the rest is as of `FullFinetuningTrainer.train`.

        Args:
            train_texts, eval_texts: rows: a prompt with `chosen` and `rejected`; of objective kto
                a prompt with a completion and a `label`.
            resume_from_checkpoint: a folder checkpoints/step-N, or 'latest'.

        Returns:
            As `FullFinetuningTrainer.train`; of objective reward a model with one output a text.
        """
        return super().train(train_texts, eval_texts, resume_from_checkpoint)

    def _settings(self) -> tuple[TrainingConfig, dict[str, Any], bool]:
        if self.objective not in PREFERENCE_OBJECTIVES:
            allowed = ", ".join(PREFERENCE_OBJECTIVES)
            what = f"{self.objective!r} compares no answers: give {allowed}"
            raise ConfigError([Problem("objective", what, _TRAINERS.get(self.objective, ""))])
        sections = lora_sections(self.model, self.lora_config)
        sections |= {
            "objective": self.objective,
            "preference": trainer_args.section("preference", self.preference),
        }
        config = self.training_config
        alone = trainer_args.here(config, self.options)
        if self.objective == "reward" and not alone:
            what = "reward trains a model that scores, which this process can't open afterwards"
            remedy = "train it here, without workers, or with the command aift-ray train"
            raise ConfigError([Problem("objective", what, remedy)])
        return config, sections, alone
