"""What the trainers share: from a model, settings and texts to a run and the trained model."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from aift_ray.commandline import validated
from aift_ray.config import ParallelConfig, RunConfig, TrainingConfig
from aift_ray.data import memory_rows
from aift_ray.errors import ConfigError, ModelError, Problem, TrainingError
from aift_ray.launch import training_run
from aift_ray.models import hub
from aift_ray.models.base_model import BaseModel
from aift_ray.models.load import weight_bytes
from aift_ray.models.lora.attach import ready_to_answer
from aift_ray.runs import resume_check
from aift_ray.training.python_messages import in_python
from aift_ray.training.trainer_args import TrainerOptions, TrainerRows
from aift_ray.utils.gpu_utils import clear_gpu_memory
from aift_ray.utils.process_state import environment_kept, unchanged
from aift_ray.utils.quiet import quiet

with environment_kept():
    from aift_ray.launch import training_run
    from aift_ray.ray_backend import settle_environment
    from aift_ray.runs import resume_check

_LOG = logging.getLogger(__name__)
# at opening a trained model, and seconds between them
_ATTEMPTS, _PAUSE = 3, 5.0


def run(
    model: BaseModel,
    config: TrainingConfig,
    given: TrainerRows,
    sections: dict[str, Any],
    options: TrainerOptions,
    resume: str | None,
    alone: bool,
) -> nn.Module:
    """Train the model of `model`'s name; `model` then stands for what was trained.

    Args:
        given: the rows.
        sections: the settings beside those of `config`: method, lora, objective.
        resume: 'latest' or a checkpoint folder.
        alone: in this process alone; else on Ray workers, or as one of torchrun's processes.

    Raises:
        AiftError: as the command, in the words of Python.
    """
    with unchanged(), in_python():
        settle_environment()
        sections |= options.sections()
        sections["data"], rows = given.settings(sections["data"], model.model_name)
        with memory_rows.holding(rows):
            return _run(model, config, sections, options.callbacks, resume, alone)


def _run(
    model: BaseModel,
    config: TrainingConfig,
    sections: dict[str, Any],
    callbacks: Sequence[Any],
    resume: str | None,
    alone: bool,
) -> nn.Module:
    settings: RunConfig = validated(
        {
            "model": model.model_name,
            "training": parts_of(config, TrainingConfig),
            # of a MultiGPUTrainingConfig
            "parallel": parts_of(config, ParallelConfig),
            "output_dir": str(_folder(config, resume)),
            "resume": resume,
        }
        | sections
    )
    folder = Path(str(settings.output_dir))
    # the weights are read anew: two copies would not fit
    model.model = None
    clear_gpu_memory()
    quiet()
    done = resume_check.done(settings, folder)
    if not alone or done:
        _check_room(model)
        training_run.run(settings, callbacks=callbacks)
        model.model_name, model.tokenizer = str(folder / "model"), None
        return _opened(model)
    trained = training_run.run_here(settings, model.device, callbacks)
    model.model_name, model.tokenizer = str(folder / "model"), None
    ready_to_answer(trained)
    trained.eval()
    model.model = trained  # type: ignore[assignment]
    return trained


def _check_room(model: BaseModel) -> None:
    """Refuse a model that this process could not open once others have trained it.

    Raises:
        ConfigError: its weights are larger than all the memory of its device and of the host.
    """
    bits = model.quantization.bits if model.quantization else None
    need = weight_bytes(hub.resolve(model.model_name), model.torch_dtype, bits)
    room = psutil.virtual_memory().total
    if model.device.type == "cuda":
        room = max(room, torch.cuda.mem_get_info(model.device)[1])
    if need > room:
        what = f"its weights need {need / 2**30:.1f} GiB, and this process, which opens the trained"
        what += f" model, can have {room / 2**30:.1f} GiB"
        remedy = "train it with the command aift-ray train, which does not open it"
        raise ConfigError([Problem(f"model {model.model_name}", what, remedy)])


def _opened(model: BaseModel) -> nn.Module:
    """The trained model, on the CPU where its device has no room for it.

    Raises:
        TrainingError: there is no room here at all; with where the model is.
    """
    problem = ""
    for attempt in range(_ATTEMPTS + 1):
        if attempt == _ATTEMPTS and model.device.type != "cpu":
            _LOG.warning("%s; the trained model is loaded on the CPU", problem)
            model.device = torch.device("cpu")
        try:
            return model.load_model()
        except (ModelError, MemoryError, torch.OutOfMemoryError) as error:
            problem = str(error)
            clear_gpu_memory()
            if attempt < _ATTEMPTS:
                # the memory of workers comes back a while after they have ended
                time.sleep(_PAUSE)
    text = f"the run is done, and its model is in {model.model_name}; it can't be loaded here"
    raise TrainingError(f"{text}: {problem}")


def parts_of(config: TrainingConfig, section: type[Any]) -> dict[str, Any]:
    """The fields of `section` that were set in `config`."""
    values: dict[str, Any] = config.model_dump(exclude_unset=True)
    return {name: value for name, value in values.items() if name in section.model_fields}


def _folder(config: TrainingConfig, resume: str | None) -> Path:
    """The run's folder: the one that was named, else a numbered one under the default."""
    parent = Path(config.output_dir).expanduser().absolute()
    if "output_dir" in config.model_fields_set:
        return parent
    named = Path(resume).expanduser().absolute() if resume and resume != "latest" else None
    if named and named.parent.name == "checkpoints":
        return named.parents[1]
    if config.local_rank >= 0:
        what = "is left out: each process of the group would choose a folder of its own"
        raise ConfigError([Problem("training.output_dir", what, "name one")])
    runs = parent.glob("run-*") if parent.is_dir() else ()
    numbers = [int(match[1]) for path in runs if (match := re.fullmatch(r"run-(\d+)", path.name))]
    last = max(numbers, default=0)
    return parent / f"run-{max(last, 1) if resume == 'latest' else last + 1}"
