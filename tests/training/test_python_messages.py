"""What is wrong is told in Python by arguments, not by flags of a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from aift_ray import FullFinetuningTrainer, JapaneseModel, TrainingConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.training.python_messages import in_python


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("give --lora.r 4, or start anew", "give r=4, or start anew"),
        ("use --strategy ddp", "use strategy='ddp'"),
        ("name another --output-dir", "name another output_dir"),
        ("lower --num-workers or --ray.cpus_per_worker", "lower num_workers or cpus_per_worker"),
        ("give --resume latest", "give resume_from_checkpoint='latest'"),
        ("(--lora.qlora_4bit true), or", "(qlora_4bit=True), or"),
        ("one -- or two -- dashes", "one -- or two -- dashes"),
    ],
)
def test_a_flag_becomes_an_argument(flags: str, words: str) -> None:
    with pytest.raises(ConfigError) as error, in_python():
        raise ConfigError([Problem("there", "what", flags)])
    assert error.value.problems == [Problem("there", "what", words)]


def test_a_folder_that_is_not_empty_names_the_argument_that_helps(
    tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "some").write_text("", "utf-8")
    config = TrainingConfig(output_dir=str(tmp_path), max_steps=1)
    trainer = FullFinetuningTrainer(JapaneseModel(str(tiny_model)), config)
    with pytest.raises(ConfigError, match="resume_from_checkpoint='latest'") as error:
        trainer.train(["富士山は高い。"])
    assert "--" not in str(error.value)
