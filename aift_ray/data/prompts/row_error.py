"""Why a row can't be encoded."""

from __future__ import annotations

_REMEDY = (
    "mend the row, give another template (--data.chat_template FILE), or leave out all wrong rows "
    "(--data.on_bad_row skip)"
)


class RowError(ValueError):
    """Why one row can't be encoded; the caller adds file and line.

    Args:
        reason: what was found and what was expected.
        remedy: what to do about it, as it is typed.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy or _REMEDY
        super().__init__(reason)
