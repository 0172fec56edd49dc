"""A DeepSpeed file acts as with transformers' Trainer, or every problem of it is told at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray import train
from aift_ray.config import deepspeed_config
from aift_ray.config.deepspeed_file import read
from aift_ray.config.run_config import RunConfig
from aift_ray.errors import ConfigError
from aift_ray.utils import deepspeed_check
from aift_ray.utils.exit_status import guarded
from tests.conftest import KEITAI
from tests.helpers.deepspeed_files import PUBLISHED, WARMUP_DECAY_LR, WARMUP_LR

Configure = Callable[..., Any]
Told = Callable[..., str]


@pytest.fixture
def told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Told:
    """What the command says of a file's content, before it loads torch; None: of no file."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "ds_config.json"

    def make(
        content: object, *flags: str, strategy: str = "zero3", backend: str = "deepspeed"
    ) -> str:
        if content is not None:
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            path.write_bytes(raw)
        how = ["--strategy", strategy, "--parallel.backend", backend]
        how += ["--parallel.deepspeed_config", str(path), "--output-dir", str(tmp_path / "out")]
        rows = ["--train-file", str(KEITAI / "train.jsonl")]
        assert guarded(train.run, ["--dry-run", *how, *rows, *flags]) == 2
        return capsys.readouterr().err

    return make


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parallel__strategy": "fsdp"}, r"parallel\.backend: .*zero1, zero2 and zero3, not fsdp"),
        (
            {"parallel__offload": True, "method": "qlora"},
            r"parallel\.offload: can't move a base model of 4 bits",
        ),
        ({"training__compile": True}, r"training\.compile: .*DeepSpeed"),
        ({"training__precision": "fp16"}, r"training\.precision: fp16 scales the loss"),
        (
            {"training__optimizer": "adamw_8bit"},
            r"training\.optimizer: .*is not possible with parallel\.backend deepspeed",
        ),
    ],
)
def test_what_it_can_not_have_is_refused_by_name(
    values: dict[str, Any], message: str, configure: Configure
) -> None:
    given = {"parallel__strategy": "zero3", "parallel__backend": "deepspeed"} | values
    with pytest.raises(ConfigError, match=message):
        configure(**given)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_files_as_transformers_publishes_them_run(
    name: str, given: Callable[..., RunConfig]
) -> None:
    content = PUBLISHED[name]
    config = given(content, parallel__strategy=name[:5])
    assert deepspeed_config.problems(config, 2) == []
    deepspeed_config.fill(config)
    wanted = content.get("scheduler", {}).get("type", "cosine")
    assert config.training.lr_scheduler == wanted
    options = deepspeed_config.engine_options(config.parallel)["zero_optimization"]
    for key, value in content["zero_optimization"].items():
        if not isinstance(value, dict) and value != "auto" and "weights_on_model" not in key:
            assert options[key] == value
    aio = content["zero_optimization"].get("aio", {})
    engine = deepspeed_config.engine_options(config.parallel)
    assert engine.get("aio", {}) == {k: v for k, v in aio.items() if k != "thread_count"}
    sections = [key for key in content["zero_optimization"] if key.startswith("offload")]
    assert list(deepspeed_config.offloaded(config.parallel)) == sections


def test_a_file_may_begin_with_a_mark_and_be_named_from_where_the_run_is_started(
    given: Callable[..., RunConfig],
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = given({"zero_optimization": {"stage": 3}})
    path = Path(str(config.parallel.deepspeed_config))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(str(path)) == ({"zero_optimization": {"stage": 3}}, [])
    # workers run in folders of their own
    monkeypatch.chdir(path.parent)
    how = {"parallel__strategy": "zero3", "parallel__backend": "deepspeed"}
    relative = configure(**how, parallel__deepspeed_config=path.name)
    assert relative.parallel.deepspeed_config == str(path)


WRONG = """{"zero_optimization": {"stage": 3, "offload_optimizer": [1], "sub_group_size": NaN,
  "offload_param": {"device": "tape", "device": "tape", "pin_memory": 1, "ratio": 0.5},
  "reduce_bucket_size": 1e999, "zoo": 1, "overlap_comm": "yes", "allgather_bucket_size": 5e8,
  "stage3_max_live_parameters": -1, "cpu_offload": true},
 "bf16": {"enabled": "yes", "enable": true}, "fp16": 1, "train_batch_size": "8",
 "train_micro_batch_size_per_gpu": 2.5, "gradient_accumulation_steps": true,
 "gradient_clipping": 0.5, "gradient_clipping": null, "zoom": false, "wall_clock_breakdown": true,
 "optimizer": {"type": 1, "params": {"betas": "0.9", "lr": "fast", "foo": 1}},
 "scheduler": {"type": "OneCycle"}, "aio": {"use_gds": true, "block_size": -1, "thread_count": 8},
 "amp": {"enabled": false}}"""
ANSWERS = (
    "gradient_clipping is there more than once",
    "zero_optimization.offload_param.device is there more than once",
    "zero_optimization.sub_group_size is NaN, which is no number of JSON",
    "zero_optimization.reduce_bucket_size is Infinity, which is no number of JSON",
    "zero_optimization.offload_optimizer is [1], and an object is expected",
    'offload_param.device is "tape", and none, cpu or nvme is expected',
    "offload_param.pin_memory is 1, and true or false is expected",
    "offload_param.ratio is not done by aift-ray",
    "zero_optimization.zoo is not done by aift-ray",
    'zero_optimization.overlap_comm is "yes", and true, false or null is expected',
    "stage3_max_live_parameters is -1, and a whole number of 0 or more is expected",
    'write "offload_optimizer": {"device": "cpu"}',
    'bf16.enabled is "yes", and true or false is expected',
    "bf16.enable is not done by aift-ray\n      did you mean enabled?",
    "fp16 is 1, and an object is expected",
    'train_batch_size is "8", and a whole number of 1 or more is expected',
    "train_micro_batch_size_per_gpu is 2.5, and a whole number",
    "gradient_accumulation_steps is true, and a whole number",
    "gradient_clipping is null, and a number of 0 or more is expected",
    "zoom is not done by aift-ray",
    "wall_clock_breakdown is true, which is not done by aift-ray",
    "optimizer.type is 1, and a name is expected",
    'optimizer.params.betas is "0.9", and a list of two numbers',
    'optimizer.params.lr is "fast", and a number of 0 or more is expected',
    "optimizer.params.foo is not done by aift-ray",
    'scheduler.type is "OneCycle" there, and training.lr_scheduler is cosine',
    "aio.use_gds is true, which is not done by aift-ray",
    "aio.block_size is -1",
    "aio.thread_count is 8, which is not done by aift-ray\n      write intra_op_parallelism",
    # other problems than the file's
    "training.num_epochs: 'x' is not allowed",
    "lora.qlora_4bit: zero3 can't shard 8-bit weights",
    "parallel.backend: deepspeed is not installed",
    "nowhere.jsonl",
)


def test_every_problem_of_a_file_and_beside_it_is_told_at_once(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepspeed_check, "find_spec", lambda name: None)
    flags = "--method qlora --lora.qlora_4bit false --training.num_epochs x"
    text = told(WRONG.encode(), *flags.split(), "--train-file", "nowhere.jsonl")
    assert [part for part in ANSWERS if part not in text] == []
    # of a right value, a wrong one, and one that is off nothing is compared
    for part in ("allgather_bucket_size", "training.batch_size", "max_grad_norm", "amp"):
        assert part not in text
    assert text.count("gradient_clipping is there") == 1


DIFFERENT = {
    "bf16": {"enabled": True},
    "fp16": {"enabled": True},
    "train_batch_size": 7,
    "train_micro_batch_size_per_gpu": 3,
    "gradient_clipping": 0.25,
    "optimizer": {"type": "Lamb", "params": {"lr": 3.0, "betas": [0.8, 0.9], "eps": "auto"}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": 1e-6,
            "warmup_max_lr": "auto",
            "total_num_steps": 900,
            "warmup_type": "linear",
            "last_batch_iteration": 7,
        },
    },
    "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}},
}


def test_what_contradicts_a_setting_is_told_with_both_values_and_the_flag(told: Told) -> None:
    flags = "--training.precision fp32 --num-workers 2 --training.lr_scheduler cosine"
    text = told(DIFFERENT, *flags.split(), strategy="zero2")
    for what, remedy in (
        ("bf16.enabled is true there, and training.precision is fp32", "--training.precision bf16"),
        ("fp16.enabled is true there, and training.precision is fp32", "--parallel.backend fsdp2"),
        ("train_batch_size is 7 there, and the global batch is 32", "--num-workers"),
        (
            "train_micro_batch_size_per_gpu is 3 there, and training.batch_size is 4",
            "--training.batch_size 3",
        ),
        (
            "gradient_clipping is 0.25 there, and training.max_grad_norm is 1.0",
            "--training.max_grad_norm 0.25",
        ),
        ('optimizer.type is "Lamb" there, and training.optimizer is AdamW', 'write "AdamW"'),
        ("params.lr is 3.0 there, and training.learning_rate is 0.0002", "learning_rate 3.0"),
        ("betas is [0.8, 0.9] there", "--training.adam_beta1 0.8 --training.adam_beta2 0.9"),
        ("weight_decay is left out there, for which DeepSpeed takes 0.0", "weight_decay 0.0"),
        ("stage is 3 there, and parallel.strategy is zero2", "--strategy zero3"),
        (
            "scheduler.type is WarmupDecayLR there, and training.lr_scheduler is cosine",
            "--training.lr_scheduler WarmupDecayLR",
        ),
        ("warmup_min_lr is 1e-06 there, and the warm-up begins at 0", 'write "auto"'),
        (
            "total_num_steps is 900 there, and training.max_steps is null",
            "--training.max_steps 900",
        ),
        ("warmup_num_steps is left out there, for which DeepSpeed takes 1000", "warmup_steps 1000"),
        ('warmup_type is "linear" there', "--training.lr_scheduler linear"),
        ("last_batch_iteration is 7 there", "--resume"),
        ("offload_param needs stage 3, not 2 (device nvme)", "--strategy zero3"),
        ("offload_param has no nvme_path", "nvme_path"),
    ):
        problem = next((each for each in text.split("\n  - ") if what in each), "")
        assert remedy in problem, (what, text)
    file = {"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "here"}}}
    assert 'has the nvme_path "here", and workers run in folders of their own' in told(file)
    text = told({"bf16": {"enabled": False}})
    assert "bf16.enabled is false there, and training.precision is auto" in text
    assert "--training.precision fp32" in text
    text = told({}, backend="fsdp2")
    assert "applies to backend deepspeed only" in text


def test_a_schedule_of_a_file_is_refused_where_other_settings_shape_another(told: Told) -> None:
    text = told({"scheduler": WARMUP_LR}, "--training.min_lr_ratio", "0.1")
    assert "training.min_lr_ratio: does not act on WarmupLR" in text
    params = WARMUP_LR["params"] | {"warmup_num_steps": 7}
    text = told({"scheduler": WARMUP_LR | {"params": params}}, "--training.warmup_ratio", "0.1")
    assert "warmup_num_steps is 7 there, and training.warmup_ratio is 0.1" in text
    text = told({"scheduler": WARMUP_DECAY_LR | {"type": "WarmupLR"}})
    assert "WarmupLR has no such parameter" in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\xff\xfe{\x00}\x00", "it is not UTF-8 (byte 0)"),
        (b'{\n  // of ours\n  "bf16": {}}', "line 2, column 3: JSON has no comments"),
        (b"[1]", "it is not a JSON object"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": 1', "line 1, column 8"),
    ],
)
def test_a_file_that_is_no_json_is_told_with_the_place(
    content: bytes, reason: str, told: Told
) -> None:
    assert reason in told(content)


def test_a_folder_and_a_missing_file_are_told(told: Told, tmp_path: Path) -> None:
    assert "can't be read: No such file or directory" in told(None)
    (tmp_path / "ds_config.json").mkdir()
    assert "can't be read: Is a directory" in told(None)


def test_keys_without_stage3_and_features_that_are_off_are_taken(
    given: Callable[..., RunConfig],
) -> None:
    zero = {"max_live_parameters": 0, "sub_group_size": 0, "legacy_stage1": False}
    zero |= {"ignore_unused_parameters": True, "memory_efficient_linear": False}
    off = {"partition_activations": False, "number_checkpoints": 4}
    config = given({"zero_optimization": zero, "activation_checkpointing": off})
    assert deepspeed_config.problems(config, 2) == []
    assert deepspeed_config.zero_options(config.parallel)["stage3_max_live_parameters"] == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"scheduler": {"type": "auto"}}, ('scheduler.type is "auto"', "a name")),
        ({"optimizer": {"type": "auto"}}, ('optimizer.type is "auto"', "a name")),
        ({"zero_optimization": {"reduce_bucket_size": 1e200}}, ("reduce_bucket_size is 1e+200",)),
        ({"zero_optimization": {"bf16": {}}}, ("move it to the top level",)),
        ({"aio": {}, "zero_optimization": {"aio": {}}}, ("zero_optimization.aio is there as aio",)),
        ({"communication_data_type": "bf16"}, ("communication_data_type is",)),
        ({"zero_optimization": True}, ('write {"stage": ...}',)),
        ({"bfloat16": {"enabled": True}}, ("write bf16",)),
        (
            {"zero_optimization": {"max_live_parameters": 1, "stage3_max_live_parameters": 1}},
            ("zero_optimization.stage3_max_live_parameters is there",),
        ),
        (b'{"train_batch_size": ' + b"9" * 5000 + b"}", ("a number of 5,000 digits",)),
        (
            {
                "zero_optimization": {
                    "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp/" + "a" * 300}
                }
            },
            ("no file can be written there", "name too long"),
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told_before_the_start(
    content: object, expected: tuple[str, ...], told: Told
) -> None:
    message = told(content)
    for each in expected:
        assert each.lower() in message.lower(), message
