"""What a verb ends with: one message that fits the terminal, and a status."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT
from tests.helpers.terminal import on_terminal

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
WRONG = ("train", "--train-file", "無い.jsonl", "--methd", "lora", "--training.warmup_steps", "-3")


def test_an_error_breaks_at_blanks_on_a_terminal_and_nowhere_in_a_file() -> None:
    status, lines = on_terminal(60, *WRONG)
    done = subprocess.run(
        [sys.executable, "-m", "aift_ray", *WRONG],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert status == done.returncode == 2
    whole = done.stderr.splitlines()
    assert max(map(len, whole)) > 60
    assert [line for line in lines if len(line) > 60 and " " in line.strip()] == []
    assert " ".join(lines).split() == " ".join(whole).split()


def test_ctrl_c_while_the_settings_are_imported_is_no_traceback() -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'aift_ray.config':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from aift_ray.__main__ import main\n"
        "sys.argv = ['aift-ray', 'train', '--train-file', 'rows.jsonl']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted before anything began\n")
