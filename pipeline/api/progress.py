"""What shows the progress of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..console import Listener
from ..events import OnEvent
from .arguments import check_kind

Progress = bool | OnEvent
"""True shows progress, in a notebook too; False shows nothing; a function is called with every event."""


@contextmanager
def listening(progress: Progress) -> Iterator[OnEvent]:
    """Within it, the callback for events: of a progress display for True, of nothing for False, or the given function.

    Raises:
        RequestError: it is none of these.
    """
    if callable(progress):
        yield progress
        return
    check_kind(progress, bool, "progress", "True, False or a callable")
    with Listener(quiet=not progress) as listener:
        yield listener.show
