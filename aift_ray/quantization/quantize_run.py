"""`aift-ray quantize` from its configuration to its report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from aift_ray.config import QuantizeConfig
from aift_ray.errors import AiftError
from aift_ray.quantization import merge_adapter, quantize_report, quantizer
from aift_ray.quantization import output_folder as output
from aift_ray.quantization.measure import benchmark, logit_difference
from aift_ray.quantization.quantize_plan import QuantizePlan, prepare
from aift_ray.runs import terminal


def run(config: QuantizeConfig, dry_run: bool = False) -> dict[str, Any]:
    """Quantize as `config` says; returns the report.

    Raises:
        UserError: the input is wrong.
        AiftError: the memory or the disk is full; like after any error, nothing is left behind.
    """
    plan = prepare(config)
    _show(plan)
    if dry_run:
        return {}
    try:
        with output.beside(plan.output, config.overwrite) as folder:
            found = _work(plan, folder)
            quantize_report.write(folder, found)
    except torch.OutOfMemoryError as error:
        hold = "" if not plan.samples else "--eval-rows 0, which holds one model at a time, or "
        raise AiftError(f"{plan.device} is out of memory: try {hold}--device cpu") from error
    except (OSError, SafetensorError) as error:
        raise AiftError(f"{plan.output} could not be written: {error}") from error
    lines = quantize_report.rows(found) if plan.samples else []
    terminal.table("result", [*lines, ("written", str(plan.output))])
    return found


def _work(plan: QuantizePlan, folder: Path) -> dict[str, Any]:
    """Merge, quantize, measure; the report."""
    settings = plan.config.model_dump(mode="json", exclude={"output_dir", "overwrite"})
    tokens = sum(sample.ids.numel() for sample in plan.samples)
    found: dict[str, Any] = {"settings": settings, "device": str(plan.device)}
    found |= {"rows": len(plan.samples), "tokens": tokens}
    original: Any = None
    if plan.samples:
        original = merge_adapter.load(plan.location, plan.adapter, plan.own_dtype, plan.device)
    location, result, moved = plan.location, original, {}
    if plan.adapter:
        merged = folder / ".merged" if plan.quantization else folder
        dtype = plan.own_dtype if plan.quantization else plan.dtype
        result = merge_adapter.merge(plan.location, plan.adapter, dtype, plan.device, merged)
        location = str(merged)
        if original:
            moved["merged"] = logit_difference(original, result, plan.samples)
    if plan.quantization:
        # a merged model is read from its folder again
        del result
        result = quantizer.quantize(location, plan.quantization, plan.device, folder)
        shutil.rmtree(folder / ".merged", ignore_errors=True)
        if moved:
            moved["on_quantized_base"] = logit_difference(_unmerged(plan), result, plan.samples)
    if original:
        found |= benchmark(original, result, plan.samples, plan.config.num_runs)
    return found | ({"merging": moved} if moved else {})


def _unmerged(plan: QuantizePlan) -> torch.nn.Module:
    """The adapter on the quantized base, which is what QLoRA trains."""
    return merge_adapter.load(
        plan.location, plan.adapter, plan.dtype, plan.device, plan.quantization
    )


def _show(plan: QuantizePlan) -> None:
    config, bits = plan.config, plan.config.bits
    how = {
        4: f"4 bits, {config.quant_type}" + ", double quantization" * config.double_quant,
        8: f"8 bits, threshold {config.threshold:g}",
        16: "merge only",
    }
    measured = "nothing"
    if plan.samples:
        tokens = sum(sample.ids.numel() for sample in plan.samples)
        files = ", ".join(config.eval_files) or "the held-out rows that ship with aift_ray"
        measured = f"{len(plan.samples)} rows, {tokens:,} tokens of {files}"
    lines = [("model", f"{config.model}, {plan.parameters:,} parameters")]
    if plan.adapter:
        lines.append(("adapter", f"{config.adapter}, merged first"))
    rest = f"all else in {plan.dtype}"
    if plan.experts and plan.quantization:
        rest += f", {plan.experts:,} weights of experts too: transformers reads them so only"
    lines += [
        ("how", f"{how[bits]}; {rest}"),
        ("device", str(plan.device)),
        ("measured on", measured),
        ("output", str(plan.output)),
    ]
    terminal.table("plan", lines)
    if plan.samples and not config.eval_files:
        note = "note: measured on the rows that ship with aift_ray, not on yours: give --eval-file"
        terminal.console.print(note, style="yellow", markup=False)
