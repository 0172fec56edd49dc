"""Formats side by side: what each costs in size, perplexity and logits, on a user's own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from aift_ray.config import ExportConfig
from aift_ray.config.export_config import BITSANDBYTES, FITTED
from aift_ray.conversion import (
    compressed_layers,
    format_support,
    gguf_families,
    gguf_file,
    gguf_tensors,
    gguf_types,
    vllm_export,
)
from aift_ray.conversion.vllm_export import CompressedPlan
from aift_ray.engine.metrics import write_json
from aift_ray.engine.precision import DTYPES
from aift_ray.errors import ConfigError, ModelError, Problem, UserError
from aift_ray.models import fingerprint, hub, load
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.hub import out_of_reach
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.quantization import merge_adapter, quantizer, reopening
from aift_ray.quantization.measure import Sample, benchmark
from aift_ray.quantization.quantize_plan import read_samples
from aift_ray.runs import terminal
from aift_ray.runs.run_dir import check_space

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LEFT_OUT = "leave it out"
_CPU = torch.device("cpu")
# weights that are rounded at a time
_PIECE = 2**24
# a model in a format, and the bytes of its weights
Built = tuple[torch.nn.Module, int]


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison that could start.

    Attributes:
        output: the JSON file of the table.
        calibration, samples: rows that gptq and awq are fitted to, and that all formats are
            measured on.
        group: of those, see `compressed_layers.group_size`.
    """

    config: ExportConfig
    output: Path
    location: str
    adapter: Path | None
    own_dtype: torch.dtype
    parameters: int
    samples: list[Sample]
    calibration: list[Sample]
    group: int


def prepare(config: ExportConfig) -> ComparisonPlan:
    """Check everything before weights are loaded.

    Raises:
        UserError: with every mistake that was found.
    """
    path = Path(config.output or "outputs/formats.json").expanduser().absolute()
    problems = _check_output(config, path)
    location, adapter, parameters, group = "", None, 0, 0
    fitted = [name for name in config.compare if name in FITTED]
    own = torch.float32
    try:
        location = quantizer.source(config.model, config.adapter)
        skeleton = load.skeleton(location)
        parameters, own = skeleton.num_parameters(), quantizer.stored_dtype(location)
        if config.adapter:
            adapter = check_adapter(config.adapter, config.model, location, skeleton, merging=True)
        problems += _unavailable(config, location, skeleton)
        for name in fitted if not problems else ():
            group = compressed_layers.group_size(name, location)
    except UserError as error:
        problems += error.problems
    problems += check_space(path, 2 * parameters * own.itemsize, "the weights") if own else []
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    prompts = adapter if adapter and (adapter / "tokenizer_config.json").is_file() else location
    rows = (config.sequence_length, str(prompts))
    samples = read_samples(config.eval_files, config.eval_rows, *rows)
    most = config.calibration_rows if fitted else 0
    calibration = read_samples(config.calibration_files, most, *rows)
    found = (samples, calibration, group)
    return ComparisonPlan(config, path, location, adapter, own, parameters, *found)


def run(config: ExportConfig, dry_run: bool = False) -> dict[str, Any]:
    """Measure each format and write the table; returns it.

    Raises:
        UserError: the input is wrong.
    """
    plan = prepare(config)
    _show(plan)
    if dry_run:
        return {}
    settings = config.model_dump(mode="json", exclude={"output", "overwrite"})
    found: dict[str, Any] = {"settings": settings, "rows": len(plan.samples), "formats": {}}
    original = merge_adapter.load(plan.location, plan.adapter, torch.float32, _CPU)
    for name, model, size in built(plan):
        measured = benchmark(original, model, plan.samples, 1)
        first = {"weights_mb": plan.parameters * plan.own_dtype.itemsize / 2**20}
        found["formats"].setdefault("original", first | _numbers(measured, "original"))
        found["formats"][name] = {"weights_mb": size / 2**20} | _numbers(measured, "quantized")
        terminal.console.print(f"{name}: measured", style="dim", markup=False)
    plan.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(plan.output, found)
    terminal.table("formats", [(name, _line(each)) for name, each in found["formats"].items()])
    terminal.console.print(f"written to {plan.output}", markup=False)
    return found


def _numbers(measured: dict[str, Any], which: str) -> dict[str, Any]:
    own = {"perplexity": measured[which]["perplexity"]}
    if which == "quantized":
        own["logit_difference"] = measured["logit_difference"]
    return own


def _line(numbers: dict[str, Any]) -> str:
    text = f"{numbers['weights_mb']:,.1f} MiB"
    if numbers["perplexity"] is not None:
        text += f", perplexity {numbers['perplexity']:,.3f}"
    if moved := numbers.get("logit_difference"):
        text += f", logits moved {moved['mean']:.4f} mean, {moved['max']:.3f} max"
    return text


def _check_output(config: ExportConfig, path: Path) -> list[Problem]:
    where = f"output file {path}"
    if path.suffix != ".json":
        return [Problem(where, "does not end in .json", f"give --output {path.name}.json")]
    if path.exists() and not config.overwrite:
        return [Problem(where, "is there already", "name another file, or give --overwrite")]
    return []


def _unavailable(config: ExportConfig, location: str, skeleton: PreTrainedModel) -> list[Problem]:
    """Formats that can't be computed here."""
    found: list[Problem] = []
    for name in config.compare:
        where = f"compare {name}"
        if name in compressed_layers.FORMATS:
            missing = vllm_export.missing(config.model_copy(update={"format": name}))
            found += [Problem(where, each.what, each.remedy) for each in missing]
            if what := compressed_layers.unwritable(name, location):
                found.append(Problem(where, what, _LEFT_OUT))
        elif name in BITSANDBYTES:
            try:
                reopening.check_family(skeleton, BITSANDBYTES[name][0])
            except ModelError as error:
                found += [Problem(where, each.what, each.remedy) for each in error.problems]
        else:
            found += gguf_types.missing(name.partition(":")[2], where)
            if fingerprint.on_disk(location) is None:
                found.append(out_of_reach(config.model))
            elif what := format_support.unwritable("gguf", location):
                found.append(Problem(where, what, _LEFT_OUT))
    return found


def built(plan: ComparisonPlan) -> Iterator[tuple[str, torch.nn.Module, int]]:
    """The model in each format, one after the other."""
    with TemporaryDirectory(prefix=".formats.", dir=_existing(plan.output.parent)) as scratch:
        source = plan.location
        if plan.adapter:
            merged = Path(scratch, "merged")
            merge_adapter.merge(plan.location, plan.adapter, plan.own_dtype, _CPU, merged)
            source = str(merged)
        for name in plan.config.compare:
            build = _builder(name)
            folder = Path(scratch, name.replace(":", "-"))
            folder.mkdir()
            yield (name, *build(plan, name, source, folder))


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _builder(name: str) -> Callable[[ComparisonPlan, str, str, Path], Built]:
    if name in compressed_layers.FORMATS:
        return _compressed
    return _bitsandbytes if name in BITSANDBYTES else _gguf


def _compressed(plan: ComparisonPlan, name: str, source: str, folder: Path) -> Built:
    fitted = plan.calibration if name in FITTED else []
    packed = CompressedPlan(plan.group if name in FITTED else 0, fitted, [])
    config = plan.config.model_copy(update={"format": name})
    return vllm_export.write(config, source, folder, packed), _weights(folder)


def _bitsandbytes(plan: ComparisonPlan, name: str, source: str, folder: Path) -> Built:
    bits, kind = BITSANDBYTES[name]
    how = Quantization(bits, compute_dtype=plan.own_dtype, kind=kind)
    return quantizer.quantize(source, how, _CPU, folder), _weights(folder)


def _gguf(plan: ComparisonPlan, name: str, source: str, folder: Path) -> Built:
    """The weights as the file would hold them, computed in fp32; the bytes of its tensors.

    Rows are quantized each by itself, so that the order in which a file has them does not matter.
    """
    outtype = name.partition(":")[2]
    config = hub.load_config(source).get_text_config(decoder=True)
    family = gguf_families.family(config)
    assert isinstance(family, gguf_families.Family)
    on_disk = fingerprint.on_disk(source)
    assert on_disk is not None
    targets = gguf_tensors.targets(on_disk, config, family)
    kinds = gguf_types.types(targets, outtype)
    model = load.load_model(source, torch.float32, None, None, {"": _CPU})
    held = {gguf_tensors.plain(own): weight for own, weight in model.state_dict().items()}
    done: set[str] = set()
    for target in targets:
        for each in target.sources:
            own = gguf_tensors.plain(each.name)
            if own in held and own not in done:
                done.add(own)
                _round(held[own], kinds[target.name])
    return model, gguf_file.size(targets, kinds)


@torch.no_grad()
def _round(weight: torch.Tensor, kind: GGMLQuantizationType) -> None:
    """Give a weight the values that it has in a type."""
    if kind == GGMLQuantizationType.F32:
        return
    if kind.name.lower() in ("f16", "bf16"):
        dtype = DTYPES["fp16" if kind == GGMLQuantizationType.F16 else "bf16"]
        weight.copy_(weight.to(dtype))
        return
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, _PIECE // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        values = dequantize(gguf_types.quantize(part.numpy().astype(np.float32), kind), kind)
        part.copy_(torch.from_numpy(values.reshape(part.shape)))


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _show(plan: ComparisonPlan) -> None:
    config = plan.config
    lines = [("model", f"{config.model}, {plan.parameters:,} parameters")]
    if plan.adapter:
        lines.append(("adapter", f"{config.adapter}, merged"))
    files = ", ".join(config.eval_files) or "the held-out rows that ship with aift_ray"
    lines += [
        ("formats", ", ".join(config.compare)),
        ("measured on", f"{len(plan.samples)} rows of {files}"),
        ("output", str(plan.output)),
    ]
    terminal.table("plan", lines)
    if not config.eval_files:
        note = "note: measured on the rows that ship with aift_ray, not on yours: give --eval-file"
        terminal.console.print(note, style="yellow", markup=False)
