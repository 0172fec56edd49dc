"""Flags and YAML files make one configuration, or one message with every mistake in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aift_ray.__main__ import USAGE
from aift_ray.__main__ import VERBS as VERB_RUNS
from aift_ray.commandline import parse
from aift_ray.config import LoRAConfig, RunConfig, TrainingConfig
from aift_ray.config.section import leaves
from aift_ray.errors import ConfigError
from aift_ray.utils.exit_status import guarded


def read(*argv: str) -> RunConfig:
    return parse(argv, RunConfig, "train", "description").config


def complaint(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_short_flags_stand_for_settings() -> None:
    config = read(
        *("--model", "m", "--method", "full", "--strategy", "ddp", "--num-workers", "2"),
        *("--train-file", "a", "--train-file=b,c", "--eval-file", "d", "--output-dir", "o"),
        *("--max-steps", "7", "--resume", "latest", "--seed", "3"),
    )
    assert (config.model, config.method, config.parallel.strategy) == ("m", "full", "ddp")
    assert config.worker_range(0) == (2, 2)
    assert config.data.train_files == ["a", "b,c"]
    assert config.data.eval_files == ["d"]
    assert (config.output_dir, config.training.max_steps, config.resume) == ("o", 7, "latest")
    assert config.training.seed == 3


def test_flags_win_over_files_and_files_over_defaults(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("training: {learning_rate: 1e-3, batch_size: 2}\nlora:\n", "utf-8")
    second.write_text("training: {batch_size: 3}\n", "utf-8")
    files = ("--config", str(first), "--config", str(second))
    config = read(*files, "--training.warmup_steps", "5")
    assert config.training.learning_rate == 1e-3
    assert config.training.batch_size == 3
    assert config.training.warmup_steps == 5
    assert config.training.num_epochs == TrainingConfig().num_epochs
    assert read(*files, "--training.batch_size", "9").training.batch_size == 9


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("training: {batchsize: 4, learning_rate: -1}\n", "utf-8")
    message = complaint(
        *("--config", str(file), "--lora.rank", "8", "--method", "dora"),
        *("--training.num_epochs", "many", "--strategy", "fsdp9"),
    )
    assert "6 problems" in message
    for part in (
        "training.batchsize: there is no such setting",
        "did you mean 'training.batch_size'?",
        "training.learning_rate: -1 is not allowed: input should be greater than 0",
        "--lora.rank: there is no such flag",
        "method: 'dora' is not allowed: input should be 'full', 'lora' or 'qlora'",
        "did you mean 'lora'?",
        "training.num_epochs: 'many' is not allowed",
        "parallel.strategy: 'fsdp9' is not allowed",
        "did you mean 'fsdp'?",
    ):
        assert part in message


def test_none_leaves_a_setting_unset() -> None:
    given = "--objective grpo --reward japanese --grpo.delta none --grpo.epsilon_high=none"
    config = read(*given.split(), "--grpo.scale_rewards", "none")
    assert config.grpo.delta is config.grpo.epsilon_high is None
    assert config.grpo.scale_rewards == "none", "a word of its own"
    assert "grpo.max_turns: 'none' is not allowed" in complaint("--grpo.max_turns", "none")


def test_names_of_other_programs_are_answered_with_the_setting_of_their_meaning() -> None:
    message = complaint("--loss_type", "ipo", "--lora_rank", "8", "--data.cutoff_len", "512")
    for part in (
        "write --objective ipo, or another loss of pairs; that of grpo is grpo.loss_type",
        "write --lora.r",
        "write --data.sequence_length",
    ):
        assert part in message


def test_a_number_out_of_range_hides_no_conflict() -> None:
    given = "--objective reward --preference.label_smoothing 0.7 --preference.beta 0.1"
    given += " --training.exact_match_rows 4 --training.learning_rate -1 --parallel.strategy tensor"
    with pytest.raises(ConfigError) as caught:
        read(*given.split())
    assert {problem.where for problem in caught.value.problems} == {
        "preference.label_smoothing",
        "training.learning_rate",
        "preference.beta",
        "training.exact_match_rows",
        "parallel.strategy",
    }
    # what may only follow from the default that stands for a wrong value is not said
    with pytest.raises(ConfigError) as caught:
        read("--objective", "robst", "--preference.beta", "0.1")
    assert [problem.where for problem in caught.value.problems] == ["objective"]
    with pytest.raises(ConfigError) as caught:
        read("--objective", "robust", "--preference.label_smoothing", "0.7")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("content", "part"),
    [("- 1\n", "holds no settings"), ("a: [\n", "is not YAML"), (None, "can't be read")],
)
def test_a_wrong_file_of_settings_is_named(content: str | None, part: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content, "utf-8")
    message = complaint("--config", str(file))
    assert str(file) in message
    assert part in message


def test_yes_no_flags_take_a_value_or_none() -> None:
    assert read("--overwrite").overwrite
    assert read("--overwrite", "--training.fp16", "false").training.fp16 is False
    assert read("--training.load_best", "--model", "m").training.load_best


@pytest.mark.parametrize("word", ["0", "2:1", "a", "1:2:3", "-1"])
def test_a_wrong_number_of_workers_is_refused(word: str) -> None:
    assert "num_workers" in complaint(f"--num-workers={word}")


def test_elastic_workers_are_a_range() -> None:
    assert read("--num-workers", "1:4").worker_range(0) == (1, 4)
    assert read("--num-workers", "3").worker_range(8) == (3, 3)
    assert read().worker_range(8) == (8, 8)
    assert read().worker_range(0) == (1, 1)
    assert read("--training.ddp", "true", "--training.world_size", "2").worker_range(0) == (2, 2)


VERBS = (
    "train",
    "tune",
    "quantize",
    "serve",
    "evaluate",
    "export",
    "merge",
    "plan",
    "doctor",
    "cache",
)


def helped(verb: str, flag: str) -> str:
    command = [sys.executable, "-m", "aift_ray", verb, flag]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_names_every_setting(flag: str) -> None:
    words = " ".join(helped("train", flag).split())
    for name, _ in leaves(RunConfig()):
        assert f"--{name} " in words, name
    for section in RunConfig.model_fields.values():
        assert section.description
    assert "default: 2e-05" in words
    assert "hina-4m" in words
    if flag == "--help-all":
        for name, section in TrainingConfig.model_fields.items():
            assert str(section.description).split(";")[0] in words, name


def test_help_shows_common_settings_first() -> None:
    shown = helped("train", "--help")
    first = ("--model", "--method", "--train-file", "--training.learning_rate", "--num-workers")
    other = shown.index("--training.adam_beta1")
    assert all(shown.index(f"{flag} ") < other for flag in first)
    assert "AdamW's decay rate" not in shown


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_narrow_terminal(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit, match="0"):
        guarded(VERB_RUNS[verb], ["--help-all"])
    shown = capsys.readouterr().out.splitlines()
    # what is to be typed is not cut
    assert [line for line in shown if len(line) > 60 and not line.startswith(("  ", "usage"))] == []
    assert max(map(len, shown)) <= 80


def test_the_list_of_verbs_fits_too() -> None:
    assert max(map(len, USAGE.splitlines())) <= 80


def test_who_stops_reading_is_no_error_of_ours() -> None:
    command = f"{sys.executable} -m aift_ray train --help-all | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


def test_a_run_whose_reader_has_gone_goes_on() -> None:
    code = (
        "import time; from aift_ray.runs.terminal import console; console.print('plan')\n"
        "time.sleep(0.5); console.print('step'); console.print('step'); import sys\n"
        "print('went on', file=sys.stderr)"
    )
    command = f'{sys.executable} -c "{code}" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (["plan", "0"], "went on\n")


def test_a_terminal_without_japanese_gets_question_marks() -> None:
    command = [sys.executable, "-m", "aift_ray", "train", "--train-file", "無い.jsonl"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "??.jsonl: there is no such file" in done.stderr


def test_configurations_take_documented_arguments_by_position() -> None:
    assert LoRAConfig(8, 16).lora_alpha == 16
    assert TrainingConfig(3e-4, 2).batch_size == 2
    with pytest.raises(TypeError, match="two values"):
        LoRAConfig(8, r=4)
    with pytest.raises(ConfigError, match=r"lora_alph: there is no such setting\n.*lora_alpha"):
        LoRAConfig(lora_alph=4)
    with pytest.raises(ConfigError, match="2 problems"):
        TrainingConfig(learning_rate=-1, batch_size=0)


def test_importing_the_package_and_its_configuration_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, aift_ray, aift_ray.config, aift_ray.errors, aift_ray.planning.memory_estimate;"
        "aift_ray.TrainingConfig; sys.exit(any(m in sys.modules for m in ('torch', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_and_ray_s_controller_load_no_libraries_of_the_workers() -> None:
    code = (
        "import sys, aift_ray.launch.training_run, aift_ray.ray_backend.ray_trainer;"
        "late = ('peft', 'bitsandbytes', 'torch._dynamo', 'torch.distributed.fsdp', 'matplotlib');"
        "sys.exit(', '.join(name for name in late if name in sys.modules) or None)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


EARLY = {
    "train": "data.train_files: no training file is given",
    "train --train-file no.jsonl --model hina-4n --output-dir FILE": "3 problems",
    "train --train-file FILE": "unknown suffix",
    "train --training.batch-size 4": "did you mean '--training.batch_size'?",
    "train --batch-size 4": "did you mean '--training.batch_size'?",
    "train --outputdir x": "did you mean '--output-dir'?",
    "tune --config SPACE --train-file no.jsonl --eval-file FILE": "no.jsonl: there is no such file",
    "quantize --model hina-4n --adapter nowhere": "adapter: no such folder: nowhere",
    "serve --adapter x=nowhere": "adapter x: no such folder: nowhere",
    "trian": "did you mean train?",
    "train rows.jsonl": "did you mean '--train-file rows.jsonl'?",
    "train --train-file ROWS.jsonl --resume step-3": "2 problems",
    "train --lr 1e-4": "write --training.learning_rate",
}


@pytest.mark.parametrize("line", [*EARLY, "train --help", "tune --help", "serve --help", "--help"])
def test_what_needs_neither_torch_nor_ray_is_told_without_them(line: str, tmp_path: Path) -> None:
    (tmp_path / "FILE").write_text("", "utf-8")
    (tmp_path / "ROWS.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n', "utf-8")
    space = "training: {learning_rate: {loguniform: [1.0e-4, 1.0e-3]}}\n"
    (tmp_path / "SPACE").write_text(space, "utf-8")
    code = (
        "import sys\n"
        "from aift_ray.__main__ import main\n"
        "late = ('torch', 'ray', 'transformers', 'pyarrow', 'numpy')\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('loaded:', [name for name in late if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if line in EARLY else 0), done.stderr
    assert EARLY.get(line, "") in done.stderr
    assert "loaded: []" in done.stderr


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--method full --lora.use_qlora", "lora.use_qlora: true contradicts method full"),
        ("--lora.qlora_4bit false", "lora.qlora_4bit: false applies to QLoRA, which is off"),
    ],
)
def test_settings_of_methods_that_contradict_each_other_are_refused(flags: str, part: str) -> None:
    assert part in complaint(*flags.split())


def test_qlora_can_be_asked_for_in_two_ways() -> None:
    assert read("--lora.use_qlora").trained_as == read("--method", "qlora").trained_as == "qlora"
    assert read("--method", "qlora").base_bits == 4
    assert read("--method", "qlora", "--lora.qlora_4bit", "false").base_bits == 8
    assert read("--method", "lora").base_bits is None


PIPELINE = "--strategy pipeline --parallel.pipeline_parallel_size 2"


def test_eight_bits_are_not_shared_out() -> None:
    flags = "--strategy fsdp --method qlora --lora.qlora_4bit false"
    assert "fsdp can't shard 8-bit weights" in complaint(*flags.split())
