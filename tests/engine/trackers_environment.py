"""Weights & Biases, MLflow and Trackio in an environment of their own: `make test-trackers`.

The environment sees the packages of the interpreter that makes it, and adds those of
`trackers.lock`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "trackers.lock"


def folder() -> Path:
    """Where the environment is, or goes: AIFT_TRACKERS_ENV, else build/trackers-env."""
    return Path(os.environ.get("AIFT_TRACKERS_ENV", HERE.parents[1] / "build" / "trackers-env"))


def make() -> Path:
    """Make it, or bring it up to its lock file; its interpreter."""
    python = folder() / "bin" / "python"
    if not python.exists():
        venv.create(folder(), with_pip=False)
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    (Path(found) / "base.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--requirement", str(LOCK)], check=True)
    return python


if __name__ == "__main__":
    print(make())
