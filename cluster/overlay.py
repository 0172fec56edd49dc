"""A cluster file with other values: python cluster/overlay.py FILE OVERLAY [OVERLAY ...] > RESULT.

Groups are merged, everything else of an overlay replaces what it stands over.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from aift_ray.commandline import merge


def overlaid(files: list[Path]) -> dict[str, Any]:
    """The first file, with the others over it."""
    result: dict[str, Any] = {}
    for path in files:
        merge(result, yaml.safe_load(path.read_text(encoding="utf-8")))
    return result


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    found = overlaid([Path(name) for name in sys.argv[1:]])
    yaml.safe_dump(found, sys.stdout, allow_unicode=True, sort_keys=False)
