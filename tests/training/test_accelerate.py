"""The trainers in a group of processes that `accelerate launch` has started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from aift_ray import ConfigError, FullFinetuningTrainer, JapaneseModel, TrainingConfig
from tests.helpers.command import BIN
from tests.helpers.ports import free_port
from tests.training.test_trainers import TEXTS, logits, losses, settings

SCRIPT = """
import os
import sys

import torch

from aift_ray import FullFinetuningTrainer, JapaneseModel
from tests.training.test_trainers import TEXTS, logits, settings

model, folder = sys.argv[1:]
trained = FullFinetuningTrainer(JapaneseModel(model), settings(folder, batch_size=2)).train(TEXTS)
torch.save(logits(trained), f"{folder}-{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tiny_model: Path, tmp_path: Path) -> None:
    script, folder = tmp_path / "train.py", tmp_path / "two"
    script.write_text(SCRIPT, "utf-8")
    command = [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes=2"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command += [f"--main_process_port={free_port()}", str(script), str(tiny_model), str(folder)]
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("summary") == 1, "one process talks"
    alone = JapaneseModel(str(tiny_model))
    one = FullFinetuningTrainer(alone, settings(tmp_path / "one", batch_size=4)).train(TEXTS)
    assert losses(folder) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"two-{rank}.pt")
        assert torch.allclose(found, logits(one), atol=1e-4), "each process has the trained model"


def test_a_group_needs_a_folder_that_all_know(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    trainer = FullFinetuningTrainer(JapaneseModel(str(tiny_model)), TrainingConfig())
    with pytest.raises(ConfigError, match=r"training\.output_dir: is left out"):
        trainer.train(TEXTS)
    assert list(tmp_path.iterdir()) == []
