"""Runs on Ray: preparation, workers, display. The only folder that imports ray."""

from __future__ import annotations

import logging
import os
from pathlib import Path

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# `ray start` asks for the token wherever one exists; whoever joins must show it
if (Path.home() / ".ray" / "auth_token").is_file():
    os.environ.setdefault("RAY_AUTH_MODE", "token")
# on a CPU, bitsandbytes says at import that an optional package is not there
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
