"""Every strategy, method and precision against a single process: `make parity`.

Prints the table of docs/strategies.md and writes it there; exits 1 where a bound is passed.
`python -m tests.parity mixture context` measures the methods and strategies whose names begin so
and replaces their rows.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

from aift_ray.commandline import validated
from aift_ray.engine.checkpoint.writer import snapshot
from tests.conftest import make_tiny_mixture, make_tiny_model, write_rows
from tests.grpo.rollout_rows import prompts, write_rewards
from tests.helpers.preference_rows import labelled, pairs, write
from tests.helpers.runs import on_workers, started, stepped
from tests.helpers.tiny_families import make_hybrid

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "strategies.md"
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "zero1": {"strategy": "zero1"},
    "zero2": {"strategy": "zero2"},
    "tensor": {"strategy": "tensor", "tensor_parallel_size": 2},
    "context": {"strategy": "ddp", "context_parallel_size": 2},
    "context fsdp": {"strategy": "fsdp", "context_parallel_size": 2},
    "pipeline": {"strategy": "pipeline", "pipeline_parallel_size": 2, "pipeline_microbatches": 4},
    "pipeline gpipe": {
        "strategy": "pipeline",
        "pipeline_parallel_size": 2,
        "pipeline_schedule": "gpipe",
    },
    "pipeline interleaved": {
        "strategy": "pipeline",
        "pipeline_parallel_size": 2,
        "pipeline_schedule": "interleaved",
        "pipeline_microbatches": 4,
    },
}
# in the environment of make test-deepspeed
DEEPSPEED = {
    f"deepspeed {stage}": {"strategy": stage, "backend": "deepspeed"}
    for stage in ("zero1", "zero2", "zero3")
}
# moments, and with zero3 weights, in host memory by a file of DeepSpeed's
DEEPSPEED |= {f"{name} cpu": how | {"outside": "cpu"} for name, how in DEEPSPEED.items()}
# on four workers: two replicas of two
MESHES = {"tensor 2 x 2": "tensor", "pipeline 2 x 2": "pipeline", "context 2 x 2": "context"}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "qlora nf4": {"method": "qlora"},
    "qlora int8": {"method": "qlora", "qlora_4bit": False},
    # smaller states: moments of 8 bits, and weights in bf16 that are rounded stochastically
    "8bit full": {"method": "full", "optimizer": "adamw_8bit"},
    "8bit lora": {"method": "lora", "optimizer": "adamw_8bit", "r": 64},
    "rounded full": {"method": "full", "bf16_stochastic_round": True},
    "rounded 8bit full": {
        "method": "full",
        "optimizer": "adamw_8bit",
        "bf16_stochastic_round": True,
    },
    "mixture 8bit full": {"method": "full", "optimizer": "adamw_8bit"},
    "mixture rounded full": {"method": "full", "bf16_stochastic_round": True},
    "dpo 8bit full": {"method": "full", "optimizer": "adamw_8bit"},
    "dpo rounded full": {"method": "full", "bf16_stochastic_round": True},
    "grpo 8bit full": {"method": "full", "optimizer": "adamw_8bit"},
    # a mixture of experts, which are adapted too
    "mixture full": {"method": "full"},
    "mixture lora": {"method": "lora", "experts": True},
    "mixture qlora nf4": {"method": "qlora", "experts": True},
    # layers that carry state beside attention: rows are padded, whatever the layout asked for
    "hybrid full": {"method": "full"},
    "hybrid lora": {"method": "lora"},
    "hybrid qlora nf4": {"method": "qlora"},
    # answers that are compared
    "dpo full": {"method": "full"},
    "dpo lora": {"method": "lora"},
    "dpo qlora nf4": {"method": "qlora"},
    "orpo full": {"method": "full"},
    "orpo lora": {"method": "lora"},
    "orpo qlora nf4": {"method": "qlora"},
    "kto full": {"method": "full"},
    "kto lora": {"method": "lora"},
    "kto qlora nf4": {"method": "qlora"},
    "reward full": {"method": "full"},
    "reward lora": {"method": "lora"},
    "reward qlora nf4": {"method": "qlora"},
    # completions that the workers generate
    "grpo full": {"method": "full"},
    "grpo lora": {"method": "lora"},
    "grpo qlora nf4": {"method": "qlora"},
}
OBJECTIVES = ("dpo", "orpo", "kto", "reward", "grpo")
SMALL = ("8bit", "rounded")
OTHERS = ("mixture", "hybrid")
SMALLER = [name for name in METHODS if any(kind in name for kind in SMALL)]
_USUAL = [name for name in METHODS if name not in SMALLER]
DENSE = [name for name in _USUAL if not name.startswith((*OTHERS, *OBJECTIVES))]
COMPARED = [name for name in _USUAL if name.startswith(OBJECTIVES)]
FURTHER = [name for name in _USUAL if name.startswith(OTHERS)]
LAYOUTS: dict[str, dict[str, Any]] = {
    "concat": {"packing": "concat"},
    "fill": {"packing": "fill"},
    "padded": {"packing": "false"},
    "recomputed": {"packing": "concat", "gradient_checkpointing": True},
}
SELECTIVE = {**LAYOUTS["recomputed"], "activation_checkpointing": "selective"}
# what is refused
_NEVER: dict[str, tuple[str, ...]] = dict.fromkeys(STRATEGIES, ("qlora int8",))
_NEVER |= {"ddp": (), "pipeline": (), "tensor": tuple(name for name in METHODS if "qlora" in name)}
_STATES = ("optimizer", "bf16_stochastic_round")
_DIVIDED = ("context", "context fsdp")
# of a pipeline's other schedules
MORE = [("full", "fp32", "concat"), ("lora", "fp32", "fill"), ("qlora nf4", "fp32", "recomputed")]
# largest difference of the loss, relative ones of gradient norm and of the final weights
BOUNDS = {"fp32": 1e-5, "qlora": 1e-4, "8bit": 1e-4, "bf16": 2e-2}
WORKERS, STEPS = 2, 8
# of objectives other than sft: more than an epoch of 22 answers
COMPARED_STEPS = 4


def cases() -> list[tuple[str, str, str, str]]:
    """(strategy, method, precision, layout) of the table."""
    whole = list(product(STRATEGIES, DENSE, ("fp32", "bf16"), ("concat",)))
    laid = list(product(STRATEGIES, ("full", "lora", "qlora nf4"), ("fp32",), list(LAYOUTS)[1:]))
    meshes = list(product(MESHES, ("full", "lora"), ("fp32", "bf16"), ("concat",)))
    # tensor refuses both
    names = [name for name in STRATEGIES if name != "tensor" and " " not in name]
    laid += product(names, FURTHER, ("fp32",), ("concat", "padded", "recomputed"))
    sharing = ("ddp", "fsdp", "zero1", "zero2")
    for way, name in product((*sharing, "context"), SMALLER):
        # the blocks of an embedding with an odd number of rows would lie in two shards: 32 bits
        if name == "mixture 8bit full" and way in sharing[1:]:
            continue
        laid.append((way, name, "bf16" if "rounded" in name else "fp32", "concat"))
    kept = ("full", "lora", "qlora nf4", "mixture full", "mixture lora", "dpo lora", "grpo lora")
    laid += product((*sharing, "context"), kept, ("fp32",), ("selective",))
    compared = product(STRATEGIES, COMPARED, ("fp32",), list(LAYOUTS))
    laid += [case for case in compared if _trains(*case)]
    cases = [case for case in whole + laid if case[1] not in _NEVER[case[0]] and _divides(case)]
    return meshes + [case for case in cases if " " not in case[0] or case[1:] in MORE]


def _divides(case: tuple[str, str, str, str]) -> bool:
    """Whether the rows of a case can be divided, where they are to be."""
    others = ("hybrid", *OBJECTIVES)
    return case[0] not in _DIVIDED or (case[3] != "padded" and not case[1].startswith(others))


def deepspeed_cases() -> list[tuple[str, str, str, str]]:
    """The cases of backend deepspeed."""
    stages = [name for name in DEEPSPEED if not name.endswith(" cpu")]
    methods = ("full", "lora", "qlora nf4")
    whole = list(product(stages, methods, ("fp32", "bf16"), ("concat",)))
    whole += product(stages, ("full", "lora"), ("fp32",), ("fill", "padded", "recomputed"))
    experts = [name for name in FURTHER if name.startswith("mixture")]
    whole += product(stages, experts, ("fp32",), ("concat",))
    whole += product(stages, ("dpo full", "dpo lora", "kto lora"), ("fp32",), ("concat",))
    return whole + [
        (name, method, precision, "concat")
        for name in DEEPSPEED
        for method, precision in (("full", "fp32"), ("full", "bf16"), ("lora", "fp32"))
        if name not in stages
    ]


def offload_file(folder: Path, device: str, stage: str) -> Path:
    """A DeepSpeed configuration that keeps what the stage allows in host memory or in `folder`."""
    where: dict[str, Any] = {"device": device, "pin_memory": False}
    if device == "nvme":
        where["nvme_path"] = str(folder / "nvme")
    sections = ["offload_optimizer", *(["offload_param"] if stage == "zero3" else [])]
    sizes = {"offload_param": where | {"buffer_size": 4_000_000}} if device == "nvme" else {}
    path = (folder if folder.is_dir() else folder.parent) / f"{device}-{stage}.json"
    zero = {name: sizes.get(name, where) for name in sections}
    path.write_text(json.dumps({"zero_optimization": zero}), "utf-8")
    return path


def settings(case: tuple[str, str, str, str], workers: int, model: Path, rows: Path) -> Any:
    """The run of a case: the same global batch for any number of workers.

    Two micro-steps of 4 examples (or 2 filled rows), gradients clipped; 22 rows, so that the last
    step of an epoch has fewer, unequally dealt.
    """
    name, method, precision, layout = case
    parallel = dict((STRATEGIES | DEEPSPEED)[MESHES.get(name, name)])
    if "outside" in parallel:
        file = offload_file(rows.parent, parallel.pop("outside"), parallel["strategy"])
        parallel["deepspeed_config"] = str(file)
    sizes = ("pipeline_parallel_size", "tensor_parallel_size", "context_parallel_size")
    replicas = workers // max(parallel.get(size, 1) for size in sizes)
    how = dict(LAYOUTS.get(layout, SELECTIVE))
    recomputes = {name: how.pop(name) for name in SELECTIVE if name != "packing" and name in how}
    units = 2 if layout == "fill" else 4
    objective, data = method.split()[0], {"train_files": [str(rows)], "sequence_length": 128, **how}
    if objective in OBJECTIVES:
        # of each case its own: references are found again where the same rows have been judged
        data["cache_dir"] = str(rows.parent / "-".join((*case, str(workers))).replace(" ", "_"))
        data["train_files"] = [str(_rows_of(objective, rows.parent))]
    if "pipeline_microbatches" in parallel:
        parallel["pipeline_microbatches"] = min(4, 2 * units // replicas)
    beside = dict(METHODS[method])
    beside.pop("method")
    states = {name: beside.pop(name) for name in _STATES if name in beside}
    return validated(
        {
            "model": str(model),
            "method": METHODS[method]["method"],
            "objective": objective if objective in OBJECTIVES else "sft",
            "grpo": _generation(rows.parent) if objective == "grpo" else {},
            "lora": {"lora_dropout": 0.0} | beside,
            "parallel": parallel,
            "data": data,
            "training": {
                "learning_rate": 1e-3,
                "batch_size": units // replicas,
                "gradient_accumulation_steps": 2,
                "max_steps": COMPARED_STEPS if objective in OBJECTIVES else STEPS,
                "warmup_steps": 2,
                "max_grad_norm": 0.5,
                "precision": precision,
                "gradient_checkpointing": False,
                **recomputes,
                **states,
            },
        }
    )


def _trains(strategy: str, method: str, precision: str, layout: str) -> bool:
    """Whether a case is trained: some objectives need a model that is not divided."""
    if method.startswith("grpo") and layout == "fill":
        return False
    whole = strategy in ("ddp", "fsdp", "zero1", "zero2")
    return whole or not method.startswith(("reward", "grpo"))


def _rows_of(objective: str, folder: Path) -> Path:
    """22 pairs, rows with a label, or prompts."""
    makers = {"kto": labelled, "grpo": prompts}
    path = folder / f"{objective if objective in makers else 'pairs'}.jsonl"
    return path if path.exists() else write(path, makers.get(objective, pairs)(22))


def _generation(folder: Path) -> dict[str, Any]:
    """Two prompts a step, and the KL from the base."""
    return {
        "reward": [f"{write_rewards(folder)}:digest"],
        "num_generations": 4,
        "max_completion_length": 8,
        "rollout_batch_size": 4,
        "beta": 0.05,
    }


def differences(one: Any, two: Any) -> tuple[float, float, float]:
    """Largest difference of the loss, relative ones of the gradient norm and of the weights."""
    (lines, weights), (others, moved) = one, two
    a, b = torch.tensor(lines), torch.tensor(others)
    assert a.shape == b.shape
    assert weights.keys() == moved.keys()
    square = sum(float(w.double().square().sum()) for w in weights.values())
    apart = sum(float((weights[n].double() - moved[n]).square().sum()) for n in weights)
    norm = ((a - b)[:, 1] / a[:, 1]).abs().max()
    return float((a - b)[:, 0].abs().max()), float(norm), (apart / square) ** 0.5


def spread(configs: dict[str, Any], folder: Path, workers: int) -> tuple[Any, Any]:
    """Losses and gradient norms, and final weights, of runs on gloo workers, by name."""
    return on_workers(configs, folder, workers), torch.load(folder / "weights.pt")


def alone(config: Any, folder: Path) -> tuple[Any, Any]:
    """The same of a run in this process."""
    run = started(config, folder)
    lines = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
    if run.rollouts:
        run.rollouts.close()
    return lines, snapshot(run).model


def compare(
    chosen: list[tuple[str, str, str, str]],
    folder: Path,
    model: Path,
    rows: Path,
    others: Mapping[str, Path] = MappingProxyType({}),
) -> dict[tuple[str, str, str, str], tuple[float, float, float]]:
    """The differences of each case between several workers and a single process.

    Args:
        others: folders of models by the first word of the methods that train them.
    """
    curves, weights = {}, {}

    def of(case: tuple[str, str, str, str], workers: int) -> Any:
        return settings(case, workers, others.get(case[1].split()[0], model), rows)

    for workers in (WORKERS, 2 * WORKERS):
        some = [case for case in chosen if (case[0] in MESHES) == (workers != WORKERS)]
        configs = {"|".join(case): of(case, workers) for case in some}
        found_here = spread(configs, folder, workers) if some else ({}, {})
        curves |= found_here[0]
        weights |= found_here[1]
    singles: dict[Any, Any] = {}
    found = {}
    for case in chosen:
        if case[1:] not in singles:
            singles[case[1:]] = alone(of(("ddp", *case[1:]), 1), folder)
        name = "|".join(case)
        found[case] = differences(singles[case[1:]], (curves[name], weights[name]))
    return found


def bound(case: tuple[str, str, str, str]) -> float:
    """What the differences of a case may be."""
    _, method, precision, _ = case
    kinds = [kind for kind in ("qlora", "8bit") if kind in method]
    return BOUNDS["bf16" if precision == "bf16" else kinds[0] if kinds else "fp32"]


def table(found: dict[Any, tuple[float, float, float]]) -> str:
    """The differences as a table in Markdown."""
    lines = [
        "| strategy | method | precision | rows | loss | gradient norm | weights | bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, values in found.items():
        cells = [*case, *(f"{v:.1e}" for v in values), f"{bound(case):.0e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_others(text: str, document: str) -> tuple[list[str], str]:
    """A table of some cases with the other rows of the document's; and the notes of earlier runs.

    A note of the same command is left out.
    """
    written = document.partition("<!-- parity -->\n")[2].partition("<!-- end -->")[0].splitlines()
    head, rule, *lines = text.splitlines()
    rows = [line for line in written if line[:1] == "|"][2:] + lines
    named = {tuple(cell.strip() for cell in line.split("|")[1:5]): line for line in rows}
    some = f"`{_command()}`"
    notes = [line for line in written if line[:1] == "`" and not line.startswith(some)]
    return notes, "\n".join([head, rule, *(named[case] for case in cases() if case in named)])


def _command() -> str:
    """What was given to measure these cases."""
    given = ["python", "-m", "tests.parity", *sys.argv[1:]]
    return shlex.join(given) if sys.argv[1:] else "make parity"


def main() -> int:
    """Measure, print, write; 1 where a bound is passed. With `deepspeed`: the table of that."""
    began, by_deepspeed = time.monotonic(), sys.argv[1:] == ["deepspeed"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        torch.set_num_threads(1)
        transformers.logging.disable_progress_bar()
        rows = write_rows(folder / "train.jsonl", 22)
        tiny = make_tiny_model(folder / "tiny", num_hidden_layers=4)
        mixture = make_tiny_mixture(folder / "mixture", num_hidden_layers=4)
        others = {"mixture": mixture, "hybrid": make_hybrid(folder / "hybrid")}
        others |= dict.fromkeys(OBJECTIVES, make_tiny_model(folder / "two"))
        begins = tuple(sys.argv[1:]) or ("",)
        named = {case: (*case[:2], case[3]) for case in cases()}
        chosen = [case for case in named if any(name.startswith(begins) for name in named[case])]
        chosen = deepspeed_cases() if by_deepspeed else chosen
        found = compare(chosen, folder, tiny, rows, others)
    text = table(found)
    print(text)
    place = f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}"
    note = (
        f"`{_command()}`, {place}, {time.strftime('%Y-%m-%d')}, {time.monotonic() - began:.0f} s."
    )
    document = DOCUMENT.read_text("utf-8")
    if sys.argv[1:] and not by_deepspeed:
        before, text = with_others(text, document)
        note = "\n\n".join([*before, note])
    begin, end = ("parity deepspeed", "end deepspeed") if by_deepspeed else ("parity", "end")
    marked = re.compile(rf"(<!-- {begin} -->\n).*(<!-- {end} -->)", re.DOTALL)
    written = marked.sub(lambda m: f"{m[1]}{note}\n\n{text}\n{m[2]}", document)
    DOCUMENT.write_text(written, "utf-8")
    passed = [case for case, values in found.items() if max(values) > bound(case)]
    for case in passed:
        print(f"passes its bound: {case}")
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
