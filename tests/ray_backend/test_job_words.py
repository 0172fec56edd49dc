"""The README's words for a job work before and after runs on this machine's own Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.helpers.command import BIN, Command, flags
from tests.helpers.ports import free_port
from tests.test_readme import commands

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NAMES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
SHORT = {"max-steps": 2, "num-workers": 1}
FIRST, START, STOP = "ray get-auth-token ", "ray start --head", "ray stop"


@pytest.fixture
def home() -> Iterator[Path]:
    """A home without anything in it; the path is short, for Ray's sockets lie under it."""
    folder = Path(tempfile.mkdtemp(prefix="home-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def words(rows: Path, folder: Path, argv: list[str], session: Path, dashboard: int) -> str:
    """The README's block as a script: on ports of its own, for another Ray may run here."""
    shown = commands("README.md")
    lines = shown[next(i for i, c in enumerate(shown) if c.startswith(FIRST)) :]
    lines = lines[: lines.index(STOP)]
    ports = ("--port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port")
    ports += ("--ray-client-server-port", "--metrics-export-port")
    start = [START, f"--dashboard-port={dashboard}", f"--temp-dir={session}", "--num-cpus=2"]
    start += [f"{name}={free_port()}" for name in ports]
    start += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    text = "\n".join(lines).replace(START, " ".join(start))
    assert "/data/rows.jsonl" in text
    text = text.replace("/data/rows.jsonl", str(rows)).replace("/data/run", str(folder))
    return f"set -e\n{text} {' '.join(argv)}\n"


def end(session: Path) -> None:
    """`ray stop` for the Ray of one folder; the command itself ends every Ray of the machine."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(session) in part for part in process.cmdline()):
                process.kill()


def job(home: Path, environment: dict[str, str], rows: Path, folder: Path, more: list[str]) -> None:
    """Do as the README says, in a shell of its own."""
    session, dashboard = home / "ray", free_port()
    script = words(rows, folder, more, session, dashboard)
    address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=environment | address,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
    finally:
        end(session)
    assert done.returncode == 0, done.stdout
    assert (folder / "summary.json").is_file()


def test_the_words_for_a_job_work_after_runs_here_with_and_without_a_token(
    home: Path, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"HOME": str(home), "PATH": f"{BIN}:{environment['PATH']}"}
    environment |= {"PYTHONPATH": str(ROOT)}
    token = home / ".ray" / "auth_token"
    for there in (False, True):
        # as the demo: one worker alone would start no Ray
        alone = SHORT | {"num-workers": 2}
        argv = flags(tiny_model, rows_file, tmp_path / f"here-{there}", **alone)
        status, output = Command(argv, environment).done()
        assert status == 0, output
        assert token.exists() == there, "a run here leaves no token"
        before = token.read_text("utf-8") if there else None
        folder = tmp_path / f"job-{there}"
        settings = flags(tiny_model, rows_file, folder, **SHORT)
        more = [part for part in settings if part not in ("--train-file", "--output-dir")]
        more = [part for part in more if part not in (str(rows_file), str(folder))]
        job(home, environment, rows_file, folder, more)
        assert token.stat().st_mode & 0o777 == 0o600
        assert before in (None, token.read_text("utf-8"))
