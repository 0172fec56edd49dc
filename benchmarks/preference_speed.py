"""Pairs a second and peak memory of DPO with LoRA: this project against TRL's DPOTrainer.

The same token ids, adapters of the same shape, bf16, one thread, one pass. The time is that of the
steps with all that the reference costs: TRL computes it in each step by default, or before the
first (`trl precomputed`); this project before the first. By default both recompute activations;
`aift`, `trl kept` and `trl precomputed` keep them. `aift sft` trains both answers of each pair as
rows of their own, the same tokens, for its memory. `aift twice` (not by default) computes the
prompt of a pair for each of its answers. Contestants take turns, each in a fresh process.
On a machine with other load `cpu_pairs_per_s`, by the CPU time of the process, says more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
from measuring import Pair, Processes, Result

SHIPPED = measuring.ROOT / "aift_ray" / "models" / "assets" / "hina-4m"
ROWS = measuring.ROOT / "aift_ray" / "data" / "assets" / "keitai" / "preferences.jsonl"
KEY, CPU, MEMORY = "pairs_per_s", "cpu_pairs_per_s", "peak_gib"
PAIRS = [
    Pair("aift default", "trl default", KEY, ">= 1.5"),
    Pair("aift", "trl kept", KEY, ">= 1.2"),
    Pair("aift", "trl precomputed", KEY, ">= 1.2"),
    Pair("aift default", "trl default", CPU, ">= 1.5"),
    Pair("aift", "trl kept", CPU, ">= 1.2"),
    Pair("aift", "trl precomputed", CPU, ">= 1.2"),
    Pair("aift default", "trl default", MEMORY, "<= 1"),
    Pair("aift", "trl kept", MEMORY, "<= 1"),
    Pair("aift", "aift sft", MEMORY, "<= 1.02"),
    Pair("aift", "aift sft", "tokens", "= 1"),
    Pair("aift", "aift twice", KEY),
    Pair("aift", "aift twice", CPU),
    Pair("aift", "aift twice", MEMORY, "<= 1"),
]
_KEPT = {"gradient_checkpointing": False}
OWN: dict[str, dict[str, Any]] = {
    "aift default": {"objective": "dpo", "gradient_checkpointing": True},
    "aift": {"objective": "dpo", **_KEPT},
    "aift sft": {"objective": "sft", **_KEPT},
}
# without what sharing the prompt of both answers saves
TWICE = {"aift twice": {"objective": "dpo", "twice": True, **_KEPT}}
# TRL 1.16 switches padding_free off by itself: it has no faster setting than these
PEERS: dict[str, dict[str, Any]] = {
    "trl default": {},
    "trl kept": _KEPT,
    "trl precomputed": {"precompute_ref_log_probs": True, **_KEPT},
}


def main() -> None:
    """Measure, print, write; or be one contestant."""
    if len(sys.argv) == 3 and sys.argv[1] in ("ours", "peer"):
        spec = json.loads(Path(sys.argv[2]).read_text("utf-8"))
        print(json.dumps((ours if sys.argv[1] == "ours" else peer)(spec)))
        return
    options = _options()
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as name:
        processes = Processes(Path(name), 1)
        calls = _contestants(processes, options, Path(name))
        found = measuring.alternate(calls, options.rounds)
    ratios = measuring.compare(found, PAIRS)
    for each, results in found.items():
        print(each, json.dumps(results))
    ask = "from importlib.metadata import version; print(version('trl'))"
    asked = subprocess.run(
        [options.trl_python, "-c", ask], capture_output=True, text=True, check=False
    )
    content = {"options": vars(options), "trl": asked.stdout.strip() or "absent"}
    content |= {"contestants": found, "ratios": ratios}
    measuring.write(Path(options.output), content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(SHIPPED), help="model folder")
    parser.add_argument("--train-file", default=str(ROWS), help="pairs as JSON Lines")
    parser.add_argument("--pairs", type=int, default=64, help="first pairs of it to use")
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    parser.add_argument("--length", type=int, default=512, help="tokens an answer at most")
    parser.add_argument("--trl-python", default=trl_python(), help="a Python with TRL")
    parser.add_argument("--only", nargs="*", default=[*OWN, *PEERS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(measuring.RESULTS / "preference_speed.json"))
    return parser.parse_args()


def trl_python() -> str:
    """That of the environment AIFT_TRL_ENV, as the tests against TRL take it; else this one."""
    place = os.environ.get("AIFT_TRL_ENV")
    return str(Path(place) / "bin" / "python") if place else sys.executable


def _contestants(
    processes: Processes, options: argparse.Namespace, folder: Path
) -> dict[str, Callable[[int], Result]]:
    lines = Path(options.train_file).read_text("utf-8").splitlines(keepends=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(lines[: options.pairs]), "utf-8")
    common = {
        "model": options.model,
        "rows": str(rows),
        "tokens": str(folder / "tokens.json"),
        "pairs": options.pairs,
        "batch": options.batch,
        "length": options.length,
    }

    def call(who: str, python: str, name: str, arguments: dict[str, Any]) -> Result:
        spec = folder / f"{name.replace(' ', '-')}.json"
        spec.write_text(json.dumps(common | {"arguments": arguments}), "utf-8")
        return processes.together([[python, str(Path(__file__)), who, str(spec)]])[0]

    found: dict[str, Callable[[int], Result]] = {}
    for name, arguments in (OWN | TWICE).items():
        if name in options.only:
            found[name] = lambda _, n=name, a=arguments: call("ours", sys.executable, n, a)
    for name, arguments in PEERS.items():
        if name in options.only:
            found[name] = lambda _, n=name, a=arguments: call("peer", options.trl_python, n, a)
    return found


def ours(spec: dict[str, Any]) -> Result:
    """One pass of this project; writes the token ids for the others."""
    import torch

    from aift_ray.commandline import validated
    from aift_ray.engine import loop, reference_logprobs
    from aift_ray.engine.build import build
    from aift_ray.engine.reference_logprobs import References
    from aift_ray.parallel.group import Group
    from aift_ray.runs.prepare import prepare

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = validated(_settings(spec, folder))
        job = prepare(config, folder, 1, torch.cuda.is_available(), None).job
        clock = _Clock()
        complete = References.complete

        def timed(self: Any, module: Any) -> None:
            clock.start()
            complete(self, module)
            clock.stop()

        References.complete = timed  # type: ignore[method-assign]
        if spec["arguments"].get("twice"):
            reference_logprobs.shares_prompts = lambda job: False
        run = build(job, Group.alone())
        if run.comparison:
            _write_tokens(run, Path(spec["tokens"]))
        tokens = 0
        clock.start()
        for _ in range(run.total_steps):
            line, _ = loop.train_step(run)
            run.state.step += 1
            tokens += line["tokens"]
        clock.stop()
    return clock.result(spec) | {"last_loss": line["loss"], "tokens": tokens}


def _rows(spec: dict[str, Any], folder: Path) -> str:
    """The file of pairs; of objective sft one with both answers of each as rows."""
    if spec["arguments"]["objective"] != "sft":
        return str(spec["rows"])
    made = folder / "rows.jsonl"
    with made.open("w", encoding="utf-8") as file:
        for line in Path(spec["rows"]).read_text("utf-8").splitlines():
            row = json.loads(line)
            answers = [row.pop(name) for name in ("chosen", "rejected")]
            file.writelines(json.dumps(row | {"output": said}) + "\n" for said in answers)
    return str(made)


def _settings(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    objective = spec["arguments"]["objective"]
    return {
        "model": spec["model"],
        "objective": objective,
        "lora": {"lora_dropout": 0.0},
        "data": {
            "train_files": [_rows(spec, folder)],
            "sequence_length": spec["length"],
            "cache_dir": str(folder / "cache"),
        },
        "training": {
            "batch_size": spec["batch"] * (2 if objective == "sft" else 1),
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "learning_rate": 1e-5,
            "lr_scheduler": "constant",
            "warmup_steps": 0,
            "precision": "bf16",
            "gradient_checkpointing": spec["arguments"]["gradient_checkpointing"],
        },
    }


def _write_tokens(run: Any, path: Path) -> None:
    rows = []
    for index in range(0, len(run.rows), 2):
        (chosen, flags), (rejected, _) = run.rows.row(index), run.rows.row(index + 1)
        start = int(flags.argmax())
        row = {"prompt_ids": chosen[:start], "chosen_ids": chosen[start:]}
        row["rejected_ids"] = rejected[start:]
        rows.append({name: ids.tolist() for name, ids in row.items()})
    path.write_text(json.dumps(rows), "utf-8")


def peer(spec: dict[str, Any]) -> Result:
    """One pass of TRL's DPOTrainer over the same token ids."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    rows = Dataset.from_list(json.loads(Path(spec["tokens"]).read_text("utf-8")))
    arguments = dict(spec["arguments"])
    first = arguments.pop("precompute_ref_log_probs", False)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    words = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=spec["batch"],
                num_train_epochs=1,
                learning_rate=1e-5,
                max_length=spec["length"],
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                **arguments,
            ),
            train_dataset=Dataset.from_list(words),
            processing_class=tokenizer,
            peft_config=lora,
        )
        trainer.train_dataset = rows
        clock = _Clock()
        clock.start()
        if first:
            trainer.precompute_ref_logps = True
            trainer.train_dataset = trainer._precompute_ref_logps(rows, "train", spec["batch"])
        trainer.train()
        clock.stop()
    return clock.result(spec)


class _Clock:
    """Adds up wall and CPU time between its starts and stops."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]

    def result(self, spec: dict[str, Any]) -> Result:
        from contestants import peak_gib

        rates = {KEY: spec["pairs"] / self.wall, CPU: spec["pairs"] / self.cpu}
        return rates | {"wall_s": self.wall, "cpu_s": self.cpu, "peak_gib": peak_gib()}


if __name__ == "__main__":
    main()
