"""All that is settled before an export starts; every mistake in one error."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from aift_ray.config import ExportConfig
from aift_ray.conversion import gguf_plan
from aift_ray.conversion import vllm_export as compressed
from aift_ray.conversion.compressed_layers import FORMATS
from aift_ray.conversion.gguf_plan import GgufPlan
from aift_ray.conversion.vllm_export import CompressedPlan
from aift_ray.engine.precision import DTYPES
from aift_ray.errors import ConfigError, Problem, UserError
from aift_ray.models import hub, load
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.models.lora.embedding_rows import needed_rows
from aift_ray.models.vocab_check import check_vocabulary
from aift_ray.models.wrappers import is_wrapper
from aift_ray.quantization import output_folder as output
from aift_ray.quantization import quantizer
from aift_ray.runs.run_dir import check_space

REPORT = "export.json"


@dataclass(frozen=True)
class ExportPlan:
    """An export that could start.

    Attributes:
        output: what is written, absolute.
        location, adapter: of the model, and of the adapter.
        own_dtype, dtype: of the model's stored weights; of the result's.
        gguf, compressed: what is written of it in these formats; None: another format.
    """

    config: ExportConfig
    output: Path
    location: str
    adapter: Path | None
    own_dtype: torch.dtype
    dtype: torch.dtype
    parameters: int
    gguf: GgufPlan | None = None
    compressed: CompressedPlan | None = None


def prepare(config: ExportConfig) -> ExportPlan:
    """Check everything before weights are loaded.

    Raises:
        UserError: with every mistake that was found.
    """
    path = _output(config)
    problems = _check_output(config, path)
    location, adapter, parameters = "", None, 0
    own = dtype = torch.float32
    gguf: GgufPlan | None = None
    packed: CompressedPlan | None = None
    try:
        location = quantizer.source(config.model, config.adapter)
        check_vocabulary(config.model, hub.load_tokenizer(location), hub.load_config(location))
        skeleton = load.skeleton(location)
        parameters = skeleton.num_parameters()
        own = quantizer.stored_dtype(location)
        dtype = own if config.dtype == "auto" else DTYPES[config.dtype]
        if config.adapter:
            adapter = check_adapter(config.adapter, config.model, location, skeleton, merging=True)
        problems += _changed_dtype(config, location, own, dtype)
        if config.format == "gguf":
            rows = needed_rows(adapter, skeleton) if adapter else 0
            gguf = gguf_plan.prepare(config, location, adapter, own, rows)
        if config.format in FORMATS:
            packed = compressed.prepare(config, location, adapter)
    except UserError as error:
        problems += error.problems
    if not problems:
        merged = parameters * dtype.itemsize if adapter and config.merge_adapter else 0
        needed = gguf.needed + merged if gguf else parameters * dtype.itemsize
        problems += check_space(path, needed, "the weights")
    if problems:
        raise ConfigError(problems)
    return ExportPlan(config, path, location, adapter, own, dtype, parameters, gguf, packed)


def _output(config: ExportConfig) -> Path:
    if config.output:
        return Path(config.output).expanduser().absolute()
    folder = Path("outputs", time.strftime("%Y%m%d-%H%M%S-export")).absolute()
    return folder if config.format != "gguf" else folder / f"{Path(config.model).name}.gguf"


def _check_output(config: ExportConfig, path: Path) -> list[Problem]:
    if config.format != "gguf":
        return output.check(path, config.overwrite, REPORT)
    where = f"output file {path}"
    if path.suffix != ".gguf":
        return [Problem(where, "does not end in .gguf", f"give --output {path.name}.gguf")]
    if path.is_dir():
        return [Problem(where, "is a folder", "name another file")]
    if path.is_file() and not config.overwrite:
        return [Problem(where, "is there already", "name another file, or give --overwrite")]
    if path.is_file() and not is_gguf(path):
        return [Problem(where, "is no GGUF file, and is kept", "name another file")]
    # of a folder that is there the file only is new
    parent = path.parent
    if not parent.is_dir():
        return output.check(parent, False)
    if not os.access(parent, os.W_OK):
        return [Problem(where, f"can't be written: {parent}", "name another folder")]
    return []


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _changed_dtype(
    config: ExportConfig, location: str, own: torch.dtype, dtype: torch.dtype
) -> list[Problem]:
    """A dtype that a merged language model can't have within its whole."""
    if config.format == "hf" and not config.adapter and dtype == own:
        what = f"its weights are {own} already, and no adapter is merged"
        return [Problem("dtype", what, "copy the folder, or give another dtype or an adapter")]
    if config.format != "hf" or dtype == own or not is_wrapper(hub.load_config(location)):
        return []
    what = f"{config.dtype} is not that of the whole model that the adapter goes into"
    remedy = "leave it at auto" if config.adapter else "copy the folder, or give an adapter"
    return [Problem("dtype", what, remedy)]
