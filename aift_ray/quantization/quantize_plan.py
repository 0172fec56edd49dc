"""All that is settled before a quantization starts; every mistake in one error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aift_ray.config import DataConfig, QuantizeConfig
from aift_ray.data import token_cache
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.engine.precision import DTYPES
from aift_ray.errors import ConfigError, Problem, UserError
from aift_ray.models import hub, load
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.families.experts import expert_parameters
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.models.vocab_check import check_vocabulary
from aift_ray.models.wrappers import is_wrapper
from aift_ray.quantization import output_folder as output
from aift_ray.quantization import quantizer, reopening
from aift_ray.quantization.measure import Sample
from aift_ray.runs.run_dir import check_space

EVAL_FILE = Path(token_cache.__file__).parent / "assets" / "keitai" / "eval.jsonl"


@dataclass(frozen=True)
class QuantizePlan:
    """A quantization that could start.

    Attributes:
        location, adapter: of the model, and of the adapter that is merged first.
        own_dtype, dtype: of the model's stored weights; of the result's unquantized ones.
        quantization: None: only merge.
        samples: what is measured on; empty: nothing is.
        experts: weights of experts, which a folder that transformers reads holds as they are.
    """

    config: QuantizeConfig
    output: Path
    location: str
    adapter: Path | None
    device: torch.device
    own_dtype: torch.dtype
    dtype: torch.dtype
    quantization: Quantization | None
    samples: list[Sample]
    parameters: int
    experts: int


def prepare(config: QuantizeConfig) -> QuantizePlan:
    """Check everything before weights are loaded.

    Raises:
        UserError: with every mistake that was found.
    """
    folder = Path(config.output_dir).expanduser() if config.output_dir else output.default_folder()
    problems = output.check(folder, config.overwrite)
    device = _device(config, problems)
    location, adapter, samples, parameters, experts = "", None, [], 0, 0
    own = dtype = torch.float32
    quantization = None
    try:
        location = quantizer.source(config.model, config.adapter)
        tokenizer = hub.load_tokenizer(location)
        check_vocabulary(config.model, tokenizer, hub.load_config(location))
        skeleton = load.skeleton(location)
        parameters = load.skeleton(location, whole=True).num_parameters()
        if config.bits != 16:
            reopening.check_family(skeleton, config.bits)
        experts = sum(weight.numel() for weight in expert_parameters(skeleton).values())
        own = quantizer.stored_dtype(location)
        dtype = own if config.compute_dtype == "auto" else DTYPES[config.compute_dtype]
        quantization = _quantization(config, dtype)
        problems += quantization.unavailable(device) if quantization else []
        if config.adapter:
            adapter = check_adapter(config.adapter, config.model, location, skeleton, merging=True)
            problems += _changed_dtype(config, location, own, dtype)
    except UserError as error:
        problems += error.problems
    if not problems:
        # merged weights lie beside the result for a while
        needed = parameters * dtype.itemsize * 2
        problems += check_space(folder.absolute(), needed, "the weights")
    if problems:
        raise ConfigError(problems)
    # the template that an adapter was trained with lies beside it
    prompts = adapter if adapter and (adapter / "tokenizer_config.json").is_file() else location
    length = config.sequence_length
    samples = read_samples(config.eval_files, config.eval_rows, length, str(prompts))
    return QuantizePlan(
        config,
        folder.absolute(),
        location,
        adapter,
        device,
        own,
        dtype,
        quantization,
        samples,
        parameters,
        experts,
    )


def _device(config: QuantizeConfig, problems: list[Problem]) -> torch.device:
    if config.device == "auto":
        return quantizer.default_device()
    if config.device == "cuda" and not torch.cuda.is_available():
        problems.append(Problem("device", "there is no CUDA device", "give --device cpu"))
    return torch.device(config.device)


def _changed_dtype(
    config: QuantizeConfig, location: str, own: torch.dtype, dtype: torch.dtype
) -> list[Problem]:
    """A dtype that a merged language model can't have within its whole."""
    if config.bits != 16 or dtype == own or not is_wrapper(hub.load_config(location)):
        return []
    what = f"{config.compute_dtype} is not that of the whole model that the adapter goes into"
    return [Problem("compute_dtype", what, "leave it at auto")]


def _quantization(config: QuantizeConfig, dtype: torch.dtype) -> Quantization | None:
    if config.bits == 16:
        return None
    return Quantization(
        config.bits,
        compute_dtype=dtype,
        kind=config.quant_type,
        double=config.double_quant,
        threshold=config.threshold,
        fp16_weight=config.fp16_weight,
        cpu_offload=config.cpu_offload,
    )


def read_samples(files: list[str], most: int, length: int, location: str) -> list[Sample]:
    """Rows to measure on, spread evenly over the files, with the answers as targets.

    Args:
        files: as for training; none: the rows that ship with aift_ray.
        length: tokens of a row at most.
        location: of the tokenizer.
    """
    if most == 0:
        return []
    encoder = PromptEncoder(hub.load_tokenizer(location))
    data = DataConfig(train_files=files or [str(EVAL_FILE)])
    rows = token_cache.prepare(data, encoder, length).rows("train")
    number = min(most, len(rows))
    chosen = np.linspace(0, len(rows) - 1, number).round().astype(int)
    found = []
    for index in chosen.tolist():
        ids, flags = rows.row(index)
        found.append(
            Sample(torch.tensor(ids[None], dtype=torch.int64), torch.tensor(flags[None]).bool())
        )
    return found
