"""All that is settled before an export starts; every mistake in one error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from aift_ray.config import ExportConfig
from aift_ray.engine.precision import DTYPES
from aift_ray.errors import ConfigError, Problem, UserError
from aift_ray.launch.output import check_space
from aift_ray.models import folders, loading
from aift_ray.models.adapter_folder import check_adapter
from aift_ray.models.vocabulary import check_vocabulary
from aift_ray.models.wrappers import is_wrapper
from aift_ray.quantization import folder as output
from aift_ray.quantization import quantizer

REPORT = "export.json"


@dataclass(frozen=True)
class Plan:
    """An export that could start.

    Attributes:
        output: what is written, absolute.
        location, adapter: of the model, and of the adapter.
        own_dtype, dtype: of the model's stored weights; of the result's.
    """

    config: ExportConfig
    output: Path
    location: str
    adapter: Path | None
    own_dtype: torch.dtype
    dtype: torch.dtype
    parameters: int


def prepare(config: ExportConfig) -> Plan:
    """Check everything before weights are loaded.

    Raises:
        UserError: with every mistake that was found.
    """
    path = _output(config)
    problems = _check_output(config, path)
    location, adapter, parameters = "", None, 0
    own = dtype = torch.float32
    try:
        location = quantizer.source(config.model)
        check_vocabulary(
            config.model, folders.load_tokenizer(location), folders.load_config(location)
        )
        skeleton = loading.skeleton(location)
        parameters = skeleton.num_parameters()
        own = quantizer.stored_dtype(location)
        dtype = own if config.dtype == "auto" else DTYPES[config.dtype]
        if config.adapter:
            adapter = check_adapter(config.adapter, config.model, location, skeleton, merging=True)
        problems += _changed_dtype(config, location, own, dtype)
    except UserError as error:
        problems += error.problems
    if not problems:
        problems += check_space(path, parameters * dtype.itemsize, "the weights")
    if problems:
        raise ConfigError(problems)
    return Plan(config, path, location, adapter, own, dtype, parameters)


def _output(config: ExportConfig) -> Path:
    if config.output:
        return Path(config.output).expanduser().absolute()
    return Path("outputs", time.strftime("%Y%m%d-%H%M%S-export")).absolute()


def _check_output(config: ExportConfig, path: Path) -> list[Problem]:
    return output.check(path, config.overwrite, REPORT)


def _changed_dtype(
    config: ExportConfig, location: str, own: torch.dtype, dtype: torch.dtype
) -> list[Problem]:
    """A dtype that a merged language model can't have within its whole."""
    if config.format == "hf" and not config.adapter and dtype == own:
        what = f"its weights are {own} already, and no adapter is merged"
        return [Problem("dtype", what, "copy the folder, or give another dtype or an adapter")]
    if config.format != "hf" or dtype == own or not is_wrapper(folders.load_config(location)):
        return []
    what = f"{config.dtype} is not that of the whole model that the adapter goes into"
    return [Problem("dtype", what, "leave it at auto")]
