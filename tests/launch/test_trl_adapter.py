"""An adapter that TRL has trained is continued by the launched command.

Needs an environment with TRL: AIFT_TRL_ENV, or this one with the extra bench.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.readers.row_schema import make_example
from tests.conftest import ROOT, SHIPPED
from tests.engine.test_against_trl import trl_python

pytestmark = [pytest.mark.slow]
ASKED = (
    ("首都は？", "東京です。"),
    ("二足す三は？", "五です。"),
    ("空は？", "青です。"),
    ("犬は？", "ワンです。"),
)
ROWS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in ASKED
]


def peft_loss(adapter: Path) -> float:
    """The mean loss of a supervised token, by transformers and PEFT alone."""
    base = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))
    total = number = 0.0
    for row in ROWS:
        encoded = encoder.encode(make_example(row, "rows.jsonl", 1))  # type: ignore[arg-type]
        ids = torch.tensor([encoded.ids])
        with torch.no_grad():
            each = model(ids).logits[0, :-1].log_softmax(-1)
        trained = torch.tensor(encoded.supervised[1:])
        total -= float(each.gather(1, ids[0, 1:, None]).squeeze(1)[trained].sum())
        number += int(trained.sum())
    return total / number


def test_the_first_loss_of_a_trl_adapter_is_that_of_peft(tmp_path: Path) -> None:
    rows, adapter, run = tmp_path / "rows.jsonl", tmp_path / "trl", tmp_path / "run"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    rows.write_text("\n".join(lines) + "\n", "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    made = [trl_python(), "-m", "tests.helpers.trl_adapter", str(SHIPPED), str(rows), str(adapter)]
    subprocess.run(made, cwd=ROOT, env=environment, check=True, capture_output=True)
    argv = {"model": SHIPPED, "lora.init_from": adapter, "train-file": rows, "output-dir": run}
    argv |= {"max-steps": 1, "lora.lora_dropout": 0, "training.warmup_steps": 0}
    command = [sys.executable, "-m", "aift_ray.train"]
    command += [part for name, value in argv.items() for part in (f"--{name}", str(value))]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    first = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    with_adapter = peft_loss(adapter)
    assert first["loss"] == pytest.approx(with_adapter, rel=1e-5)
    # it is the adapter that counts, which goes on in its own form
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    kept = json.loads((run / "model" / "adapter_config.json").read_text("utf-8"))
    for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
        assert kept[key] == config[key]
    assert sorted(kept["target_modules"]) == sorted(config["target_modules"])
