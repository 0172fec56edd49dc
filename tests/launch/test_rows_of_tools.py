"""A file of tools and a file of thoughts through the launched command: plan, preview, training."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aift_ray import train
from aift_ray.utils.exit_status import guarded
from tests.conftest import ROOT, SHIPPED
from tests.data.prompts.test_conversations import ROUND, TALK, WEATHER
from tests.helpers.tool_templates import QWEN3_TOOLS


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with a template that knows tools and thoughts."""
    folder = tmp_path_factory.mktemp("models") / "reasoning"
    shutil.copytree(SHIPPED, folder)
    (folder / "chat_template.jinja").write_text(QWEN3_TOOLS, "utf-8")
    return folder


def written(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def launched(*argv: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "aift_ray.train", *argv]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    return done.returncode, done.stdout + done.stderr


Told = pytest.CaptureFixture[str]


def planned(capsys: Told, *argv: str) -> tuple[int, str]:
    """A dry run in this process, which has the libraries already."""
    status = guarded(train.run, [*argv, "--dry-run"])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_tools_and_thoughts_are_planned_shown_and_trained(
    reasoning: Path, tmp_path: Path, capsys: Told
) -> None:
    conversations = [
        {"from": "human", "value": "東京の天気は？"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"town": "東京"}}'},
        {"from": "observation", "value": "雨"},
        {"from": "gpt", "value": "雨です。"},
    ]
    tools = json.dumps([WEATHER["function"]], ensure_ascii=False)
    files = [
        written(
            tmp_path / "tools.jsonl",
            {"messages": ROUND, "tools": [WEATHER]},
            {"conversations": conversations, "tools": tools},
        ),
        written(
            tmp_path / "thoughts.jsonl",
            {"messages": TALK},
            {"instruction": "五は？", "output": "六。", "thinking": "一を足す。", "history": []},
            {"prompt": "七", "completion": "八", "system": "短く。"},
        ),
    ]
    argv = ["--model", str(reasoning), "--output-dir", str(tmp_path / "run"), "--max-steps", "2"]
    argv += [flag for file in files for flag in ("--train-file", file)]
    argv += ["--training.warmup_steps", "0", "--training.learning_rate", "1e-3"]
    status, told = planned(capsys, *argv)
    assert status == 0, told
    # each conversation has two answers, of which the history does not show all
    assert re.search(
        r"training rows +8 rows, .*3 conversations are +one row an answer", told, re.DOTALL
    )
    assert "1 row holds tool_call_id: not shown by this template" in told
    assert "1 row holds system: raw text has no place for it" in told
    marked = re.findall(r"⟦(.*?)⟧", told, re.DOTALL)
    assert any('"name": "weather", "arguments": {"town": "大阪"}' in text for text in marked)
    assert not any("晴れ、" in text or "天気を調べます" in text for text in marked)
    status, told = launched(*argv)
    assert status == 0, told
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == 2
    template = (tmp_path / "run" / "model" / "chat_template.jinja").read_text("utf-8")
    assert template.strip() == QWEN3_TOOLS.strip()


def test_what_can_not_be_trained_is_refused_all_at_once(tmp_path: Path, capsys: Told) -> None:
    rows = written(tmp_path / "rows.jsonl", {"messages": ROUND}, {"messages": TALK})
    status, told = planned(capsys, "--train-file", rows)
    assert status == 2
    assert "Traceback" not in told
    reasons = (
        'does not write the call of "weather" of message 2',
        "no place for the thought of message 2",
    )
    for number, reason in enumerate(reasons, 1):
        assert re.search(rf"rows\.jsonl:{number}: .*{re.escape(reason)}", told), told
    assert "--data.train_thoughts none" in told


def test_what_no_template_is_asked_for_is_refused_before_it_is_read(
    tmp_path: Path, capsys: Told
) -> None:
    rows = written(
        tmp_path / "rows.jsonl",
        {"messages": ROUND},
        {"instruction": "a", "output": "b", "images": ["a.png"]},
        {"instruction": "a", "output": "b", "weight": 0.5},
    )
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": "a", "output": "b", "output": "c"}\n')
    status, told = planned(capsys, "--train-file", rows)
    assert status == 2
    reasons = (
        "images is not supported",
        "weight 0.5 of a row is not supported",
        'the key "output" is repeated',
    )
    for number, reason in enumerate(reasons, 2):
        assert re.search(rf"rows\.jsonl:{number}: .*{re.escape(reason)}", told), told


def test_calls_that_do_not_match_the_tools_are_counted_in_the_plan(
    reasoning: Path, tmp_path: Path, capsys: Told
) -> None:
    other = {"type": "function", "function": {"name": "wether", "parameters": {"type": "object"}}}
    good = {"messages": ROUND, "tools": [WEATHER]}
    rows = [good, {"messages": ROUND, "tools": [other]}, {"messages": ROUND, "tools": [other]}]
    file = written(tmp_path / "rows.jsonl", *rows)
    status, told = planned(capsys, "--model", str(reasoning), "--train-file", file)
    assert status == 0, told
    # wherever the lines are broken
    said = " ".join(told.split())
    assert re.search(r"tool calls functions are called .*row's tools: weather \(2 rows\)", said)
    file = written(tmp_path / "good.jsonl", good)
    status, told = planned(capsys, "--model", str(reasoning), "--train-file", file)
    assert status == 0, told
    assert "tool calls" not in told
