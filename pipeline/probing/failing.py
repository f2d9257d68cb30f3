"""Probes that cannot be trained: whose fault it was, and that the others go on all the same.

The decision taken here: what a probe is refused with (too little memory, a head that does not fit its tokens, tokens that are not
finite) is that probe's alone. A store that cannot be read and a disk that is full are everybody's and go on as exceptions: to train
the next probe would only take longer to say the same. So do bugs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from layerbank.probes import ProbeError

from ..errors import RequestError, WorkError
from ..memory import shortage_of
from .probe_spec import ProbeSpec

Fail = Callable[[str, Exception], None]
"""Told the name of a probe, and why there is no row of it."""


class Failures:
    """The probes of one run that failed.

    Args:
        key: of a probe's row.
        fail: told of each; None raises the first one's error.
    """

    def __init__(self, key: Callable[[ProbeSpec], str], fail: Fail | None) -> None:
        self._key, self._fail = key, fail
        self._errors: dict[str, RequestError | WorkError | ProbeError] = {}

    def __contains__(self, named: ProbeSpec) -> bool:
        return self._key(named) in self._errors

    def add(self, named: ProbeSpec, error: RequestError | WorkError | ProbeError) -> None:
        """A probe failed, which is told."""
        if self._fail is None:
            raise error
        self._errors[self._key(named)] = error
        self._fail(named.name, error)

    @contextmanager
    def of(self, named: ProbeSpec) -> Iterator[None]:
        """Work for one probe."""
        error: RequestError | WorkError | ProbeError
        try:
            yield
            return
        except (RequestError, WorkError, ProbeError) as refused:
            if self._fail is None:
                raise
            error = refused.with_traceback(None)  # its frames hold the tokens and banks of the training
        except (MemoryError, RuntimeError) as broken:
            shortage = shortage_of(broken)
            if self._fail is None or shortage is None:
                raise
            error = _too_large(named, shortage)
        self.add(named, error)

    def together(self, probes: Sequence[ProbeSpec], work: Callable[[], None]) -> bool:
        """Do the work of some probes.

        Returns:
            Whether it can be left at that: False if it failed and nobody knows because of which of several probes.
        """
        if len(probes) == 1 or self._fail is None:
            with self.of(probes[0]):
                work()
            return True
        try:
            work()
        except (RequestError, WorkError, ProbeError):
            return False
        except (MemoryError, RuntimeError) as broken:
            if not shortage_of(broken):
                raise
            return False
        return True

    def check_base(self, named: ProbeSpec, base: ProbeSpec) -> None:
        """Raise WorkError if what a probe is made of has failed."""
        error = self._errors.get(self._key(base))
        if error is not None:
            raise WorkError(
                where=f"probe {named.name}",
                expected=f"a finished {base.name}, of which it is made",
                got=f"one that failed: {error.where}: {error.got}",
                todo=f"See what {base.name} says; when that is mended, run this again.",
            )


def _too_large(named: ProbeSpec, shortage: str) -> WorkError:
    return WorkError(
        where=f"probe {named.name}",
        expected="memory for its training",
        got=shortage,
        todo="Give less with --memory, so that fewer probes train at a time, or end what else takes the memory.",
    )
