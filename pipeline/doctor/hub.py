"""Whether weights and data sets can be fetched; they need not be, so this is never a problem."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request

from .finding import OK, WARNING, Finding

TIMEOUT_S = 3.0
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
YES = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads them


def check_hub(endpoint: str | None = None, timeout_s: float = TIMEOUT_S) -> list[Finding]:
    """Ask the hub for nothing.

    Args:
        endpoint: its address; None is huggingface_hub's.
        timeout_s: how long to wait.
    """
    for name in OFFLINE:
        if os.environ.get(name, "").upper() in YES:
            return [Finding("hub", OK, f"not asked, because of {name}: only what was fetched before can be used")]
    if endpoint is None:
        try:
            from huggingface_hub import constants
        except ImportError:
            return [Finding("hub", WARNING, "not known without huggingface_hub", "Install it.")]
        endpoint = str(constants.ENDPOINT)
    request = urllib.request.Request(endpoint, method="HEAD")
    answer: list[str] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s):
                answer.append("")
        except urllib.error.HTTPError:  # it answers
            answer.append("")
        except (OSError, ValueError) as error:
            answer.append(str(error))

    asking = threading.Thread(target=ask, daemon=True)  # looking a name up may take longer than any time-out
    asking.start()
    asking.join(timeout_s + 0.5)
    why = answer[0] if answer else f"no answer in {timeout_s:.0f} s"
    if not why:
        return [Finding("hub", OK, f"{endpoint} answers")]
    todo = (
        "Weights that are not cached cannot be fetched: give a file with --weights, set HF_ENDPOINT to a mirror or HTTPS_PROXY, or "
        "HF_HUB_OFFLINE=1 so that nothing waits."
    )
    return [Finding("hub", WARNING, f"{endpoint} cannot be reached ({why})", todo)]
