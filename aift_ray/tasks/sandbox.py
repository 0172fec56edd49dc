"""Programs of models, run without network, and with limits of time, memory and files.

bubblewrap gives each of them namespaces of its own, in which there is Python's standard library to
read and a small folder in memory to write.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from aift_ray.errors import Problem
from aift_ray.tasks.task import CODE
from aift_ray.tasks.task_files import LoadedTask

NAMES = ("bubblewrap",)
_SECONDS, _MEMORY, _FILES = 10, 2**30, 2**26
_BOUND = ("/lib", "/lib64", "/bin", "/etc/ld.so.cache")
# reads a program, limits itself, and says a word at the end, which is not in the program's module
_RUNNER = f"""
import json, os, resource, sys, types
def run(program, word):
    said = os.dup(1)
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for kind, most in (
        (resource.RLIMIT_AS, {_MEMORY}), (resource.RLIMIT_FSIZE, {_FILES}),
        (resource.RLIMIT_CPU, {_SECONDS}), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 64),
    ):
        resource.setrlimit(kind, (most, most))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(program, "program", "exec"), main.__dict__)
    os.write(said, word.encode())
run(**json.load(sys.stdin))
"""


def refused(name: str | None, tasks: Sequence[LoadedTask]) -> list[Problem]:
    """What speaks against running the programs of tasks.

    Args:
        name: of the sandbox; None: none is named.
    """
    coded = [each for each in tasks if each.task.coded]
    if not coded:
        what = f"acts with tasks of the score {CODE} only"
        return [Problem("sandbox", what, "leave it out")] if name else []
    if name is None:
        what = f"its score {CODE} runs what a model writes, and no sandbox is named"
        remedy = f"give --sandbox {NAMES[0]}"
        return [Problem(each.where(), what, remedy) for each in coded]
    remedy = "install it (apt install bubblewrap), and allow user namespaces without privileges"
    if shutil.which("bwrap") is None:
        return [Problem("sandbox", f"{name} is not installed (no bwrap in PATH)", remedy)]
    told = subprocess.run(
        [*_command(), "-c", "pass"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if told.returncode:
        return [Problem("sandbox", f"{name} starts no program: {told.stderr.strip()}", remedy)]
    return []


def passes(program: str) -> bool:
    """Whether a program comes to its end without an error, in time."""
    word = secrets.token_hex(16)
    given = json.dumps({"program": program, "word": word})
    with tempfile.TemporaryFile() as said:
        running = subprocess.Popen(
            [*_command(), "-c", _RUNNER],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.DEVNULL,
        )
        try:
            running.communicate(given.encode(), timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # with it all that it has started
            running.kill()
            running.wait()
        said.seek(0)
        return said.read(len(word)) == word.encode()


def _command() -> list[str]:
    """bubblewrap and the interpreter."""
    bound = {"/usr", sys.base_prefix}
    python = str(Path(sys.executable).resolve())
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"),
        # a superuser's program would keep its rights
        *("--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        *(part for path in sorted(bound) for part in ("--ro-bind", path, path)),
        *(part for path in _BOUND for part in ("--ro-bind-try", path, path)),
        *("--proc", "/proc", "--dev", "/dev", "--size", str(_FILES), "--tmpfs", "/tmp"),
        *("--chdir", "/tmp", "--setenv", "HOME", "/tmp", python, "-I"),
    ]
