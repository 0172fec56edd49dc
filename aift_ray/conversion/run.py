"""`aift-ray export` from its configuration to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from aift_ray.config import ExportConfig
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
        found = _write_folder(plan)
    except (OSError, SafetensorError) as error:
        raise AiftError(f"{plan.output} could not be written: {error}") from error
    display.table("result", [("written", str(plan.output))])
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
        lines.append(("adapter", f"{config.adapter}, merged"))
    lines += [("format", f"{config.format}, {plan.dtype}"), ("output", str(plan.output))]
    display.table("plan", lines)
