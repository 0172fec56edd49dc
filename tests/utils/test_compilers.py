"""The compilers that are found, on a path with and without them."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from aift_ray.utils.compilers import builds_launchers, compiler


def test_launchers_take_a_compiler_and_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert compiler(gpu=True) is None
    (tmp_path / "Python.h").touch()
    assert not builds_launchers()
    (tmp_path / "cc").touch(mode=0o755)
    assert compiler(gpu=True) == str(tmp_path / "cc")
    assert builds_launchers()
    (tmp_path / "Python.h").unlink()
    assert not builds_launchers()
