"""`QuantizationOptimizer`: a model in 8 or 4 bits, as the documented Python API offers it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from aift_ray.errors import ConfigError, Problem, check_arguments
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.quantization import quantizer
from aift_ray.quantization.measure import Sample, benchmark
from aift_ray.quantization.output_folder import beside


class QuantizationOptimizer:
    """Writes models in fewer bits and measures what that costs.

    Args:
        model_name_or_path: catalog name, Hub id or folder of a model that is not quantized yet.
        device: where to quantize and compute; None: a GPU where there is one.

    Raises:
        ArgumentError: a TypeError: an argument is of another type.
    """

    def __init__(self, model_name_or_path: str, device: torch.device | None = None) -> None:
        check_arguments(
            "QuantizationOptimizer",
            model_name_or_path=(model_name_or_path, (str, Path)),
            device=(device, (torch.device, str, type(None))),
        )
        self.model_name_or_path = model_name_or_path
        self.device = device if device is not None else quantizer.default_device()

    def quantize_to_8bit(
        self,
        output_dir: str,
        compute_dtype: torch.dtype = torch.float16,
        llm_int8_threshold: float = 6.0,
        llm_int8_has_fp16_weight: bool = False,
        llm_int8_enable_fp32_cpu_offload: bool = False,
    ) -> AutoModelForCausalLM:
        """Hold the linear layers in 8 bits (LLM.int8) and write the folder.

        Args:
            output_dir: a new or empty folder; gets weights, tokenizer and chat template.
            compute_dtype: dtype of all other weights and of what the layers pass on.
            llm_int8_threshold: inputs above it are multiplied in 16 bits; 0: none.
            llm_int8_has_fp16_weight: keep 16-bit weights too; not on a CPU.
            llm_int8_enable_fp32_cpu_offload: what a GPU can't hold stays in the host, in fp32;
                not on a CPU.

        Returns:
            The quantized model, as `from_pretrained(output_dir)` gives it, in evaluation mode.

        Raises:
            ConfigError: a value or folder that can't be used, or that the device can't do.
            ModelError: the model is missing, damaged, already quantized, or overflows the dtype.
        """
        quantization = Quantization(
            8,
            compute_dtype,
            threshold=llm_int8_threshold,
            fp16_weight=llm_int8_has_fp16_weight,
            cpu_offload=llm_int8_enable_fp32_cpu_offload,
        )
        return self._written(output_dir, quantization)

    def quantize_to_4bit(
        self,
        output_dir: str,
        compute_dtype: torch.dtype = torch.float16,
        quant_type: str = "nf4",
        use_double_quant: bool = True,
    ) -> AutoModelForCausalLM:
        """Hold the linear layers in 4 bits and write the folder.

        Args:
            output_dir: a new or empty folder; gets weights, tokenizer and chat template.
            compute_dtype: dtype of the products and of all other weights.
            quant_type: number format, "nf4" or "fp4".
            use_double_quant: quantize the scales too.

        Returns:
            The quantized model, as `from_pretrained(output_dir)` gives it, in evaluation mode.

        Raises:
            ConfigError: a value or folder that can't be used.
            ModelError: the model is missing, damaged, already quantized, or overflows the dtype.
        """
        quantization = Quantization(4, compute_dtype, kind=quant_type, double=use_double_quant)
        return self._written(output_dir, quantization)

    def _written(self, output_dir: str, quantization: Quantization) -> AutoModelForCausalLM:
        problems = quantization.unavailable(self.device)
        if problems:
            raise ConfigError(problems)
        location = quantizer.source(self.model_name_or_path)
        with beside(Path(output_dir)) as folder:
            model = quantizer.quantize(location, quantization, self.device, folder)
        # the documented return type is the class that loads such models
        return cast(AutoModelForCausalLM, model)

    def benchmark_quantization(
        self,
        original_model: nn.Module,
        quantized_model: nn.Module,
        test_inputs: list[torch.Tensor],
        num_runs: int = 100,
    ) -> dict[str, Any]:
        """Compare two models on the same token ids; both stay as they are.

        Args:
            test_inputs: token ids, (seq,) or (batch, seq) each, without padding.
            num_runs: timed forward passes of each model, over the inputs in turn.

        Returns:
            `original` and `quantized`, each with memory_mb (MiB), latency_ms_median,
            latency_ms_p95 (of a forward pass), tokens_per_second, perplexity (of every next
            token; None where no input has two); `ratio`, quantized by original, of each;
            `logit_difference` with max and mean.

        Raises:
            ConfigError: no inputs, inputs that are no token ids of both models, or no runs.
        """
        problems = _wrong_inputs(test_inputs, (original_model, quantized_model))
        if num_runs < 1:
            problems.append(Problem("num_runs", f"{num_runs} is not allowed, expected 1 or more"))
        if problems:
            raise ConfigError(problems)
        rows = [torch.atleast_2d(ids).long() for ids in test_inputs]
        samples = [Sample(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in rows]
        return benchmark(original_model, quantized_model, samples, num_runs)


def _wrong_inputs(inputs: Sequence[Any], models: Sequence[Any]) -> list[Problem]:
    if not inputs:
        return [Problem("test_inputs", "is empty, expected tensors of token ids")]
    sizes = [model.get_input_embeddings().num_embeddings for model in models]
    if len(set(sizes)) > 1:
        what = f"the models have vocabularies of {sizes[0]} and {sizes[1]} tokens"
        return [Problem("quantized_model", what, "give two forms of one model")]
    found = []
    for index, ids in enumerate(inputs):
        where = f"test_inputs[{index}]"
        if not torch.is_tensor(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
            kind = ids.dtype if torch.is_tensor(ids) else type(ids).__name__
            found.append(Problem(where, f"is {kind}, expected a tensor of token ids"))
        elif ids.dim() not in (1, 2) or not ids.numel():
            shape = tuple(ids.shape)
            found.append(Problem(where, f"has shape {shape}, expected (seq,) or (batch, seq)"))
        elif ids.min() < 0 or ids.max() >= sizes[0]:
            what = f"holds ids outside the vocabulary of {sizes[0]} tokens"
            found.append(Problem(where, what))
    return found
