"""Liger's kernels and Triton in an environment over the project's: `make test-liger`."""

from __future__ import annotations

from tests.helpers.extra_packages import environment

if __name__ == "__main__":
    print(environment("liger", "liger-kernel==0.8.5", "triton==3.9.0"))
