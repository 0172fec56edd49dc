"""lm-evaluation-harness in an environment of its own: `make test-harness`.

It brings thirty packages, scikit-learn and scipy among them, that nothing else here needs, so the
lock file of the tests leaves it out. The environment sees the packages of the one that makes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def folder() -> Path:
    """Where the environment is, or goes: AIFT_HARNESS_ENV, else build/harness-env."""
    return Path(os.environ.get("AIFT_HARNESS_ENV", ROOT / "build" / "harness-env"))


def python() -> Path:
    """Its interpreter."""
    return folder() / "bin" / "python"


def make() -> None:
    """Make it, or bring it up to its lock file."""
    if not python().exists():
        venv.create(folder(), with_pip=True)
    own = [str(python()), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(own, check=True, capture_output=True, text=True).stdout.strip()
    here = sysconfig.get_path("purelib")
    (Path(packages) / "outer.pth").write_text(f"{here}\n", encoding="utf-8")
    lock = str(HERE / "harness.lock")
    pip = [str(python()), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", lock]
    subprocess.run(pip, check=True)


if __name__ == "__main__":
    make()
    sys.exit(subprocess.run([str(python()), *sys.argv[1:]], check=False).returncode)
