"""The report of a run that generates completions: one HTML file without external resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aift_ray.engine.metrics import METRICS, read, replace
from aift_ray.utils.report_page import report_page

# the completions of evaluations, a line each
SAMPLES = "samples.jsonl"
REPORT = "report.html"
_SCRIPT = Path(__file__).with_suffix(".js")
# of a prompt or a completion, evaluations that are shown, and points of a curve
_CHARACTERS, _EVALUATIONS, _POINTS = 2000, 20, 1000
_CURVES = {
    "reward": ("reward", "eval_reward"),
    "length": ("completions/mean_length", "eval_completions/mean_length"),
    "entropy": ("entropy",),
    "kl": ("kl",),
}


def write(folder: Path) -> None:
    """Write the report of a run's folder; nothing where nothing was evaluated."""
    samples = read(folder / SAMPLES) if (folder / SAMPLES).is_file() else []
    if not samples:
        return
    lines = read(folder / METRICS)
    curves = {
        label: [{"name": name, "points": _thinned(_points(lines, name))} for name in names]
        for label, names in _CURVES.items()
    }
    content = {"run": folder.name, "curves": curves, "prompts": _by_prompt(samples)}
    replace(folder / REPORT, report_page(_SCRIPT, content))


def _points(lines: list[dict[str, Any]], name: str) -> list[Any]:
    return [[line["step"], line[name]] for line in lines if line.get(name) is not None]


def _thinned(points: list[Any], most: int = _POINTS) -> list[Any]:
    """Evenly chosen ones, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[at * (len(points) - 1) // (most - 1)] for at in range(most)]


def _by_prompt(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The completions of each prompt, by evaluation."""
    steps = set(_thinned(sorted({line["step"] for line in samples}), _EVALUATIONS))
    found: dict[str, dict[str, Any]] = {}
    for line in samples:
        if line["step"] not in steps:
            continue
        asked = line["prompt"]
        if not isinstance(asked, str):
            asked = "\n".join(f"[{turn['role']}] {turn['content']}" for turn in asked)
        held = found.setdefault(asked, {"prompt": asked[-_CHARACTERS:], "completions": []})
        said = {name: line[name] for name in ("step", "reward", "rewards")}
        held["completions"].append({**said, "text": line["completion"][:_CHARACTERS]})
    return list(found.values())
