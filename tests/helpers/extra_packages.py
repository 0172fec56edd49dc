"""Packages for some tests alone: in an environment that sees those of the interpreter making it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.conftest import ROOT


def environment(name: str, *packages: str) -> Path:
    """Make an environment, or bring it up to date; its interpreter.

    It is in the folder that AIFT_NAME_ENV holds, else in build/NAME-env.

    Args:
        packages: what pip installs, without dependencies; `--requirement FILE` too.
    """
    folder = Path(os.environ.get(f"AIFT_{name.upper()}_ENV", ROOT / "build" / f"{name}-env"))
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False)
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    (Path(found) / "base.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *packages], check=True)
    return python
