"""What `import aift_ray` gives, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aift_ray


def test_public_names_are_sorted_and_each_can_be_had() -> None:
    names = aift_ray.__all__[1:]
    assert names == sorted(names)
    for name in names:
        assert getattr(aift_ray, name) is not None
    assert set(names) <= set(dir(aift_ray))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="JapanesModel"):
        _ = aift_ray.JapanesModel


def test_the_package_alone_loads_no_heavy_library() -> None:
    code = (
        "import sys, aift_ray\n"
        "sys.exit(bool({'torch', 'transformers', 'ray', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
