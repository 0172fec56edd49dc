"""Quantization: memory, time of a forward pass, perplexity and logits of each form of a model.

Each form is made and measured by `aift-ray quantize` in a process of its own, against the same
model in its own dtype; within a process the two models take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
from measuring import Processes, Result

FORMS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8},
    "int8, threshold 0": {"bits": 8, "threshold": 0.0},
    "nf4": {"bits": 4, "double_quant": False},
    "nf4, double": {"bits": 4},
    "fp4": {"bits": 4, "quant_type": "fp4", "double_quant": False},
    "fp4, double": {"bits": 4, "quant_type": "fp4"},
}


def main() -> None:
    """Measure, print, write."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as name:
        processes = Processes(Path(name), options.threads)
        contestants = {form: _call(processes, options, form) for form in options.only or FORMS}
        found = measuring.alternate(contestants, options.rounds)
    first = next(iter(found.values()))[0]
    own = ", ".join(f"{name} {value:.3f}" for name, value in first["original"].items())
    print(f"\n{first['rows']} rows, {first['tokens']} tokens; the model in its own dtype: {own}")
    print("\n" + measuring.table(_HEADER, [_row(*item) for item in found.items()]) + "\n")
    measuring.write(Path(options.output), {"options": vars(options), "contestants": found})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hina-4m", help="catalog name or folder")
    parser.add_argument("--eval-file", help="rows; default: the held-out rows of aift_ray")
    parser.add_argument("--rows", type=int, default=64, help="rows measured")
    parser.add_argument("--runs", type=int, default=50, help="timed forward passes of each model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(FORMS), help="default: all")
    parser.add_argument("--output", default=str(measuring.RESULTS / "quantization.json"))
    return parser.parse_args()


def _call(processes: Processes, options: argparse.Namespace, form: str) -> Callable[[int], Result]:
    settings = {
        "model": options.model,
        "output_dir": str(processes.folder / form),
        "overwrite": True,
        "eval_files": [options.eval_file] if options.eval_file else [],
        "eval_rows": options.rows,
        "num_runs": options.runs,
    }
    return lambda _: processes.contestant("quantize", **settings, **FORMS[form])


_HEADER = ("form", "MiB", "of the original", "ms a pass", "of the original", "p95 ms")
_HEADER += ("tokens/s", "perplexity", "of the original", "logits moved, mean", "max")


def _row(form: str, results: list[Result]) -> list[str]:
    """Sizes and quality are the same in every round; times are spread."""
    first = results[0]
    new, ratio, moved = first["quantized"], first["ratio"], first["logit_difference"]

    def spread(part: str, name: str, digits: int) -> str:
        return measuring.shown([result[part][name] for result in results], digits)

    return [
        form,
        f"{new['memory_mb']:.1f}",
        f"{ratio['memory_mb']:.2f}",
        spread("quantized", "latency_ms_median", 1),
        spread("ratio", "latency_ms_median", 2),
        spread("quantized", "latency_ms_p95", 1),
        spread("quantized", "tokens_per_second", 0),
        f"{new['perplexity']:.3f}",
        f"{ratio['perplexity']:.3f}",
        f"{moved['mean']:.4f}",
        f"{moved['max']:.2f}",
    ]


if __name__ == "__main__":
    main()
