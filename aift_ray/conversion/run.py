"""`aift-ray export` from its configuration to its report."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError

from aift_ray.config import ExportConfig
from aift_ray.conversion import gguf_adapter, gguf_plan
from aift_ray.conversion.gguf_plan import GgufPlan
from aift_ray.conversion.plan import REPORT, Plan, prepare
from aift_ray.engine.metrics import write_json
from aift_ray.errors import AiftError
from aift_ray.launch import display
from aift_ray.models import loading, provenance
from aift_ray.quantization import folder as output
from aift_ray.quantization import merging
from aift_ray.quantization.quantizer import check_finite, copy_tokenizer


def run(config: ExportConfig, dry_run: bool = False) -> dict[str, Any]:
    """Export as `config` says; returns the report.

    Raises:
        UserError: the input is wrong.
        AiftError: the disk is full; like after any error, nothing is left behind.
    """
    plan = prepare(config)
    _show(plan)
    if dry_run:
        return {}
    try:
        found = _write_gguf(plan, plan.gguf) if plan.gguf else _write_folder(plan)
    except (OSError, SafetensorError) as error:
        raise AiftError(f"{plan.output} could not be written: {error}") from error
    lines = [("written", f"{plan.output}, {_size(plan.output):,} bytes")]
    if "modelfile" in found:
        lines.append(("for Ollama", f"ollama create NAME -f {found['modelfile']}"))
    display.table("result", lines)
    return found


def _write_folder(plan: Plan) -> dict[str, Any]:
    report = {"settings": plan.config.model_dump(mode="json", exclude={"output", "overwrite"})}
    with output.beside(plan.output, plan.config.overwrite, REPORT) as folder:
        if plan.adapter:
            cpu = torch.device("cpu")
            merging.merge(plan.location, plan.adapter, plan.dtype, cpu, folder)
        else:
            _cast(plan, folder)
        write_json(folder / REPORT, report)
    return report


def _write_gguf(plan: Plan, gguf: GgufPlan) -> dict[str, Any]:
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
                merging.merge(plan.location, plan.adapter, plan.own_dtype, cpu, merged)
            gguf_plan.write(gguf, file, output, name, merged)
            report["modelfile"] = str(gguf_plan.beside(output))
        file.replace(output)
    return report


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.iterdir()
    return sum(file.stat().st_size for file in files if file.is_file())


def _cast(plan: Plan, folder: Path) -> None:
    """The same model in another dtype."""
    model = loading.load_model(plan.location, plan.dtype, None, None, {"": torch.device("cpu")})
    check_finite(model, plan.location)
    model.save_pretrained(folder)
    copy_tokenizer(plan.location, folder)
    provenance.record(folder)


def _show(plan: Plan) -> None:
    config = plan.config
    lines = [("model", f"{config.model}, {plan.parameters:,} parameters")]
    if plan.adapter:
        how = "merged" if config.merge_adapter else "alone, as a LoRA file"
        lines.append(("adapter", f"{config.adapter}, {how}"))
    if plan.gguf:
        words = plan.gguf.vocabulary
        kind = "f32" if plan.adapter and not config.merge_adapter else plan.gguf.outtype
        lines.append(("format", f"GGUF, {plan.gguf.family.name}, {kind}"))
        lines.append(("tokenizer", f"{words.model}, {words.pre}, {len(words.tokens):,} tokens"))
        lines += [("not the same", note) for note in plan.gguf.notes]
    else:
        lines.append(("format", f"a folder of transformers, {plan.dtype}"))
    display.table("plan", [*lines, ("output", str(plan.output))])
