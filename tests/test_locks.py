"""The lock files that images are built from hold what the package and its extras need."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def locked(name: str) -> dict[str, str]:
    """{package: version}."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ("dev",)),
        ("requirements-vllm.lock", ("vllm", "liger")),
        ("requirements-deepspeed.lock", ("deepspeed",)),
    ],
)
def test_a_lock_holds_what_is_declared(lock: str, extras: tuple[str, ...]) -> None:
    versions = locked(lock)
    own = PROJECT["dependencies"] if lock != "requirements-deepspeed.lock" else []
    for line in [*own, *(line for extra in extras for line in EXTRAS[extra])]:
        needed = Requirement(line)
        name = canonicalize_name(needed.name)
        if name == "aift-ray" or (needed.marker and not needed.marker.evaluate()):
            continue
        if name == "torch" and lock == "requirements-vllm.lock":
            # given beside it, by the build of CUDA
            assert needed.specifier.contains("2.13.0")
            continue
        assert needed.specifier.contains(versions[name]), (lock, line, versions[name])


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-vllm.lock"])
def test_what_deepspeed_adds_contradicts_no_lock(lock: str) -> None:
    """It is installed beside either without their dependencies being looked at."""
    versions, added = locked(lock), locked("requirements-deepspeed.lock")
    assert {n: v for n, v in added.items() if versions.get(n, v) != v} == {}


def test_the_image_with_vllm_is_built_from_its_lock() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    built = dockerfile.partition("AS cuda-vllm-environment")[2].partition("\nFROM ")[0]
    assert "-c requirements-vllm.lock -r requirements.txt vllm liger-kernel" in built
    assert "--no-deps -r requirements-deepspeed.lock" in built
    target = dockerfile.partition("AS cuda-vllm\n")[2].partition("\nFROM ")[0]
    for needed in ("gcc g++ libc6-dev", "--from=cuda-vllm-environment", "USER 1000:1000"):
        assert needed in target
