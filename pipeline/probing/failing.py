"""Probes that cannot be trained: which probe failed, and how the others go on.

An error that concerns one probe (too little memory, a head that does not fit its tokens, tokens that are not finite) fails that
probe alone. A store that cannot be read and a disk that is full concern all of them, and bugs do: these errors are raised, since
training the next probe would only take longer to end in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from layerbank.probes import ProbeError

from ..errors import RequestError, WorkError
from ..memory import shortage_of
from .probe_spec import ProbeSpec

Fail = Callable[[str, Exception], None]
"""Called with the name of a probe that failed, and the error."""

ProbeFailure = RequestError | WorkError | ProbeError
CAUGHT = (RequestError, WorkError, ProbeError, MemoryError, RuntimeError)


class Failures:
    """The probes of one run that failed.

    Args:
        fail: called with each; None raises the first one's error.
    """

    def __init__(self, fail: Fail | None) -> None:
        self._fail = fail
        self._errors: dict[str, ProbeFailure] = {}  # by the name of the probe

    def __contains__(self, named: ProbeSpec) -> bool:
        return named.name in self._errors

    def add(self, named: ProbeSpec, error: Exception) -> None:
        """Record the error as this probe's; raise one that does not concern one probe."""
        failure = _failure(named, error) if self._fail else None
        if self._fail is None or failure is None:
            raise error
        self._errors[named.name] = failure
        self._fail(named.name, failure)

    @contextmanager
    def of(self, named: ProbeSpec) -> Iterator[None]:
        """Within, an error that concerns one probe is recorded as this probe's."""
        try:
            yield
        except CAUGHT as error:
            self.add(named, error)

    def add_of_group(self, probes: Sequence[ProbeSpec], error: Exception) -> bool:
        """Record the error of a group as that of its only probe; raise one that does not concern one probe.

        Returns:
            False for a group of several probes, any of which may be the cause: nothing is recorded.
        """
        if len(probes) == 1 or self._fail is None:
            self.add(probes[0], error)
        elif _failure(probes[0], error) is None:
            raise error
        return len(probes) == 1

    def check_base(self, named: ProbeSpec, base: ProbeSpec) -> None:
        """Raise WorkError if the base of a post-hoc probe has failed."""
        if error := self._errors.get(base.name):
            raise WorkError(
                "probing.base_failed", probe=named.name, base=base.name, base_where=error.where, base_got=error.got
            )


def _failure(named: ProbeSpec, error: Exception) -> ProbeFailure | None:
    """The error to record for a probe; None for an error that does not concern one probe."""
    if isinstance(error, RequestError | WorkError | ProbeError):
        return error.with_traceback(None)  # its frames hold the tokens and banks of the training
    shortage = shortage_of(error)
    return WorkError("probing.out_of_memory", probe=named.name, shortage=shortage) if shortage else None
