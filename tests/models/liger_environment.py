"""Liger's kernels in an environment of their own over the project's: `make test-liger`.

The environment sees the packages of the interpreter that makes it, and adds Liger and Triton.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("liger-kernel==0.8.5", "triton==3.9.0")


def folder() -> Path:
    """Where the environment is, or goes: AIFT_LIGER_ENV, else build/liger-env."""
    return Path(os.environ.get("AIFT_LIGER_ENV", ROOT / "build" / "liger-env"))


def make() -> Path:
    """Make it, or bring it up to date; its interpreter."""
    python = folder() / "bin" / "python"
    if not python.exists():
        venv.create(folder(), with_pip=False)
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    (Path(found) / "base.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *PACKAGES], check=True)
    return python


if __name__ == "__main__":
    print(make())
