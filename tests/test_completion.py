"""Each shell completes verbs, flags and words by the script that the command prints for it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

CASES = {
    "aift-ray qua": "quantize",
    "aift-ray train --metho": "--method",
    "aift-ray train --method qlo": "qlora",
    "aift-ray train --training.learning_r": "--training.learning_rate",
    "aift-ray serve --load-in 4b": "4bit",
    "aift-ray cache --older": "--older-than",
    "aift-ray completion zs": "zsh",
    "aift-ray train --method=qlo": "qlora",
}


def script(shell: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "aift_ray", "completion", shell]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    file = folder / f"completion.{shell}"
    file.write_text(done.stdout, "utf-8")
    return file


def typed(command: list[str], setup: str, line: str, whole: str) -> str:
    """What an interactive shell makes of a line that ends with the tabulator."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(PS1="ready> ", TERM="dumb", HISTFILE="/dev/null")
        os.execvp(command[0], command)
    text, end, sent = "", time.monotonic() + 30, 0
    for said, wanted in ((f"{setup}; echo DO''NE\n", "DONE"), (f"{line}\t", whole)):
        os.write(terminal, said.encode())
        sent = len(text)
        while wanted not in text[sent:] and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                text += os.read(terminal, 4096).decode(errors="replace")
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(terminal)
    return text[sent:]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_what_is_typed(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    file = script(shell, tmp_path)
    plain = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
    setup = f"source {file}"
    if shell == "zsh":
        setup = f"autoload -U compinit && compinit -u -d {tmp_path}/dump; {setup}"
    for line, whole in list(CASES.items())[: 8 if shell == "bash" else 3]:
        shown = typed(plain[shell], setup, line, whole)
        assert whole in shown, (line, shown)


def test_fish_completes_what_is_typed(tmp_path: Path) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    file = script("fish", tmp_path)
    asked = "; ".join(f"complete -C'{line}'; echo ---" for line in CASES)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {file}; {asked}"],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = done.stdout.split("---\n")
    for whole, answer in zip(CASES.values(), answers, strict=False):
        words = [line.split("\t")[0].rpartition("=")[2] for line in answer.splitlines()]
        assert whole in words, (whole, answer)


@pytest.mark.parametrize("word", ["fihs", "tcsh"])
def test_another_shell_is_refused(word: str) -> None:
    command = [sys.executable, "-m", "aift_ray", "completion", word]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert ("did you mean 'fish'" if word == "fihs" else "bash, zsh, fish") in done.stderr
