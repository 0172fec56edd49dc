"""The wheel, installed into a fresh environment, is the whole program."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools writes into its source."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    shutil.copytree(
        ROOT / "aift_ray", source / "aift_ray", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(place), str(source)]
    subprocess.run(command, check=True, timeout=300)
    (found,) = place.glob("*.whl")
    return found


def test_it_holds_every_file_and_asks_for_what_the_project_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(opened.read(about).decode())
    own = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "aift_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert own <= names, own - names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one}
    assert len(needed) == len(project["dependencies"])
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])


def test_its_command_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    # what it depends on is taken from here: gigabytes that the tests of the lock file install
    (packages,) = (home / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()), "utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> str:
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    where = run(str(python), "-c", "import aift_ray; print(aift_ray.__file__)")
    assert where.startswith(str(packages))
    assert "aift-ray" in run(str(home / "bin" / "aift-ray"), "--version")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n', "utf-8")
    planned = run(
        str(home / "bin" / "aift-ray"), "train", "--train-file", "rows.jsonl", "--dry-run"
    )
    assert "hina-4m, 4,245,760 parameters" in planned
    assert "⟦" in planned
