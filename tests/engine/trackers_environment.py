"""Weights & Biases, MLflow and Trackio in an environment of their own: `make test-trackers`."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.extra_packages import environment

if __name__ == "__main__":
    print(environment("trackers", "--requirement", str(Path(__file__).with_name("trackers.lock"))))
