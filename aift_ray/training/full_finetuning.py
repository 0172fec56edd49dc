"""`FullFinetuningTrainer`: all weights are trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from aift_ray.config import DataConfig, RayConfig, TrainingConfig
from aift_ray.errors import check_arguments
from aift_ray.models.base_model import BaseModel
from aift_ray.training import trainer_args
from aift_ray.training.train_rows import Items
from aift_ray.training.trainer import Trainer, check_full


class FullFinetuningTrainer(Trainer):
    """Trains all weights of a model.

    Args:
        model: which model; its weights are read anew from its name when training begins.
        config: with `ddp=True`, `world_size` Ray Train workers; else this process alone.
        train_dataset, eval_dataset: in place of the texts given to `train`: a `TextDataset`,
            another torch Dataset, or an iterable. Its items are texts, rows, or token ids
            (`input_ids`, with `labels` and `attention_mask` where some are not trained).
        use_accelerate: join the group that `accelerate launch` has started; False: this process
            alone, on one device, whoever started it. Both give the same losses.
        callbacks: see `Callback`.
        data, ray: further settings of the run, as on the command line: `data={"packing": "fill"}`,
            `ray={"num_workers": 2}`. Files named in `data` take the place of texts.
        overwrite: empty the output folder where it is not empty.
        rope_scaling: rows longer than the model's context: "yarn:4", as on the command line.

    Raises:
        ArgumentError: a TypeError: an argument is of another type.
        ConfigError: the model's weights are held in 8 or 4 bits.
    """

    def __init__(
        self,
        model: BaseModel,
        config: TrainingConfig,
        train_dataset: Items | None = None,
        eval_dataset: Items | None = None,
        use_accelerate: bool = True,
        *,
        callbacks: Sequence[Any] = (),
        data: DataConfig | Mapping[str, Any] | None = None,
        ray: RayConfig | Mapping[str, Any] | None = None,
        overwrite: bool = False,
        rope_scaling: str | None = None,
    ) -> None:
        check_arguments(
            "FullFinetuningTrainer",
            model=(model, BaseModel),
            config=(config, TrainingConfig),
            use_accelerate=(use_accelerate, bool),
        )
        check_full(
            model, "load it without load_in_8bit or load_in_4bit, or use LoRAFinetuningTrainer"
        )
        options = trainer_args.TrainerOptions(callbacks, data, ray, overwrite, rope_scaling)
        super().__init__(model, train_dataset, eval_dataset, options)
        self.config, self.use_accelerate = config, use_accelerate

    def _settings(self) -> tuple[TrainingConfig, dict[str, Any], bool]:
        config, grouped = self.config, int(os.environ.get("WORLD_SIZE", "1")) > 1
        if self.use_accelerate and grouped and config.local_rank < 0:
            config = config.model_copy(update={"local_rank": int(os.environ["LOCAL_RANK"])})
        return config, {"method": "full"}, trainer_args.here(config, self.options)
