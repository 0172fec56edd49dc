"""The compilers that torch and Triton call while a program runs."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def compiler(gpu: bool) -> str | None:
    """The compiler that torch.compile calls: of C for its launchers on GPUs, of C++ on CPUs."""
    own = os.environ.get("CC" if gpu else "CXX")
    names = [own] if own else ["gcc", "clang", "cc"] if gpu else ["g++"]
    return next(filter(None, map(shutil.which, names)), None)


def builds_launchers() -> bool:
    """Whether Triton can build what calls its kernels: that takes a compiler and Python.h."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return compiler(gpu=True) is not None and header.is_file()


def has_toolkit() -> bool:
    """Whether torch finds the CUDA toolkit, with which it compiles programs for GPUs."""
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or shutil.which("nvcc")
    return bool(given) or Path("/usr/local/cuda").exists()
