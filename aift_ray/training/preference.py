"""`PreferenceTrainer`: a model learns which of two answers is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from aift_ray.config import DataConfig, LoRAConfig, PreferenceConfig, RayConfig, TrainingConfig
from aift_ray.errors import ConfigError, Problem, check_arguments
from aift_ray.models.base_model import BaseModel
from aift_ray.training import trainer_args, trainer_run
from aift_ray.training.lora_finetuning import lora_sections


class PreferenceTrainer:
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

    Raises:
        ArgumentError: a TypeError: an argument is of another type.
        ConfigError: all weights are to be trained, and they are held in 8 or 4 bits; or a reward
            model by other processes, which this one can't open.
    """

    def __init__(
        self,
        model: BaseModel,
        lora_config: LoRAConfig | LoraConfig | None,
        training_config: TrainingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        objective: str = "dpo",
        preference: PreferenceConfig | Mapping[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        data: DataConfig | Mapping[str, Any] | None = None,
        ray: RayConfig | Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        check_arguments(
            "PreferenceTrainer",
            model=(model, BaseModel),
            lora_config=(lora_config, (LoRAConfig, LoraConfig, type(None))),
            training_config=(training_config, TrainingConfig),
            objective=(objective, str),
        )
        if lora_config is None and model.quantization is not None:
            what = f"its weights are held in {model.quantization.bits} bits, which can't be trained"
            remedy = "give a lora_config, or load it without load_in_8bit or load_in_4bit"
            raise ConfigError([Problem(f"model {model.model_name}", what, remedy)])
        self.model, self.lora_config, self.training_config = model, lora_config, training_config
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.objective, self.preference = objective, preference
        self.options = trainer_args.Options(callbacks, data, ray, overwrite)

    def train(
        self,
        train_texts: list[Any] | None = None,
        eval_texts: list[Any] | None = None,
        resume_from_checkpoint: str | None = None,
    ) -> nn.Module:
        """Train; `self.model` then stands for what was trained.

        Args:
            train_texts, eval_texts: rows: a prompt with `chosen` and `rejected`; of objective kto
                a prompt with a completion and a `label`.
            resume_from_checkpoint: a folder checkpoints/step-N, or 'latest'.

        Returns:
            The trained model, in this process, in evaluation mode: PEFT's model around the base
            where adapters were trained; of objective reward a model with one output a text.

        Raises:
            ConfigError, DataError, ModelError: what is wrong, before anything has started.
            Interrupted: stopped by Ctrl-C or SIGTERM, with a checkpoint.
            TrainingError: it failed.
        """
        rows = trainer_args.Given(train_texts, eval_texts, self.train_dataset, self.eval_dataset)
        sections: dict[str, Any] = {"method": "full"}
        if self.lora_config is not None:
            sections = lora_sections(self.model, self.lora_config)
        sections |= {
            "objective": self.objective,
            "preference": trainer_args.section(self.preference),
        }
        config = self.training_config
        alone, resume = trainer_args.here(config, self.options), resume_from_checkpoint
        if self.objective == "reward" and not alone:
            what = "reward trains a model that scores, which this process can't open afterwards"
            remedy = "train it here, without workers, or with the command aift-ray train"
            raise ConfigError([Problem("objective", what, remedy)])
        return trainer_run.run(self.model, config, rows, sections, self.options, resume, alone)
