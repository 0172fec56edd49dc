"""No dead settings: each one, changed, changes what a run does, or is an error."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.commandline import validated
from aift_ray.config import RunConfig, resume_rules
from aift_ray.config.section import leaves
from aift_ray.data.cache_location import cache_folder
from aift_ray.engine import loop, run_session, worker
from aift_ray.engine.build import build
from aift_ray.engine.checkpoint.writer import CheckpointWriter
from aift_ray.engine.precision import Precision
from aift_ray.engine.task_scores import TaskEvaluator
from aift_ray.engine.validate import Validator
from aift_ray.errors import TrainingError, UserError
from aift_ray.launch import training_run
from aift_ray.models import compiled_blocks
from aift_ray.parallel.group import Group
from aift_ray.ray_backend import ray_trainer
from aift_ray.ray_backend.ray_tokenize import encode_of
from aift_ray.runs import run_dir
from aift_ray.runs import run_dir_check as place
from aift_ray.runs.prepare import prepare
from tests.conftest import write_rows

CHANGED: dict[str, Any] = {
    "model": "other",
    "rope_scaling": "yarn:2",
    "method": "full",
    # errors with rows of one answer, and with the objective that trains them; that they act on
    # others is tested in tests/preference
    "objective": "dpo",
    "preference.beta": 0.5,
    "preference.label_smoothing": 0.1,
    "preference.length_normalized": True,
    "preference.rpo_alpha": 1.0,
    "preference.cpo_alpha": 0.5,
    "preference.simpo_gamma": 1.0,
    "preference.desirable_weight": 2.0,
    "preference.undesirable_weight": 2.0,
    "preference.center_rewards_coefficient": 0.01,
    "preference.reference": "other",
    # errors without completions that are generated; that they act on these is tested in tests/grpo
    "grpo.reward": ["rewards.py:f"],
    "grpo.reward_weights": [1.0],
    "grpo.reward_timeout": 1.0,
    "grpo.reward_memory": "1GB",
    "grpo.reward_processes": 2,
    "grpo.reward_on_failure": "none",
    "grpo.environment": "calculator",
    "grpo.max_turns": 2,
    "grpo.num_generations": 2,
    "grpo.num_generations_eval": 2,
    "grpo.max_completion_length": 8,
    "grpo.rollout_batch_size": 8,
    "grpo.steps_per_generation": 2,
    "grpo.num_iterations": 2,
    "grpo.temperature": 0.5,
    "grpo.top_p": 0.5,
    "grpo.top_k": 5,
    "grpo.min_p": 0.1,
    "grpo.estimator": "rloo",
    "grpo.loss_type": "grpo",
    "grpo.scale_rewards": "none",
    "grpo.beta": 0.1,
    "grpo.use_bias_correction_kl": False,
    "grpo.epsilon": 0.1,
    "grpo.epsilon_high": 0.3,
    "grpo.delta": 2.0,
    "grpo.mask_truncated_completions": True,
    "grpo.soft_punish_cache": 4,
    "grpo.dynamic_sampling_rounds": 1,
    "grpo.importance_sampling_correction": False,
    "grpo.importance_sampling_mode": "token_mask",
    "grpo.importance_sampling_clip_max": 2.0,
    "grpo.engine": "vllm",
    "grpo.placement": "apart",
    "grpo.rollout_workers": 2,
    "grpo.asynchronous": True,
    "output_dir": "elsewhere",
    "overwrite": True,
    "resume": "latest",
    # an error without --resume
    "resume_allow": ["training.seed"],
    "training.learning_rate": 2e-3,
    "training.batch_size": 3,
    "training.gradient_accumulation_steps": 2,
    "training.num_epochs": 2,
    "training.warmup_steps": 3,
    "training.max_grad_norm": 0.01,
    "training.eval_steps": 1,
    "training.save_steps": 1,
    "training.logging_steps": 1,
    "training.output_dir": "parent",
    "training.fp16": False,
    "training.gradient_checkpointing": True,
    "training.ddp": True,
    "training.local_rank": 0,
    "training.world_size": 2,
    "training.max_steps": 2,
    "training.seed": 7,
    "training.lr_scheduler": "linear",
    "training.warmup_ratio": 0.9,
    "training.min_lr_ratio": 0.5,
    # an error without wsd
    "training.decay_ratio": 0.5,
    "training.weight_decay": 0.5,
    "training.adam_beta1": 0.5,
    "training.adam_beta2": 0.5,
    "training.adam_epsilon": 1e-2,
    "training.precision": "bf16",
    "training.early_stopping_patience": 1,
    "training.load_best": True,
    "training.keep_checkpoints": 1,
    "training.exact_match_rows": 1,
    "training.exact_match_during": True,
    "training.exact_match_batch_size": 1,
    "training.exact_match_max_tokens": 2,
    "training.trial_batch": False,
    "training.max_hours": 1e-9,
    "training.skip_nonfinite": 1,
    "training.async_save": False,
    "training.neftune_noise_alpha": 5.0,
    "training.optimizer": "adamw_8bit",
    "training.compile": True,
    # an error without GPUs
    "training.kernels": "liger",
    # errors here: with adapters, and without recomputation; they act in tests/parallel/
    # test_shard_adamw.py and tests/models/test_recomputation.py
    "training.bf16_stochastic_round": True,
    "training.activation_checkpointing": "selective",
    "training.activation_offloading": True,
    "training.report_to": [],
    "lora.r": 2,
    "lora.lora_alpha": 1,
    "lora.target_modules": ["q_proj"],
    # an error on a dense model
    "lora.experts": True,
    "lora.lora_dropout": 0.5,
    "lora.bias": "all",
    "lora.task_type": "SEQ_CLS",
    "lora.use_qlora": True,
    "lora.qlora_4bit": False,
    "lora.use_rslora": True,
    "lora.use_dora": True,
    "lora.modules_to_save": ["norm"],
    "lora.init_lora_weights": "pissa",
    "lora.lora_plus_ratio": 16.0,
    # an error: no adapter
    "lora.init_from": "nowhere",
    "tokens.add": ["番目の言葉"],
    # an error without new tokens
    "tokens.train": "whole",
    "parallel.strategy": "fsdp",
    "parallel.max_memory_per_gpu": {0: "22GB"},
    "parallel.pipeline_parallel_size": 2,
    "parallel.tensor_parallel_size": 2,
    # an error with one worker
    "parallel.context_parallel_size": 2,
    "parallel.offload": True,
    "parallel.gpu_memory": "1MB",
    "parallel.spill_to_cpu": True,
    "parallel.pipeline_schedule": "gpipe",
    "parallel.pipeline_microbatches": 4,
    # an error beside ddp
    "parallel.backend": "deepspeed",
    "parallel.deepspeed_config": "nowhere.json",
    "data.train_files": ["other.jsonl"],
    # an error beside training files
    "data.mixture": [{"files": ["other.jsonl"]}],
    "data.eval_files": [],
    "data.validation_fraction": 0.5,
    "data.near_duplicates": "drop",
    "data.near_duplicate_threshold": 0.99,
    "data.contamination_files": ["other.jsonl"],
    "data.packing": "false",
    "data.tokens_per_micro_batch": 8,
    "data.sequence_length": 64,
    "data.on_bad_row": "error",
    "data.on_long_row": "error",
    "data.text_unit": "paragraph",
    "data.system_prompt": "あなたは親切です。",
    # an error on UTF-8, and without such a column
    "data.encoding": "cp932",
    "data.columns": {"output": "回答"},
    # an error without an .xlsx file
    "data.sheet": "Sheet1",
    "data.hidden_rows": "skip",
    "data.chat_template": "other.jinja",
    "data.train_turns": "last",
    "data.train_thoughts": "none",
    "data.train_end": "none",
    "data.on_rewritten_turn": "error",
    "data.prepare": "ray",
    "data.cache_dir": "tokens",
    "data.cache_limit": "1MB",
    "evaluation.tasks": [],
    "evaluation.steps": 2,
    # an error: its files are not there
    "evaluation.data_dir": "nowhere",
    "evaluation.limit": 1,
    "evaluation.num_few_shot": 1,
    "evaluation.chat": True,
    "evaluation.batch_size": 1,
    "ray.num_workers": 2,
    "ray.cpus_per_worker": 2.0,
    "ray.use_gpu": True,
    "ray.resources_per_worker": {"disk": 1.0},
    "ray.storage_path": "store",
    "ray.resize_seconds": 5.0,
    "ray.max_failures": 0,
}


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run in which every setting has something to act on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    rows = write_rows(tmp_path / "train.jsonl", 18)
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"instruction": "空の答え", "output": ""}\n')
        long = {"instruction": "長い" * 300, "output": "はい。"}
        file.write(json.dumps(long, ensure_ascii=False) + "\n")
        # nearly a row to evaluate on
        near = {"text": "雨にも負けず風にも負けず雪にも夏の暑さにも負けぬ丈夫な体を持ち、欲はなく"}
        file.write(json.dumps(near, ensure_ascii=False) + "\n")
        said = ["一は？", "<think>数える</think>二。", "三は？", "<think>足す</think>四。"]
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
        file.write(json.dumps({"conversations": turns}, ensure_ascii=False) + "\n")
    (tmp_path / "poem.txt").write_text("古池や\n蛙飛びこむ\n水の音\n", "utf-8")
    write_rows(tmp_path / "other.jsonl", 5, 50)
    (tmp_path / "other").symlink_to(tiny_model)
    # a template that cuts thoughts from the history
    forgetful = shutil.copytree(tiny_model, tmp_path / "forgetful")
    template = (tiny_model / "chat_template.jinja").read_text("utf-8")
    shown = "message['content']", "(message['content'] if loop.last else message['content'].split"
    template = template.replace(shown[0], shown[1] + "('</think>')[-1])")
    (forgetful / "chat_template.jinja").write_text(template, "utf-8")
    held_out = write_rows(tmp_path / "eval.jsonl", 4, 100)
    with held_out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": near["text"] + "、"}, ensure_ascii=False) + "\n")
    training = {
        "learning_rate": 1e-2,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "warmup_steps": 1,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 2,
        "gradient_checkpointing": False,
        "exact_match_rows": 3,
        "exact_match_max_tokens": 4,
    }
    data = {
        "train_files": [str(rows), str(tmp_path / "poem.txt")],
        "eval_files": [str(held_out)],
        "sequence_length": 128,
        "on_bad_row": "skip",
    }
    # matrices of 4,096 numbers and more, whose moments adamw_8bit keeps in 8 bits
    lora = {"lora_dropout": 0.0, "r": 128}
    colours = "".join(f'{{"question": "{n}番の花は？", "label": {n % 2}}}\n' for n in range(4))
    (tmp_path / "colours.jsonl").write_text(colours, "utf-8")
    task = 'name: c\nkind: choice\nfiles: [colours.jsonl]\nprompt: "{{ question }}"\n'
    (tmp_path / "colours.yaml").write_text(task + "choices: [赤, とても青い]\n", "utf-8")
    evaluation = {"tasks": [str(tmp_path / "colours.yaml")]}
    sections = {"training": training, "data": data, "lora": lora, "evaluation": evaluation}
    return {"model": str(forgetful), **sections}


def observed(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Everything that a run does and leaves, but for times."""
    seen: dict[str, Any] = {"trials": 0, "compiled": 0, "waited": 0, "asked": [], "losses": []}
    seen["scored"] = []
    answer, loss, wait = Validator.answer, Validator.loss, CheckpointWriter.settle
    rounds = TaskEvaluator._rounds
    monkeypatch.chdir(folder.parent)

    def ever_worse(self: Validator, module: Any) -> float:
        # so that early stopping and the best checkpoint have something to do
        seen["losses"].append(loss(self, module))
        return float(len(seen["losses"]))

    def trial(run: Any) -> None:
        seen["trials"] += 1

    def graph(module: Any, inputs: Any) -> Any:
        seen["compiled"] += 1
        return module.forward

    def answered(self: Validator, module: Any, prompts: Any) -> list[str]:
        seen["asked"].append((len(prompts), self.answers))
        return answer(self, module, prompts)

    def waited(self: CheckpointWriter) -> None:
        seen["waited"] += 1
        wait(self)

    def dealt(self: TaskEvaluator, lengths: Any) -> Any:
        parts = list(rounds(self, lengths))
        seen["scored"].append((list(lengths), [part for part, _ in parts]))
        return parts

    copies = run_dir.store(config, folder)
    spare = cache_folder(config.data) / ("0" * 32)
    spare.mkdir(parents=True, exist_ok=True)
    (spare / "train.arrow").write_bytes(bytes(2 << 20))
    os.utime(spare, (0, 0))
    with monkeypatch.context() as patch:
        # drawn from the lines below, which are compared
        patch.setattr(run_session, "plot", lambda folder: None)
        patch.setattr(CheckpointWriter, "settle", waited)
        patch.setattr(loop, "trial", trial)
        patch.setattr(compiled_blocks, "BACKEND", graph)
        patch.setattr(Validator, "answer", answered)
        patch.setattr(TaskEvaluator, "_rounds", dealt)
        patch.setattr(Validator, "loss", ever_worse)
        prepared = prepare(config, folder, config.worker_range(0)[1], False, None)
        run_dir.start(prepared.job.config, folder)
        run = worker.work(prepared.job, Group(0, 1, torch.device("cpu")))
    lines = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    unsteady = {"time", "tokens_per_second"}
    weights = sorted((folder / "model").glob("*.safetensors"))
    trainer = ray_trainer._trainer(prepared.job, config.worker_range(0), bool(config.ray.use_gpu))
    # the model of a run that has ended may not be trained further
    trained = build(prepared.job, run.group)
    with torch.no_grad():
        next(p for p in trained.module.parameters() if p.requires_grad).fill_(float("nan"))
    try:
        loop.train_step(trained)
        seen["not finite"] = "skipped"
    except TrainingError:
        seen["not finite"] = "stopped"
    return seen | {
        "lines": [{k: v for k, v in line.items() if k not in unsteady} for line in lines],
        "checkpoints": sorted(p.name for p in (folder / "checkpoints").iterdir()),
        "board": (folder / "tensorboard").is_dir(),
        "trained": [n for n, p in run.module.named_parameters() if p.requires_grad],
        "recomputes": getattr(run.module.model, "is_gradient_checkpointing", None),
        "on_gpu": Precision.resolve(config, torch.device("cuda")).name,
        "counts": vars(prepared.prepared.train),
        "warned": prepared.prepared.warnings,
        "cache": str(prepared.job.cache.parent),
        "spare cache": spare.exists(),
        "tokenizes": encode_of(config.data).__name__,
        "final weights": {p.name: sha256(p.read_bytes()).hexdigest() for p in weights},
        "folder": str(place.output_folder(config).parent),
        "occupied": bool(run_dir.check(config, folder)),
        "resumes": run_dir.resume_point(config, folder)[0] is not None,
        "workers": str(trainer.scaling_config),
        "threads": trainer.train_loop_config["threads"],
        "copies": copies.steps() if copies else None,
        "failures": trainer.run_config.failure_config.max_failures,
    }


# tested below by itself: it decides who runs, not what
ELSEWHERE = {"training.local_rank"}
# settings whose error does not name them, and what it says of them
REFUSED = {
    "objective": "none of its 0 usable rows",
    "parallel.gpu_memory": "there are 0.0 GiB on the device",
    "data.on_bad_row": "output is empty",
    "evaluation.data_dir": "nowhere/jnli",
}
# what makes sense only together with another setting
TOGETHER = {
    "training.ddp": {"training.world_size": 2},
    "parallel.context_parallel_size": {"ray.num_workers": 1},
    "evaluation.data_dir": {"evaluation.tasks": ["jnli"]},
}


def changed(base: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The settings with one of them changed."""
    result: dict[str, Any] = json.loads(json.dumps(base))
    for dotted, new in {name: value, **TOGETHER.get(name, {})}.items():
        *sections, last = dotted.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = new
    return result


def test_the_table_names_every_setting() -> None:
    assert set(CHANGED) == {name for name, _ in leaves(RunConfig())}


def test_what_a_change_means_for_a_resumed_run_is_settled_for_every_setting() -> None:
    named = [name for names in resume_rules._NAMES.values() for name in names.split()]
    assert sorted(named) == sorted(name for name, _ in leaves(RunConfig()))


# the compiler looks at it, and pytest makes an error of the warning
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_every_setting_has_an_effect_or_an_error(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = observed(validated(base), tmp_path / "plain", monkeypatch)
    again = observed(validated(base), tmp_path / "again", monkeypatch)
    assert plain == again, "an observation repeats itself"
    dead, blamed = [], []
    for name in CHANGED.keys() - ELSEWHERE:
        try:
            config = validated(changed(base, name, CHANGED[name]))
            if observed(config, tmp_path / name.replace(".", "-"), monkeypatch) == plain:
                dead.append(name)
        except UserError as error:
            if REFUSED.get(name, name) not in str(error):
                blamed.append(f"{name}: {error}")
    assert dead == []
    assert blamed == [], "an error names its setting"


def test_a_local_rank_makes_this_process_a_worker_of_a_group(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    base["output_dir"] = str(tmp_path / "run")
    alone, joined = (validated(changed(base, "training.local_rank", rank)) for rank in (-1, 0))
    assert training_run.run(alone, dry_run=True) == {}
    with pytest.raises(UserError, match=r"training\.local_rank"):
        training_run.run(joined, dry_run=True)
