"""lm-evaluation-harness in an environment of its own: `make test-harness`.

It brings thirty packages, scikit-learn and scipy among them, that nothing else here needs, so the
lock file of the tests leaves it out.
"""

from __future__ import annotations

from pathlib import Path

from tests.helpers.extra_packages import environment

if __name__ == "__main__":
    print(environment("harness", "--requirement", str(Path(__file__).with_name("harness.lock"))))
