"""Programs of models: run without network and with limits, and only where a sandbox is named."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from aift_ray.tasks import sandbox
from aift_ray.tasks.items import make_items
from aift_ray.tasks.scores import answer_scores
from aift_ray.tasks.task_files import BUILT_IN, LoadedTask
from aift_ray.tasks.task_yaml import read_task

TASK = read_task(BUILT_IN / "jhumaneval.yaml").task
ROW = {
    "prompt": 'def add(a, b):\n    """和を返す。"""\n',
    "entry_point": "add",
    "test": "def check(f):\n    assert f(1, 2) == 3\n",
}


@pytest.fixture(autouse=True)
def usable() -> None:
    assert TASK is not None
    if sandbox.refused("bubblewrap", [LoadedTask(TASK, [])]):
        pytest.skip("bubblewrap can't be used here")


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("    return a + b\n", 1.0),
        ("    return a - b\n", 0.0),
        ("    return a +\n", 0.0),
        # an end without the tests
        ("    return 3\nimport os\nos._exit(0)\n", 0.0),
        ("    return 3\nraise SystemExit(0)\n", 0.0),
        # the word that the end of a program is told by
        ("    return 4\nimport __main__ as m, os\nos.write(m.said, m.word.encode())\n", 0.0),
        ("    return a + b\nimport __main__\nassert __main__.add is add\n", 1.0),
    ],
)
def test_an_answer_counts_if_the_tests_of_its_row_pass(written: str, right: float) -> None:
    assert TASK is not None
    (item,) = make_items(TASK, [("rows.jsonl", (1, ROW))], [], [])
    assert answer_scores(TASK, written, item)[1] == {"pass_at_1": (right, 1.0)}


def test_a_program_reaches_neither_the_network_nor_files_nor_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s", "utf-8")
    monkeypatch.setenv("API_TOKEN", "s")
    assert sandbox.passes("open('/tmp/own', 'w').write('x')")
    assert not sandbox.passes(f"open({str(secret)!r}).read()")
    assert not sandbox.passes("open('/usr/written', 'w')")
    assert not sandbox.passes("import os; os.environ['API_TOKEN']")
    status = "import re; text = open('/proc/self/status').read(); "
    assert sandbox.passes(status + r"assert re.search(r'CapEff:\s*0+\n', text)")
    assert sandbox.passes("import os; assert os.getuid() == 65534 and os.getppid() < 3")
    link = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    assert not sandbox.passes(link)
    assert sandbox.passes("import socket; assert [n for _, n in socket.if_nameindex()] == ['lo']")


def test_memory_and_time_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sandbox.passes("x = bytearray(2**31)")
    monkeypatch.setattr(sandbox, "_SECONDS", 1)
    began = time.monotonic()
    assert not sandbox.passes("import time; time.sleep(60)")
    assert time.monotonic() - began < 5


def test_without_a_sandbox_the_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TASK is not None
    (problem,) = sandbox.refused(None, [LoadedTask(TASK, [])])
    assert (problem.where, problem.remedy) == ("task jhumaneval", "give --sandbox bubblewrap")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (problem,) = sandbox.refused("bubblewrap", [LoadedTask(TASK, [])])
    assert "no bwrap in PATH" in problem.what
    assert "apt install bubblewrap" in problem.remedy
