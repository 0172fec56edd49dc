"""The clients that are tried on the server, in environments of their own: `make test-clients`.

Nothing of them is among the package's own dependencies. llama-index takes an older openai than the
others, so it has a second environment; the AI SDK needs Node 20.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def folder() -> Path:
    """Where the environments are, or go: AIFT_CLIENTS_ENV, else build/clients-env."""
    return Path(os.environ.get("AIFT_CLIENTS_ENV", ROOT / "build" / "clients-env"))


def python(name: str = "") -> Path:
    """The interpreter of an environment."""
    return folder() / name / "bin" / "python"


def node() -> Path:
    """The folder with the packages of Node."""
    return folder() / "node"


def ready() -> bool:
    """Whether they are there."""
    return (folder() / "stamp").exists()


def make() -> None:
    """Make them, or bring them up to their lock files."""
    for name, lock in (("", "requirements.lock"), ("llama-index", "llama-index.lock")):
        if not python(name).exists():
            venv.create(folder() / name, with_pip=True)
        pip = [str(python(name)), "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--requirement", str(HERE / lock)], check=True)
    if shutil.which("npm") is None:
        print("there is no npm: the AI SDK is left out", file=sys.stderr)
    else:
        node().mkdir(exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, node() / name)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=node(), check=True)
    (folder() / "stamp").touch()


if __name__ == "__main__":
    make()
