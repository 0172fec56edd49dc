"""Silences what libraries say that a user can't act on."""

from __future__ import annotations

import warnings


def quiet() -> None:
    """Silence warnings, and transformers' messages and progress bars, in this process."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
