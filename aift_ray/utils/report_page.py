"""Reports: one HTML file each, in Japanese and English, without external resources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).with_suffix(".html")


def report_page(script: Path, content: Mapping[str, Any]) -> str:
    """The page that a script makes of its content.

    Args:
        script: declares `words` (of both languages), `heading` and `sections`.
    """
    page = _PAGE.read_text(encoding="utf-8").replace("__SCRIPT__", script.read_text("utf-8"))
    # nothing of a model's answer can end the script element
    text = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    return page.replace("__CONTENT__", text)
