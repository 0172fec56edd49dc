"""One contestant of a benchmark in a process of its own: `contestants.py FUNCTION SPEC`.

SPEC is JSON; the last line printed is the result, as JSON. All contestants get the same token
ids: those that this project makes of the rows, already cut to length, with the same labels.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Row = dict[str, list[int]]
IGNORED = -100


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Tokenize once, as the launcher does before the workers start.

    Writes a job for each of `variants` (settings and a number of workers), and the rows as ids
    and labels for the others.
    """
    from aift_ray.commandline import validated
    from aift_ray.runs import prepare as launch

    folder, found = Path(spec["folder"]), None
    for name, variant in spec["variants"].items():
        config = validated(variant["settings"])
        gpu = torch.cuda.is_available()
        found = launch.prepare(config, folder / name, variant["workers"], gpu, None)
        (folder / f"{name}.job").write_bytes(pickle.dumps(found.job))
    assert found is not None
    found.encoder.tokenizer.save_pretrained(folder / "tokenizer")
    counts = {}
    for part in ("train", "eval"):
        rows = found.prepared.rows(part)
        listed = [_labelled(*rows.row(index)) for index in range(len(rows))]
        (folder / f"{part}.json").write_text(json.dumps(listed), "utf-8")
        counts[part] = {
            "rows": len(rows),
            "tokens": int(rows.lengths.sum()),
            "supervised_tokens": int(rows.num_label_tokens.sum()),
            "longest": int(rows.lengths.max(initial=0)),
        }
    return counts


def _labelled(ids: Any, flags: Any) -> Row:
    labels = [int(i) if flag else IGNORED for i, flag in zip(ids, flags, strict=True)]
    return {"input_ids": ids.tolist(), "labels": labels}


def aift(spec: dict[str, Any]) -> dict[str, Any]:
    """This project's loop over one pass, alone or as one of a gloo group."""
    import torch.distributed as dist

    from aift_ray.engine import loop
    from aift_ray.engine.build import build
    from aift_ray.parallel.group import Group

    rank, world = spec.get("rank", 0), spec.get("world", 1)
    if world > 1:
        address = f"tcp://127.0.0.1:{spec['port']}"
        dist.init_process_group("gloo", address, rank=rank, world_size=world)
    job = pickle.loads(Path(spec["job"]).read_bytes())
    if spec.get("card_gib"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(spec["card_gib"] * 2**30 / total)
    run = build(job, Group(rank, world, torch.device("cpu")) if world > 1 else Group.alone())
    if spec.get("start"):
        _write_start(run, Path(spec["start"]))
    held: dict[str, int] = {}
    run.optimizer.register_step_post_hook(lambda *_: held.update(_held(run)))
    ends, tokens, supervised = [time.perf_counter()], [], []
    for _ in range(run.total_steps):
        line, _ = loop.train_step(run)
        run.state.step += 1
        ends.append(time.perf_counter())
        tokens.append(line["tokens"])
        supervised.append(line["supervised_tokens"])
    if world > 1:
        dist.destroy_process_group()
    own = {"held_bytes": held}
    if job.memory:
        own["computed_gib"] = {name: size / 2**30 for name, size in vars(job.memory).items()}
        own["computed_total_gib"] = job.memory.total / 2**30
    return _result(spec, run.module.model, ends, tokens, supervised) | own


def _held(run: Any) -> dict[str, int]:
    """Bytes of this process's weights, gradients and moments at the end of a step."""
    weights = list(run.module.parameters())
    moments = [v for state in run.optimizer.state.values() for v in state.values() if v.ndim]
    parts = {
        "weights": weights,
        "gradients": [weight.grad for weight in weights if weight.grad is not None],
        "optimizer": moments,
    }
    return {name: sum(_own_bytes(tensor) for tensor in some) for name, some in parts.items()}


def _own_bytes(tensor: torch.Tensor) -> int:
    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(own.nbytes)


def _write_start(run: Any, path: Path) -> None:
    """The order of the rows and the new adapters, for peers that shall start alike."""
    steps = range(run.total_steps)
    order = [i for step in steps for part in run.plan.share(step, 0, 1) for i in part]
    named = run.module.model.named_parameters()
    adapters = {name: p.detach().clone() for name, p in named if p.requires_grad}
    torch.save({"order": order, "adapters": adapters}, path)


def random_model(spec: dict[str, Any]) -> dict[str, Any]:
    """A Llama of some 40 million random parameters, or `spec`'s, with the shipped tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from aift_ray.models import hub

    shipped, folder = hub.resolve("hina-4m"), f"{spec['folder']}/model"
    config, numbers = AutoConfig.from_pretrained(shipped), spec.get("numbers", {})
    if "kind" in spec:
        stops = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id")}
        config = AutoConfig.for_model(spec["kind"], **stops, **numbers)
    else:
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = 640, 1728, 7
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 10, 10, 64
        for name, value in numbers.items():
            setattr(config, name, value)
    dtype = getattr(torch, spec.get("dtype", "float32"))
    with _device():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(shipped).save_pretrained(folder)
    return {
        "parameters": model.num_parameters(),
        "bytes": sum(p.nbytes for p in model.parameters()),
    }


def loading(spec: dict[str, Any]) -> dict[str, Any]:
    """As one of a gloo group: what this process holds while the model is built, and saved."""
    import torch.distributed as dist

    from aift_ray.engine import loop
    from aift_ray.engine.build import build
    from aift_ray.engine.checkpoint.writer import CheckpointWriter
    from aift_ray.parallel import deepspeed_compat
    from aift_ray.parallel.group import Group

    rank, world = spec["rank"], spec["world"]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{spec['port']}", rank=rank, world_size=world)
    # what a first load imports is no part of the model
    import bitsandbytes  # noqa: F401

    job = pickle.loads(Path(spec["job"]).read_bytes())
    watch, loaded = _Anonymous(), list[float]()
    made = deepspeed_compat.partition

    def partition(parts: Any, config: Any) -> None:
        # after that the engine makes its buffers
        made(parts, config)
        loaded.append(watch.peak_mib())

    deepspeed_compat.partition = partition
    run = build(job, Group(rank, world, torch.device("cpu")))
    built = max(watch.peak_mib(), *loaded, 0.0)
    loop.train_step(run)
    held = watch.now_mib()
    watch.peak_mib()
    CheckpointWriter(run, None).save(at_once=True)
    dist.barrier()
    saved = watch.peak_mib()
    dist.destroy_process_group()
    weights = {"loaded_mib": loaded[0] if loaded else built}
    return weights | {"built_mib": built, "held_mib": held, "saved_mib": saved}


def checkpoint_writers(spec: dict[str, Any]) -> dict[str, Any]:
    """As one of a gloo group: what a checkpoint of a sharded run costs by each writer, in turn."""
    import shutil
    from dataclasses import replace

    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    from aift_ray.engine import loop
    from aift_ray.engine.build import build
    from aift_ray.parallel.group import Group

    rank, world = spec["rank"], spec["world"]
    address = f"tcp://127.0.0.1:{spec['port']}"
    dist.init_process_group("cpu:gloo", address, rank=rank, world_size=world)
    job = pickle.loads(Path(spec["job"]).read_bytes())
    run = build(job, Group(rank, world, torch.device("cpu")))
    loop.train_step(run)
    run.state.step += 1
    folder, found = job.checkpoints, dict[str, list[dict[str, Any]]]()
    for _ in range(spec["rounds"]):
        for name, copy in spec["writers"].items():
            training = job.config.training.model_copy(update={"async_save": copy})
            run.job = replace(job, config=job.config.model_copy(update={"training": training}))
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            dist.barrier()
            watch = _Anonymous()
            written, began = _written_bytes(), time.perf_counter()
            wait, read = _writers(run, folder)[name]()
            waited = time.perf_counter() - began
            wait()
            dist.barrier()
            total = time.perf_counter() - began
            saved, written = watch.peak_mib(), _written_bytes() - written
            held = _sharded_tensors(run)
            equal = True
            for key, tensor in read(held).items():
                own = held[key]
                whole = own.full_tensor() if isinstance(own, DTensor) else own
                equal = equal and torch.equal(whole, tensor)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            mib = {"saved_mib": saved, "written_mib": written / 2**20, "files_mib": size / 2**20}
            line = {"waited_s": waited, "total_s": total, **mib, "equal": equal}
            found.setdefault(name, []).append(line)
            dist.barrier()
    dist.destroy_process_group()
    return found


def _written_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def _sharded_tensors(run: Any) -> dict[str, torch.Tensor]:
    """Weights and moments of a run by name, as torch.distributed.checkpoint takes them."""
    from aift_ray.engine.checkpoint import split_moments
    from aift_ray.engine.model_writer import named_weights

    moments = split_moments(run.parallel_model.optimizer_state())[1]
    # each once: safetensors refuses tied weights
    weights = {f"model.{n}": w.detach() for n, w in named_weights(run.module.model).items()}
    return weights | {f"optimizer.{name}": moment for name, moment in moments.items()}


def _writers(run: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """Each starts a checkpoint; gives what waits for its end, and what reads it back."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    from aift_ray.engine.checkpoint.writer import CheckpointWriter

    def ours() -> Any:
        checkpoints = CheckpointWriter(run, None)
        checkpoints.save(at_once=False)

        def read(_: Any) -> dict[str, torch.Tensor]:
            step = folder / f"step-{run.state.step}"
            weights = load_file(step / "model.safetensors").items()
            moments = load_file(step / "optimizer.moments").items()
            found = {f"model.{name}": weight for name, weight in weights}
            return found | {f"optimizer.{name}": moment for name, moment in moments}

        return checkpoints.settle, read

    def plain(asynchronous: bool) -> Any:
        writer = dcp.FileSystemWriter(folder)
        state = _sharded_tensors(run)
        future: Any = None
        if asynchronous:
            future = dcp.async_save(state, storage_writer=writer)
        else:
            dcp.save(state, storage_writer=writer)

        def read(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            empty = {name: torch.zeros_like(tensor) for name, tensor in held.items()}
            dcp.load(empty, checkpoint_id=folder)
            return {name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in empty.items()}

        return (future.result if future else lambda: None), read

    def hugging_face() -> Any:
        state = _sharded_tensors(run)
        files = {name: 1 if name.startswith("model.") else 2 for name in state}
        writer = dcp.HuggingFaceStorageWriter(
            str(folder), files, save_distributed=True, enable_consolidation=True
        )
        dcp.save(state, storage_writer=writer)

        def read(_: Any) -> dict[str, torch.Tensor]:
            found: dict[str, torch.Tensor] = {}
            for path in folder.glob("*.safetensors"):
                found |= load_file(path)
            return found

        return lambda: None, read

    return {
        "ours": ours,
        "ours, no copy": ours,
        "dcp": lambda: plain(False),
        "dcp async": lambda: plain(True),
        "dcp hugging face": hugging_face,
    }


class _Anonymous:
    """Samples the memory of this process that no file stands behind."""

    def __init__(self) -> None:
        self._begin = self._peak = self._read()
        threading.Thread(target=self._sample, daemon=True).start()

    def peak_mib(self) -> float:
        """The peak since the last call, over what was there at first."""
        found, self._peak = self._peak - self._begin, self._read()
        return found

    def now_mib(self) -> float:
        return self._read() - self._begin

    def _sample(self) -> None:
        while True:
            self._peak = max(self._peak, self._read())
            time.sleep(0.002)

    @staticmethod
    def _read() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024


def saving(spec: dict[str, Any]) -> dict[str, Any]:
    """This project's loop with a checkpoint every few steps: what training waited for them."""
    import shutil

    from aift_ray.engine import loop
    from aift_ray.engine.build import build
    from aift_ray.engine.checkpoint.writer import CheckpointWriter
    from aift_ray.parallel.group import Group

    job = pickle.loads(Path(spec["job"]).read_bytes())
    run = build(job, Group.alone())
    saver = CheckpointWriter(run, None)
    loop.train_step(run)
    began = time.perf_counter()
    for _ in range(spec["steps"]):
        loop.train_step(run)
        run.state.step += 1
        if run.state.step % spec["every"] == 0:
            saver.save(at_once=False)
    stepped = time.perf_counter() - began
    saver.close()
    newest = max((job.checkpoints).iterdir(), key=lambda path: path.stat().st_mtime)
    size = sum(path.stat().st_size for path in newest.rglob("*"))
    shutil.rmtree(job.checkpoints)
    return {
        "seconds": stepped,
        "waited_s": saver.seconds,
        "share": saver.seconds / stepped,
        "checkpoint_mib": size / 2**20,
    }


def peer(spec: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer, or transformers' Trainer with PEFT, over one pass.

    `spec["trainer"]` is "trl" or "transformers"; `spec["arguments"]` go to its configuration.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if spec["bf16"] else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"])
    rows = Dataset.from_list(json.loads(Path(spec["rows"]).read_text("utf-8")))
    common = {
        "output_dir": str(Path(spec["rows"]).parent / "peer"),
        "per_device_train_batch_size": spec["batch"],
        "learning_rate": spec["learning_rate"],
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "gradient_checkpointing": False,
        "bf16": spec["bf16"],
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    make = _trl if spec["trainer"] == "trl" else _transformers
    path = Path(spec.get("start", ""))
    start = torch.load(path) if path.is_file() else None
    if start:
        rows = rows.select(start["order"])
        common["train_sampling_strategy"] = "sequential"
    trainer = make(model, tokenizer, rows, common | spec["arguments"], _lora(spec.get("lora")))
    if start:
        named = dict(trainer.model.named_parameters())
        with torch.no_grad():
            for name, value in start["adapters"].items():
                named[name].copy_(value)
    counting = _Counting(trainer.data_collator)
    trainer.data_collator = counting
    watch = _watch()
    trainer.add_callback(watch)
    trainer.train()
    return _result(spec, trainer.model, watch.ends, counting.tokens, counting.supervised)


def _lora(rank: int | None) -> Any:
    from peft import LoraConfig

    if rank is None:
        return None
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _trl(model: Any, tokenizer: Any, rows: Any, arguments: dict[str, Any], lora: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(**arguments),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora,
    )


def _transformers(
    model: Any, tokenizer: Any, rows: Any, arguments: dict[str, Any], lora: Any
) -> Any:
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    return Trainer(
        model=get_peft_model(model, lora) if lora else model,
        args=TrainingArguments(**arguments),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


class _Counting:
    """A collator that counts what it hands out, a batch a step, in the order of the steps."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate
        self.tokens: list[int] = []
        self.supervised: list[int] = []

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        mask = batch.get("attention_mask")
        self.tokens.append(int(mask.sum()) if mask is not None else batch["input_ids"].numel())
        self.supervised.append(int((batch["labels"][:, 1:] != IGNORED).sum()))
        return batch


def _watch() -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Notes when training began and each step ended."""

        ends: list[float]

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.ends = [time.perf_counter()]

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ends.append(time.perf_counter())

    return Watch()


def _result(
    spec: dict[str, Any], model: Any, ends: list[float], tokens: list[int], supervised: list[int]
) -> dict[str, Any]:
    """Rates over the steps after the warm-up, and sums over all steps."""
    assert len(ends) - 1 == len(tokens) == len(supervised), "a batch is a step"
    skipped = spec["warmup"]
    seconds = ends[-1] - ends[skipped]
    found = {
        "supervised_per_s": sum(supervised[skipped:]) / seconds,
        "tokens_per_s": sum(tokens[skipped:]) / seconds,
        "seconds": seconds,
        "steps": len(tokens),
        "timed_steps": len(tokens) - skipped,
        "tokens": sum(tokens),
        "supervised_tokens": sum(supervised),
        "peak_gib": peak_gib(),
        "threads": torch.get_num_threads(),
    }
    if spec.get("eval_rows"):
        found["eval_loss"] = held_out_loss(model, spec)
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_gib() -> float:
    """Peak of what the GPU holds for this process, where there is one.

    Elsewhere the peak of its resident memory, without what ru_maxrss inherits from its parent.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.is_file():
        kib = status.read_text().split("VmHWM:")[1].split()[0]
        return int(kib) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def quantize(spec: dict[str, Any]) -> dict[str, Any]:
    """`aift-ray quantize` with these settings; its report."""
    import transformers

    from aift_ray.config import QuantizeConfig
    from aift_ray.quantization.quantize_run import run

    transformers.logging.disable_progress_bar()
    return run(QuantizeConfig(**spec))


def held_out_loss(model: Any, spec: dict[str, Any]) -> float:
    """Loss per supervised token of held-out rows, one row at a time, alike for all."""
    rows = json.loads(Path(spec["rows"]).with_name("eval.json").read_text("utf-8"))
    model.eval()
    getattr(model, "base_model", model).set_attn_implementation("sdpa")
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast(_device().type, torch.bfloat16, enabled=spec["bf16"]):
        for row in rows[: spec["eval_rows"]]:
            labels = torch.tensor(row["labels"], device=model.device)[1:]
            places = (labels != IGNORED).nonzero().flatten()
            ids = torch.tensor([row["input_ids"]], device=model.device)
            logits = model(input_ids=ids, logits_to_keep=places, use_cache=False).logits[0]
            loss = torch.nn.functional.cross_entropy
            total += loss(logits.float(), labels[places], reduction="sum").item()
            count += len(places)
    return total / count


def main() -> None:
    """Run the function that argv names."""
    torch.manual_seed(0)
    known = (prepare, random_model, loading, checkpoint_writers, aift, saving, peer, quantize)
    functions = {function.__name__: function for function in known}
    result = functions[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
