"""`aift-ray export` from its configuration to its report."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError

from aift_ray.config import ExportConfig
from aift_ray.conversion import format_table, gguf_adapter, gguf_plan, vllm_export
from aift_ray.conversion.export_plan import REPORT, ExportPlan, prepare
from aift_ray.conversion.gguf_plan import GgufPlan
from aift_ray.conversion.vllm_export import CompressedPlan
from aift_ray.engine.metrics import write_json
from aift_ray.errors import AiftError
from aift_ray.models import load, provenance
from aift_ray.quantization import merge_adapter
from aift_ray.quantization import output_folder as output
from aift_ray.quantization.measure import benchmark
from aift_ray.quantization.quantizer import check_finite, copy_tokenizer
from aift_ray.runs import terminal


def run(config: ExportConfig, dry_run: bool = False) -> dict[str, Any]:
    """Export as `config` says; returns the report.

    Raises:
        UserError: the input is wrong.
        AiftError: the disk is full; like after any error, nothing is left behind.
    """
    if config.compare:
        return format_table.run(config, dry_run)
    plan = prepare(config)
    _show(plan)
    if dry_run:
        return {}
    try:
        found = _write(plan)
    except (OSError, SafetensorError) as error:
        raise AiftError(f"{plan.output} could not be written: {error}") from error
    lines = _measured(found) if "weights_mb" in found else []
    lines += [("written", f"{plan.output}, {_size(plan.output):,} bytes")]
    if "modelfile" in found:
        lines.append(("for Ollama", f"ollama create NAME -f {found['modelfile']}"))
    terminal.table("result", lines)
    return found


def _write(plan: ExportPlan) -> dict[str, Any]:
    if plan.gguf:
        return _write_gguf(plan, plan.gguf)
    if plan.compressed:
        return _write_compressed(plan, plan.compressed)
    return _write_folder(plan)


def _write_compressed(plan: ExportPlan, packed: CompressedPlan) -> dict[str, Any]:
    """Merge, quantize, measure as `aift-ray quantize` does; the report."""
    config, cpu = plan.config, torch.device("cpu")
    settings = config.model_dump(mode="json", exclude={"output", "overwrite"})
    found: dict[str, Any] = {"settings": settings, "rows": len(packed.samples)}
    with output.beside(plan.output, config.overwrite, REPORT) as folder:
        source, merged = plan.location, folder / ".merged"
        if plan.adapter:
            merge_adapter.merge(plan.location, plan.adapter, plan.own_dtype, cpu, merged)
            source = str(merged)
        result = vllm_export.write(config, source, folder, packed)
        found["weights_mb"] = {
            "original": _size(Path(source), "*.safetensors") / 2**20,
            "quantized": _size(folder, "*.safetensors") / 2**20,
        }
        shutil.rmtree(merged, ignore_errors=True)
        if packed.samples:
            original = merge_adapter.load(plan.location, plan.adapter, plan.own_dtype, cpu)
            measured = benchmark(original, result, packed.samples, 1)
            # transformers unpacks the weights: memory and speed are vLLM's to show
            found["logit_difference"] = measured["logit_difference"]
            found["perplexity"] = {
                name: measured[name]["perplexity"] for name in ("original", "quantized")
            }
        write_json(folder / REPORT, found)
    return found


def _measured(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What the bits save and cost, for a table."""
    form = "{:,.1f} -> {:,.1f}"
    lines = [("weights (MiB)", form.format(*found["weights_mb"].values()))]
    if found.get("perplexity", {}).get("original") is not None:
        first, second = found["perplexity"].values()
        lines.append(("perplexity", f"{first:,.3f} -> {second:,.3f}"))
    if "logit_difference" in found:
        moved = found["logit_difference"]
        lines.append(("logits moved", f"{moved['mean']:.4f} mean, {moved['max']:.3f} max"))
    return lines


def _write_folder(plan: ExportPlan) -> dict[str, Any]:
    settings = plan.config.model_dump(mode="json", exclude={"output", "overwrite"})
    report: dict[str, Any] = {"settings": settings}
    with output.beside(plan.output, plan.config.overwrite, REPORT) as folder:
        if plan.adapter:
            cpu = torch.device("cpu")
            merge_adapter.merge(plan.location, plan.adapter, plan.dtype, cpu, folder)
        else:
            _cast(plan, folder)
        write_json(folder / REPORT, report)
    return report


def _write_gguf(plan: ExportPlan, gguf: GgufPlan) -> dict[str, Any]:
    """A file beside that becomes the result when all went well."""
    output, name = plan.output, Path(plan.config.model).name
    output.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"file": str(output), "notes": gguf.notes}
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        file = Path(scratch, output.name)
        if plan.adapter and not plan.config.merge_adapter:
            gguf_adapter.write(file, name, plan.adapter, gguf.family, gguf.targets)
        else:
            merged = Path(scratch, "merged") if plan.adapter else None
            if plan.adapter and merged:
                cpu = torch.device("cpu")
                merge_adapter.merge(plan.location, plan.adapter, plan.own_dtype, cpu, merged)
            gguf_plan.write(gguf, file, output, name, merged)
            report["modelfile"] = str(gguf_plan.beside(output))
        file.replace(output)
    return report


def _size(path: Path, pattern: str = "*") -> int:
    files = [path] if path.is_file() else path.glob(pattern)
    return sum(file.stat().st_size for file in files if file.is_file())


def _cast(plan: ExportPlan, folder: Path) -> None:
    """The same model in another dtype."""
    model = load.load_model(plan.location, plan.dtype, None, None, {"": torch.device("cpu")})
    check_finite(model, plan.location)
    model.save_pretrained(folder)
    copy_tokenizer(plan.location, folder)
    provenance.record(folder)


def _show(plan: ExportPlan) -> None:
    config = plan.config
    lines = [("model", f"{config.model}, {plan.parameters:,} parameters")]
    if plan.adapter:
        how = "merged" if config.merge_adapter else "alone, as a LoRA file"
        lines.append(("adapter", f"{config.adapter}, {how}"))
    if plan.gguf:
        words = plan.gguf.vocabulary
        kind = "f32" if plan.adapter and not config.merge_adapter else plan.gguf.outtype
        lines.append(("format", f"GGUF, {plan.gguf.family.name}, {kind}"))
        told = "that of the base's file"
        if words:
            told = f"{words.model}, {words.pre}, {len(words.tokens):,} tokens"
        lines.append(("tokenizer", told))
        lines += [("not the same", note) for note in plan.gguf.notes]
    elif plan.compressed:
        lines += _compressed(config, plan.compressed)
    else:
        lines.append(("format", f"a folder of transformers, {plan.dtype}"))
    terminal.table("plan", [*lines, ("output", str(plan.output))])
    if plan.compressed and plan.compressed.samples and not config.eval_files:
        note = "note: measured on the rows that ship with aift_ray, not on yours: give --eval-file"
        terminal.console.print(note, style="yellow", markup=False)


def _compressed(config: ExportConfig, packed: CompressedPlan) -> list[tuple[str, str]]:
    how = f"4 bits, groups of {packed.group}" if packed.group else "fp8, scales of activations too"
    lines = [("format", f"{config.format} as compressed-tensors, {how}")]
    if packed.calibration:
        files = ", ".join(config.calibration_files)
        lines.append(("fitted to", f"{len(packed.calibration)} rows of {files}"))
    measured = "nothing"
    if packed.samples:
        files = ", ".join(config.eval_files) or "the held-out rows that ship with aift_ray"
        measured = f"{len(packed.samples)} rows of {files}"
    return [*lines, ("measured on", measured)]
