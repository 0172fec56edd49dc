"""Tables and commands of plain text at the width of a terminal."""

from __future__ import annotations

import subprocess

import pytest

from aift_ray.utils.text_table import aligned, command_lines, wrapped
from tests.helpers.terminal import on_terminal

ROWS = [
    ["strategy", "fits", "memory", "tokens/s", "what limits it"],
    ["ddp", "yes", "12.5", "2,919", "compute"],
    ["fsdp, context", "no", "1,014.2", "7", "1,000.6 GiB too little on the card of 23.6 GiB"],
]


def test_a_table_is_whole_where_there_is_no_terminal() -> None:
    head, *rows = aligned(ROWS)
    assert head == "strategy       fits   memory  tokens/s  what limits it"
    assert rows[0] == "ddp             yes     12.5     2,919  compute"
    assert rows[1].endswith("7  1,000.6 GiB too little on the card of 23.6 GiB")


@pytest.mark.parametrize("width", [36, 50, 60, 80])
def test_a_table_fits_a_terminal_and_loses_nothing(width: int) -> None:
    lines = aligned(ROWS, width)
    assert max(map(len, lines)) <= width
    shown = [word for line in lines for word in line.split()]
    for row in ROWS:
        for word in " ".join(row).split():
            assert word in shown
    blocks = "\n".join(lines).split("\n\n")
    assert all(block.startswith("strategy") for block in blocks)


@pytest.mark.parametrize("width", [None, 40, 60, 80])
def test_a_command_is_the_same_to_a_shell(width: int | None) -> None:
    command = "  aift-ray train --model Qwen/Qwen3-8B --training.r 4 --train-file rows.jsonl"
    lines = command_lines(command, width)
    text = "printf '%s\\n' " + "\n".join(lines)
    said = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == command.split()
    assert width is None or max(map(len, lines)) <= width
    assert not any(line.endswith(("--model \\", "--train-file \\")) for line in lines)


def test_a_line_breaks_at_blanks_and_keeps_its_indent() -> None:
    assert wrapped("  one two-three four", 12) == ["  one", "  two-three", "  four"]
    assert wrapped("one two", None) == ["one two"]


@pytest.mark.parametrize("width", [60, 80])
def test_the_plan_fits_a_terminal(width: int) -> None:
    status, lines = on_terminal(width, "plan", "--model", "Qwen/Qwen3-8B", "--gpus", "2")
    assert status == 0
    assert max(map(len, lines)) <= width
    assert next(line.strip() for line in lines if line.endswith("\\")).startswith("aift-ray train")
