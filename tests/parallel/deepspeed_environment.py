"""DeepSpeed in an environment over the project's, on the pinned torch: `make test-deepspeed`."""

from __future__ import annotations

from tests.conftest import ROOT
from tests.helpers.extra_packages import environment

if __name__ == "__main__":
    print(environment("deepspeed", "--requirement", str(ROOT / "requirements-deepspeed.lock")))
