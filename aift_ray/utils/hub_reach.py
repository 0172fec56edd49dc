"""Whether the Hugging Face Hub answers, asked once by a process."""

from __future__ import annotations

import threading
from functools import cache

from huggingface_hub import constants, get_session

PATIENCE = 5.0


@cache
def why_unreached() -> str:
    """Why the Hub does not answer, or must not be asked; "" where it does."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found: list[str] = []
    # a name that is looked up in vain can take longer than any timeout of a connection
    thread = threading.Thread(target=lambda: found.append(_call()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0] if found else f"no answer within {PATIENCE:.0f} s"


def _call() -> str:
    try:
        # any status is an answer
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:
        # of the network, of a proxy, of certificates and of the address
        return str(error) or type(error).__name__
    return ""
