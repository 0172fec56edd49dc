"""Where the results of an evaluation go."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from aift_ray.config import EvaluateConfig
from aift_ray.errors import Problem

SAMPLES, REPORT = "samples.jsonl", "report.html"


def output_file(config: EvaluateConfig) -> Path:
    """The file of the scores."""
    if config.output:
        return Path(config.output).expanduser().absolute()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("outputs", f"{stamp}-evaluation", "results.json").absolute()


def check(output: Path, overwrite: bool) -> list[Problem]:
    """What keeps the results from being written to `output`."""
    if output.is_dir():
        return [Problem("output", f"{output} is a folder", "name a file, such as results.json")]
    there = [p for p in (output, output.parent / SAMPLES, output.parent / REPORT) if p.exists()]
    if there and not overwrite:
        what = f"{there[0]} exists already"
        return [Problem("output", what, "name another --output, or give --overwrite")]
    parent = next(each for each in (output.parent, *output.parent.parents) if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return [Problem("output", f"{parent} can't be written")]
    return []
