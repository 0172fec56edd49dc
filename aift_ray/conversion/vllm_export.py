"""Weights in 4 bits by GPTQ or AWQ, or in fp8, as compressed-tensors: what vLLM loads.

llm-compressor computes them. It is no dependency: its own pin of transformers is older than that of
this package, with which it was seen to work.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from aift_ray.config import ExportConfig
from aift_ray.conversion import compressed_layers, format_support, llmcompressor_compat
from aift_ray.errors import ConfigError, Problem
from aift_ray.models import provenance
from aift_ray.quantization.measure import Sample
from aift_ray.quantization.quantize_plan import read_samples
from aift_ray.quantization.quantizer import copy_tokenizer

INSTALL = (
    "pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 auto-round==0.15.1 "
    "loguru datasets dill multiprocess xxhash nvidia-ml-py"
)


@dataclass(frozen=True)
class CompressedPlan:
    """A model in compressed-tensors that could be written.

    Attributes:
        group: weights of a row that share a scale; 0: each row has one.
        calibration, samples: rows that it is fitted to, and measured on.
    """

    group: int
    calibration: list[Sample]
    samples: list[Sample]


def prepare(config: ExportConfig, location: str, adapter: Path | None) -> CompressedPlan:
    """Look at what is installed, the layers and the rows.

    Raises:
        UserError: with everything that speaks against it.
    """
    problems = missing(config)
    if what := compressed_layers.unwritable(config.format, location):
        problems.append(format_support.refused(config, location, what))
    if problems:
        raise ConfigError(problems)
    group = compressed_layers.group_size(config.format, location)
    # the template that an adapter was trained with lies beside it
    own = adapter if adapter and (adapter / "tokenizer_config.json").is_file() else location
    length = config.sequence_length
    most = config.calibration_rows if config.calibration_files else 0
    calibration = read_samples(config.calibration_files, most, length, str(own))
    samples = read_samples(config.eval_files, config.eval_rows, length, str(own))
    return CompressedPlan(group, calibration, samples)


def missing(config: ExportConfig) -> list[Problem]:
    """What is not installed."""
    if compressed_layers.installed():
        return []
    what = f"{config.format} is computed by llm-compressor, which is not installed"
    return [Problem("format", what, INSTALL)]


def write(config: ExportConfig, source: str, folder: Path, plan: CompressedPlan) -> PreTrainedModel:
    """Quantize a model and save it; the model as `from_pretrained(folder)` gives it."""
    from datasets import Dataset
    from llmcompressor import oneshot

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    given: dict[str, Any] = {}
    if plan.calibration:
        ids = [sample.ids[0].tolist() for sample in plan.calibration]
        columns = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
        longest = max(map(len, ids))
        given = {"dataset": Dataset.from_dict(columns), "max_seq_length": longest}
        given["num_calibration_samples"] = len(ids)
    with llmcompressor_compat.without_pinned_memory():
        oneshot(model=model, recipe=_recipe(config.format, plan.group), **given)
    with warnings.catch_warnings():
        # of offloaded modules, which is how llm-compressor holds a model
        warnings.simplefilter("ignore", UserWarning)
        model.save_pretrained(folder, save_compressed=True)
    copy_tokenizer(source, folder)
    provenance.record(folder)
    del model
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    loaded.eval()
    return loaded


def _recipe(kind: str, group: int) -> list[Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    ignored = {"ignore": ["lm_head"]}
    if kind == "fp8":
        return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", **ignored)]
    weights = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=group, symmetric=True
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    groups = {"group_0": scheme}
    if kind == "awq":
        # symmetric: transformers does not read packed zero points
        from llmcompressor.modifiers.transform.awq import AWQModifier

        return [AWQModifier(), QuantizationModifier(config_groups=groups, **ignored)]
    return [GPTQModifier(config_groups=groups, **ignored)]
