"""From the command to the end of the first step, and the memory and CPU time of all processes.

With one worker `aift_ray.train` stands against transformers' Trainer with PEFT, as a script of
thirty lines uses it: LoRA of rank 16 on every linear layer, fp32, the same rows, batch and length;
and against TRL's SFTTrainer as it comes and packed (a filled row a micro-batch), where a Python
with TRL is named: --trl-python, or the environment AIFT_TRL_ENV.
With two it stands against a bare TorchTrainer: both start Ray and two gloo workers, but the bare
one's workers take one step on a layer of 8 x 8.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
from measuring import Pair, Processes, Result

_NAMES = {
    "seconds": "command to first step, s",
    "whole_s": "to exit, s",
    "cpu_s": "CPU, s",
    "peak_gib": "all processes, GiB",
}
_PAIRS = (
    Pair("aift, one worker", "plain Trainer", "seconds", "<= 1.5"),
    Pair("aift, one worker", "plain Trainer", "cpu_s"),
    Pair("aift, one worker", "plain Trainer", "peak_gib", "<= 1.1 of the leanest"),
    Pair("aift, one worker", "TRL", "cpu_s"),
    Pair("aift, one worker", "TRL", "peak_gib", "<= 1.1 of the leanest"),
    Pair("aift, one worker", "TRL packed", "cpu_s"),
    Pair("aift, one worker", "TRL packed", "peak_gib", "<= 1.1 of the leanest"),
    Pair("aift, two workers", "bare, two workers", "seconds", "<= 1.3"),
)
ROWS = measuring.ROOT / "aift_ray" / "data" / "assets" / "keitai" / "eval.jsonl"
SHIPPED = measuring.ROOT / "aift_ray" / "models" / "assets" / "hina-4m"


def main() -> None:
    """Measure, print, write; or, with --bare, be the contestant."""
    options = _options()
    if options.bare:
        _bare(Path(options.bare))
        return
    if options.plain:
        _plain(Path(options.plain), options)
        return
    if options.trl:
        _trl(Path(options.trl), options)
        return
    with tempfile.TemporaryDirectory(prefix="aift-launch-") as name:
        processes = Processes(Path(name), options.threads)
        rows = Path(name) / "rows.jsonl"
        lines = Path(options.train_file).read_text("utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[: options.rows]), "utf-8")
        calls = {
            "plain Trainer": lambda number: _run_peer(processes, rows, options, "plain", number),
            "TRL": lambda number: _run_peer(processes, rows, options, "trl", number),
            "TRL packed": lambda number: _run_peer(processes, rows, options, "trl", number, True),
            "aift, one worker": lambda number: _run_own(processes, rows, options, 1, number),
            "bare, two workers": lambda number: _run_bare(processes, number),
            "aift, two workers": lambda number: _run_own(processes, rows, options, 2, number),
        }
        without = [] if options.trl_python else ["TRL", "TRL packed"]
        only = options.only or [name for name in calls if name not in without]
        calls = {name: call for name, call in calls.items() if name in only}
        found = measuring.alternate(calls, options.rounds)
    ratios = measuring.compare(found, [pair for pair in _PAIRS if {pair.of, pair.to} <= {*found}])
    rows_ = [[name, *[_column(results, key) for key in _NAMES]] for name, results in found.items()]
    print(measuring.table(["contestant", *_NAMES.values()], rows_) + "\n")
    print(measuring.ratio_table(ratios))
    # the model by its name: a file of results holds no path of a machine
    asked = vars(options) | {"model": Path(options.model).name}
    asked.pop("trl_python")
    content = {"options": asked, "contestants": found, "ratios": ratios}
    measuring.write(Path(options.output), content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-file", default=str(ROWS), help="rows as JSON Lines")
    parser.add_argument("--rows", type=int, default=64, help="first rows of it to use")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(measuring.RESULTS / "launch_time.json"))
    parser.add_argument("--model", default=str(SHIPPED), help="folder of the model")
    parser.add_argument("--length", type=int, default=512, help="tokens a row at most")
    parser.add_argument("--threads", type=int, default=1, help="of computation, a worker")
    parser.add_argument("--only", nargs="*", help="names of contestants; default: all")
    place = os.environ.get("AIFT_TRL_ENV")
    known = str(Path(place) / "bin" / "python") if place else None
    parser.add_argument("--trl-python", default=known, help="a Python with TRL")
    for contestant in ("--bare", "--plain", "--trl"):
        parser.add_argument(contestant, help=argparse.SUPPRESS)
    parser.add_argument("--packing", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _column(results: list[Result], key: str) -> str:
    return measuring.shown([r[key] for r in results], 1) if key in results[0] else ""


def _timed(processes: Processes, command: list[str]) -> Result:
    """When the command began, the seconds until it had ended, and what all its processes took."""
    began = time.time()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            command, stdout=said, stderr=said, env=processes.environment, cwd=processes.folder
        )
        usage = measuring.watch(child)
        whole = time.time() - began
        said.seek(0)
        if child.returncode:
            raise RuntimeError(f"{command} ended with {child.returncode}:\n{said.read()[-3000:]}")
    return {"began": began, "whole_s": whole, **usage}


def _run_bare(processes: Processes, number: int) -> Result:
    folder = processes.folder / f"bare-{number}"
    return _stepped(processes, ["--bare", str(folder)], folder)


def _run_peer(
    processes: Processes,
    rows: Path,
    options: argparse.Namespace,
    who: str,
    number: int,
    packing: bool = False,
) -> Result:
    folder = processes.folder / f"{who}-{packing}-{number}"
    folder.mkdir()
    command = [f"--{who}", str(folder), "--train-file", str(rows), "--model", options.model]
    command += ["--length", str(options.length), *(["--packing"] if packing else [])]
    return _stepped(processes, command, folder, options.trl_python if who == "trl" else "")


def _stepped(processes: Processes, argv: list[str], folder: Path, python: str = "") -> Result:
    command = [python or sys.executable, str(Path(__file__).resolve()), *argv]
    found = _timed(processes, command)
    return found | {"seconds": float((folder / "stepped").read_text()) - found["began"]}


def _run_own(
    processes: Processes, rows: Path, options: argparse.Namespace, workers: int, number: int
) -> Result:
    folder = processes.folder / f"own-{workers}-{number}"
    # the token cache is made anew each time, as on a first run
    shutil.rmtree(processes.folder / "cache", ignore_errors=True)
    settings = {
        "model": options.model,
        "num-workers": workers,
        "train-file": rows,
        "max-steps": 1,
        "data.sequence_length": options.length,
        "ray.cpus_per_worker": max(1, options.threads // workers),
        "training.warmup_steps": 0,
        "training.learning_rate": 2e-4,
        "training.gradient_checkpointing": "false",
        # as PEFT's default, which the peers have
        "lora.lora_dropout": 0,
        "output-dir": folder,
    }
    command = [sys.executable, "-m", "aift_ray.train"]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    found = _timed(processes, command)
    first = json.loads((folder / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    return found | {"seconds": first["time"] - found["began"]}


def _plain(folder: Path, options: argparse.Namespace) -> None:
    """What a user of transformers and PEFT writes; the batch is this project's default."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Stepped(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            (folder / "stepped").write_text(str(time.time()))

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = [json.loads(line) for line in Path(options.train_file).read_text("utf-8").splitlines()]
    data = []
    for row in rows:
        prompt = f"### 指示:\n{row['instruction']}\n\n{row.get('input') or ''}\n\n### 応答:\n"
        before = tokenizer(prompt)["input_ids"]
        answer = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False)
        ids = (before + answer["input_ids"])[: options.length]
        data.append({"input_ids": ids, "labels": ([-100] * len(before) + ids[len(before) :])})
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_steps=1,
        learning_rate=2e-4,
        report_to="none",
        use_cpu=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    Trainer(
        model, arguments, train_dataset=data, data_collator=collator, callbacks=[Stepped()]
    ).train()
    model.save_pretrained(folder / "model")


def _trl(folder: Path, options: argparse.Namespace) -> None:
    """What a user of TRL writes."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Stepped(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            (folder / "stepped").write_text(str(time.time()))

    rows = [json.loads(line) for line in Path(options.train_file).read_text("utf-8").splitlines()]
    question = "### 指示:\n{}\n\n{}\n\n### 応答:\n"
    data = [
        {"prompt": question.format(row["instruction"], row.get("input") or ""),
         "completion": row["output"]}
        for row in rows
    ]  # fmt: skip
    arguments = SFTConfig(
        str(folder),
        per_device_train_batch_size=1 if options.packing else 4,
        gradient_accumulation_steps=4,
        max_steps=1,
        max_length=options.length,
        packing=options.packing,
        learning_rate=2e-4,
        model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        use_cpu=True,
    )
    trainer = SFTTrainer(
        options.model,
        arguments,
        train_dataset=Dataset.from_list(data),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=[Stepped()],
    )
    trainer.train()
    trainer.save_model(folder / "model")


def _bare(folder: Path) -> None:
    """The least that trains on two workers with Ray Train."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # a cluster of its own, without a dashboard, as this project starts it
    ray.init("local", include_dashboard=False)
    trainer = TorchTrainer(
        _bare_step,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(name="bare", storage_path=str(folder)),
    )
    trainer.fit()


def _bare_step(settings: dict[str, Any]) -> None:
    import time
    from pathlib import Path

    import ray.train.torch
    import torch
    import transformers  # noqa: F401

    model = ray.train.torch.prepare_model(torch.nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 8)).sum().backward()
    optimizer.step()
    if ray.train.get_context().get_world_rank() == 0:
        Path(settings["folder"], "stepped").write_text(str(time.time()))


if __name__ == "__main__":
    main()
