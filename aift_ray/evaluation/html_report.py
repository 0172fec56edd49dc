"""The report of an evaluation: one HTML file without external resources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aift_ray.config.tasks_config import LOWER_IS_BETTER
from aift_ray.evaluation.evaluator import Sample
from aift_ray.tasks.scores import row_value
from aift_ray.utils.report_page import report_page

_SCRIPT = Path(__file__).with_name("evaluation_report.js")
# rows of a task that the report shows, those on which the models differ first
_ROWS = 500
# characters of a prompt or an answer
_CHARACTERS = 2000


def html(found: Mapping[str, Any], samples: Mapping[tuple[str, str], Mapping[int, Sample]]) -> str:
    """The report.

    Args:
        found: what results.json holds.
        samples: of each (model, task), by row.
    """
    content = {
        "models": found["models"],
        "scores": found["scores"],
        "differences": found["differences"],
        "confidence": found["settings"]["confidence"],
        "notes": found["notes"],
        "contamination": found["contamination"],
        "lower": sorted(LOWER_IS_BETTER),
        "tasks": {
            name: {"kind": task["kind"], "source": task["source"], **_rows(name, found, samples)}
            for name, task in found["tasks"].items()
        },
    }
    return report_page(_SCRIPT, content)


def _rows(
    task: str,
    found: Mapping[str, Any],
    samples: Mapping[tuple[str, str], Mapping[int, Sample]],
) -> dict[str, Any]:
    """The rows of a task that are shown, and how many there are."""
    models = found["models"]
    by_model = [samples[model, task] for model in models]
    score = next(iter(found["scores"][task][models[0]]))
    rows = []
    for at in sorted(by_model[0]):
        values = [row_value(score, each[at]["scores"][score]) for each in by_model]
        first = by_model[0][at]
        rows.append(
            {
                "place": first["place"],
                "prompt": first.get("text") or first["prompt"][-_CHARACTERS:],
                "expected": _expected(first),
                "values": values,
                "answers": [_given(each[at]) for each in by_model],
                "judged": [_said(each[at]) for each in by_model],
            }
        )
    # a row's part in a correlation is shown as a distance
    lower = score in LOWER_IS_BETTER or score == "pearson"
    rows.sort(key=lambda row: (-_spread(row["values"]), _worst(row["values"], lower)))
    return {"score": score, "lower": lower, "number": len(rows), "rows": rows[:_ROWS]}


def _spread(values: list[float]) -> float:
    return max(values) - min(values)


def _worst(values: list[float], lower: bool) -> float:
    return -max(values) if lower else min(values)


def _expected(sample: Sample) -> str:
    if "choices" in sample:
        return str(sample["choices"][sample["label"]])
    return " / ".join(sample.get("answers", ()))[:_CHARACTERS]


def _said(sample: Sample) -> str:
    """What the judge said of an answer, all of it."""
    judged = sample.get("judged", {}).values()
    return "\n---\n".join(said for each in judged for said in each["said"])[-_CHARACTERS:]


def _given(sample: Sample) -> str:
    if "choices" in sample:
        return str(sample["choices"][sample["predicted"]])
    return str(sample.get("written", ""))[:_CHARACTERS]
