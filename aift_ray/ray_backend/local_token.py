"""The token of a Ray that is started on this machine: its own, and gone with it.

Ray itself would write `~/.ray/auth_token`, which changes every other Ray program of the user:
`ray start` asks for it from then on, and `ray job submit` doesn't show it.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aift_ray.errors import ConfigError, Problem
from aift_ray.ray_backend.ray_compat import forget_token

MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextmanager
def own_token() -> Iterator[Path | None]:
    """While this lasts, a Ray that is started here has a token that nobody else knows.

    Yields:
        the folder that holds it; None where the user named a token, or wants none.

    Raises:
        ConfigError: no folder for temporary files can be written.
    """
    wanted = os.environ.get(MODE, "token").lower() == "token"
    if not wanted or os.environ.get(_TOKEN) or os.environ.get(_PATH):
        yield None
        return
    try:
        made = tempfile.TemporaryDirectory(prefix="aift-ray-", ignore_cleanup_errors=True)
    except OSError as error:
        remedy = "set TMPDIR to a folder that can be written, or RAY_AUTH_TOKEN_PATH to a token"
        raise ConfigError([Problem("Ray's token", f"can't be kept: {error}", remedy)]) from None
    before = {name: os.environ.get(name) for name in (MODE, _TOKEN, _PATH)}
    with made as folder:
        file = Path(folder) / "auth_token"
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(32), encoding="utf-8")
        os.environ[_PATH] = str(file)
        forget_token()
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            forget_token()
