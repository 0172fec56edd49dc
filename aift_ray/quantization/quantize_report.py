"""What a quantization leaves for people and scripts: quantization.json and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aift_ray.engine.metrics import write_json
from aift_ray.quantization.output_folder import PLOT, REPORT

_PANELS = (
    ("memory_mb", "memory of the weights (MiB)", "{:,.1f}"),
    ("latency_ms_median", "one forward pass (ms), median, p95", "{:,.1f}"),
    ("tokens_per_second", "tokens read per second", "{:,.0f}"),
    ("perplexity", "perplexity", "{:,.3f}"),
)


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write quantization.json, and quantization.png where something was measured."""
    write_json(folder / REPORT, report)
    if "ratio" in report:
        _plot(folder / PLOT, report)


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The measured numbers for a table."""
    first, second, ratio = (report[name] for name in ("original", "quantized", "ratio"))
    found = []
    for name, label, form in _PANELS:
        if first[name] is not None:
            values = f"{form.format(first[name])} -> {form.format(second[name])}"
            found.append((label.removesuffix(", median, p95"), f"{values} ({ratio[name]:.2f}x)"))
    named = {"logits moved": report["logit_difference"], **_merging(report)}
    return found + [(k, f"{v['mean']:.4f} mean, {v['max']:.3f} max") for k, v in named.items()]


def _merging(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    merging = report.get("merging", {})
    if "on_quantized_base" not in merging:
        # only merged: the logits have moved by nothing else
        return {}
    labels = {
        "merged": "by merging alone",
        "on_quantized_base": "from adapter on quantized base",
    }
    return {label: merging[name] for name, label in labels.items()}


def _plot(path: Path, report: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = report["settings"]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    names = ("original", "quantized")
    panels = [panel for panel in _PANELS if report["original"][panel[0]] is not None]
    for axes, (name, label, form) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        values = [report[which][name] for which in names]
        bars = axes.bar(names, values, color=("#7aa6d8", "#c0392b"), width=0.6)
        shown = [form.format(value) for value in values]
        axes.bar_label(bars, shown, label_type="center", color="white")
        if name == "latency_ms_median":
            p95 = [report[which]["latency_ms_p95"] for which in names]
            axes.plot(names, p95, "_", color="black", markersize=28)
        axes.set_title(label, fontsize=9)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{Path(settings['model']).name}, {settings['bits']} bits", fontsize=10)
    figure.savefig(path, dpi=120)
