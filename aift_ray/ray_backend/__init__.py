"""Runs, sweeps and servers on Ray. The only folder that imports ray."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# before anything imports bitsandbytes, which logs while it is loading
import aift_ray.models  # noqa: F401

_TOKEN = Path.home() / ".ray" / "auth_token"
# a Ray that is imported already has settled how it speaks: its servers must not be told otherwise
_SPEAKS = "ray" in sys.modules


def settle_environment() -> None:
    """Set what Ray reads from the environment, where the user has set nothing."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # `ray start` asks for the token wherever one exists; whoever joins must show it
    if not _SPEAKS and os.environ.get("RAY_ADDRESS") and _TOKEN.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # how soon a run sees that its workers are done; Ray's own 2 seconds are long for a short trial
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


settle_environment()
