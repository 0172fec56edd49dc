"""Completions a second and steps an hour of GRPO with LoRA: this project against TRL's GRPOTrainer.

The same token ids of prompts, adapters of the same shape, the same reward function and sampling,
bf16 or fp32, one thread. A step generates, scores and trains; the first of each contestant is not
timed. By default both recompute activations; `aift kept` and `trl kept` keep them. `trl continuous`
generates by transformers' continuous batching. `aift apart prompts` computes the prompt of a group
once for each completion in training. Contestants take turns, each in a fresh process. On a machine
with other load `cpu_completions_per_s`, by the CPU time of the process and its children, says more.

`aift command` (with --only) is the launched command: its `outside` is the share of the time between
the first and the last step that is no generation, reward or training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import psutil
from measuring import Pair, Processes, Result
from preference_speed import SHIPPED, trl_python

ROWS = SHIPPED.parents[2] / "data" / "assets" / "keitai" / "train.jsonl"
KEY, CPU, STEPS, MEMORY = "completions_per_s", "cpu_completions_per_s", "steps_per_h", "peak_gib"
OUTSIDE = "outside"
_KEPT = {"gradient_checkpointing": False}
_CONTINUOUS = {
    "use_transformers_continuous_batching": True,
    # its default sizes the cache by all free memory
    "transformers_continuous_batching_config": {"num_blocks": 256, "max_batch_tokens": 512},
}
OWN: dict[str, dict[str, Any]] = {
    "aift default": {"gradient_checkpointing": True},
    "aift kept": _KEPT,
}
MORE: dict[str, dict[str, Any]] = {
    "aift apart prompts": {"apart": True, **_KEPT},
    "aift command": {"command": True, "gradient_checkpointing": True},
}
PEERS: dict[str, dict[str, Any]] = {
    "trl default": {},
    "trl kept": _KEPT,
    "trl continuous": {**_KEPT, **_CONTINUOUS},
}
PAIRS = [
    Pair("aift default", "trl default", KEY, ">= 2"),
    Pair("aift default", "trl default", STEPS, ">= 2"),
    Pair("aift default", "trl default", CPU, ">= 2"),
    Pair("aift kept", "trl kept", KEY, ">= 2"),
    Pair("aift kept", "trl kept", CPU, ">= 2"),
    Pair("aift kept", "trl continuous", KEY, ">= 2"),
    Pair("aift kept", "trl continuous", CPU, ">= 2"),
    Pair("aift default", "trl default", MEMORY, "<= 1"),
    Pair("aift kept", "trl kept", MEMORY, "<= 1"),
    Pair("aift kept", "aift apart prompts", CPU),
]
# the reward of both: as close to 20 characters as can be
REWARD = """
def close(prompts, completions, **columns):
    return [-abs(len(text) - 20) / 20 for text in completions]
"""


def main() -> None:
    """Measure, print, write; or be one contestant."""
    if len(sys.argv) == 3 and sys.argv[1] in ("ours", "peer", "command"):
        spec = json.loads(Path(sys.argv[2]).read_text("utf-8"))
        call: dict[str, Callable[[dict[str, Any]], Result]]
        call = {"ours": ours, "peer": peer, "command": command}
        print(json.dumps(call[sys.argv[1]](spec)))
        return
    options = _options()
    with tempfile.TemporaryDirectory(prefix="aift-benchmark-") as name:
        processes = Processes(Path(name), 1)
        found = measuring.alternate(_contestants(processes, options, Path(name)), options.rounds)
    ratios = measuring.compare(found, PAIRS)
    for each, results in found.items():
        print(each, json.dumps(results))
    print(measuring.ratio_table(ratios))
    # the model by its name: a file of results holds no path of a machine
    asked = vars(options) | {"model": Path(options.model).name}
    del asked["trl_python"], asked["output"]
    content = {"options": asked, "contestants": found, "ratios": ratios}
    measuring.write(Path(options.output), content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(SHIPPED), help="model folder")
    parser.add_argument("--prompts", type=int, default=2, help="prompts a step")
    parser.add_argument("--completions", type=int, default=8, help="completions a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens a completion at most")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after one that is not")
    parser.add_argument("--trl-python", default=trl_python(), help="a Python with TRL")
    parser.add_argument("--only", nargs="*", default=[*OWN, *PEERS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(measuring.RESULTS / "grpo_speed.json"))
    return parser.parse_args()


def _contestants(
    processes: Processes, options: argparse.Namespace, folder: Path
) -> dict[str, Callable[[int], Result]]:
    lines = Path(ROWS).read_text("utf-8").splitlines()[: options.prompts * (options.steps + 1)]
    rows, reward = folder / "rows.jsonl", folder / "rewards_of_both.py"
    asked = [json.loads(line) for line in lines]
    texts = [{"prompt": f"{row['instruction']}\n{row['input']}\n"} for row in asked]
    rows.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts), "utf-8")
    reward.write_text(REWARD, "utf-8")
    names = ("model", "prompts", "completions", "tokens", "steps", "precision")
    common = {name: getattr(options, name) for name in names}
    common |= {"rows": str(rows), "reward": str(reward)}

    def call(who: str, python: str, name: str, arguments: dict[str, Any]) -> Result:
        spec = folder / f"{name.replace(' ', '-')}.json"
        spec.write_text(json.dumps(common | {"arguments": arguments}), "utf-8")
        return processes.together([[python, str(Path(__file__)), who, str(spec)]])[0]

    found: dict[str, Callable[[int], Result]] = {}
    for name, given in (OWN | MORE | PEERS).items():
        if name in options.only:
            who = "peer" if name in PEERS else "command" if given.get("command") else "ours"
            python = options.trl_python if who == "peer" else sys.executable
            found[name] = lambda _, w=who, p=python, n=name, g=given: call(w, p, n, g)
    return found


def ours(spec: dict[str, Any]) -> Result:
    """Steps of this project, in this process and that of the reward."""
    import torch

    from aift_ray.commandline import validated
    from aift_ray.engine import loop
    from aift_ray.engine.build import build
    from aift_ray.engine.grpo import rollout_setup
    from aift_ray.parallel.group import Group
    from aift_ray.runs.prepare import prepare
    from aift_ray.utils import gc_pause

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        config = validated(_settings(spec, Path(name)))
        job = prepare(config, Path(name), 1, torch.cuda.is_available(), None).job
        if spec["arguments"].get("apart"):
            rollout_setup.shares_prompts = lambda job: False
        run = build(job, Group.alone())
        clock, lines = _Clock(), []
        # as in worker.work
        with gc_pause.of_new_objects():
            for number in range(spec["steps"] + 1):
                if number == 1:
                    clock.start()
                lines.append(loop.train_step(run)[0])
                run.state.step += 1
            clock.stop()
        prompt = run.rollouts.rollout.starts.tolist()
        run.rollouts.close()
    timed = lines[1:]
    seconds = {n: sum(line[f"time/{n}_s"] for line in timed) for n in _PARTS}
    found = clock.result(spec, sum(line["completions/mean_length"] for line in timed))
    return (
        found | seconds | {"prompt_tokens": prompt, OUTSIDE: 1 - sum(seconds.values()) / clock.wall}
    )


# what a step is made of
_PARTS = ("generation", "reward", "training")


def command(spec: dict[str, Any]) -> Result:
    """The launched command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = folder / "run.json"
        given = _settings(spec, folder)
        given["training"]["logging_steps"] = 1
        settings.write_text(json.dumps(given), "utf-8")
        words = [sys.executable, "-m", "aift_ray.train", "--config", str(settings)]
        output = folder / "run"
        began = time.perf_counter()
        subprocess.run(
            [*words, "--output-dir", str(output)], check=True, stdout=sys.stderr, cwd=measuring.ROOT
        )
        whole = time.perf_counter() - began
        texts = (output / "metrics.jsonl").read_text("utf-8").splitlines()
    lines = [line for line in map(json.loads, texts) if "loss" in line]
    wall = lines[-1]["time"] - lines[0]["time"]
    parts = sum(line[f"time/{name}_s"] for line in lines[1:] for name in _PARTS)
    number = spec["prompts"] * spec["completions"] * (len(lines) - 1)
    rates = {KEY: number / wall, STEPS: 3600 * (len(lines) - 1) / wall}
    return rates | {OUTSIDE: 1 - parts / wall, "whole_s": whole, "wall_s": wall}


def _settings(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "model": spec["model"],
        "objective": "grpo",
        "grpo": {
            "reward": [f"{spec['reward']}:close"],
            "num_generations": spec["completions"],
            "max_completion_length": spec["tokens"],
            "rollout_batch_size": spec["prompts"] * spec["completions"],
        },
        "data": {
            "train_files": [spec["rows"]],
            "sequence_length": 512,
            "cache_dir": str(folder / "cache"),
        },
        "training": {
            "batch_size": spec["prompts"] * spec["completions"],
            "gradient_accumulation_steps": 1,
            "max_steps": spec["steps"] + 1,
            "learning_rate": 1e-5,
            "lr_scheduler": "constant",
            "warmup_steps": 0,
            "precision": spec["precision"],
            "gradient_checkpointing": spec["arguments"]["gradient_checkpointing"],
        },
    }


def peer(spec: dict[str, Any]) -> Result:
    """Steps of TRL's GRPOTrainer on the same prompts."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    scope: dict[str, Any] = {}
    exec(Path(spec["reward"]).read_text("utf-8"), scope)
    narrow = spec["precision"] == "bf16"
    dtype = torch.bfloat16 if narrow else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype)
    texts = Path(spec["rows"]).read_text("utf-8").splitlines()
    clock = _Clock()

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Starts the clock after the first step, and stops it at the end."""

        def on_step_end(self, args: Any, state: Any, *others: Any, **more: Any) -> None:
            if state.global_step == 1:
                clock.start()
            elif state.global_step == spec["steps"] + 1:
                clock.stop()

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[scope["close"]],
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=spec["prompts"] * spec["completions"],
                gradient_accumulation_steps=1,
                num_generations=spec["completions"],
                max_completion_length=spec["tokens"],
                max_steps=spec["steps"] + 1,
                learning_rate=1e-5,
                lr_scheduler_type="constant",
                bf16=narrow,
                use_cpu=not torch.cuda.is_available(),
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                shuffle_dataset=False,
                **spec["arguments"],
            ),
            train_dataset=Dataset.from_list([json.loads(text) for text in texts]),
            processing_class=AutoTokenizer.from_pretrained(spec["model"]),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Watch()],
        )
        trainer.train()
        lines = [line for line in trainer.state.log_history if "reward" in line]
    return clock.result(spec, sum(line["completions/mean_length"] for line in lines[1:]))


class _Clock:
    """Wall and CPU time of this process and its children between start and stop."""

    def start(self) -> None:
        self._began = time.perf_counter(), _cpu()

    def stop(self) -> None:
        wall, cpu = self._began
        self.wall, self.cpu = time.perf_counter() - wall, _cpu() - cpu

    def result(self, spec: dict[str, Any], lengths: float) -> Result:
        """Args: lengths: the mean lengths of the completions of all steps, summed."""
        from contestants import peak_gib

        number = spec["prompts"] * spec["completions"] * spec["steps"]
        rates = {KEY: number / self.wall, CPU: number / self.cpu}
        rates |= {STEPS: 3600 * spec["steps"] / self.wall, "mean_length": lengths / spec["steps"]}
        return rates | {"wall_s": self.wall, "cpu_s": self.cpu, "peak_gib": peak_gib()}


def _cpu() -> float:
    """CPU seconds of this process and of the children that it has."""
    root = psutil.Process()
    times = [each.cpu_times() for each in (root, *root.children(recursive=True))]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
