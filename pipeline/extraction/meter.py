"""What limits the speed of an extraction: decoding, the device, or the disk, and what to do about it.

The limit is whatever the loop spends most of its time on. It should be the device; for the others there is advice.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..cores import num_cores
from ..events import ExtractionFinished, ExtractionProgress


@dataclass(frozen=True)
class Limit:
    """What limits the speed.

    Attributes:
        what: `decoding`, `the device` or `the disk`.
        advice: what to do; empty if there is nothing to gain.
    """

    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"limit: {self.what}" + (f", {self.advice}" if self.advice else "")


def find_limit(decode_s: float, compute_s: float, write_s: float, *, num_workers: int, num_cores: int) -> Limit:
    """Find the limit of a loop from the time that it spent on each part.

    Args:
        decode_s: seconds of waiting for decoded images; with 0 workers, of decoding them.
        compute_s: seconds in the model.
        write_s: seconds of waiting for the writer.
        num_workers: decoding processes of the run.
        num_cores: cores that they may use.

    >>> str(find_limit(7.1, 2.0, 0.1, num_workers=0, num_cores=8)), str(find_limit(1, 8, 1, num_workers=4, num_cores=8))
    ('limit: decoding, try --workers 4', 'limit: the device')
    """
    if write_s >= max(decode_s, compute_s):
        return Limit("the disk", "try a faster one with --cache, or fewer levels and kinds")
    if compute_s >= decode_s:
        return Limit("the device")
    # as many as would decode in the time that the model takes; waiting beside workers is on top of what they do anyway
    working_s = decode_s if num_workers == 0 else num_workers * (decode_s + compute_s)
    wished = min(ceil(working_s / max(compute_s, 1e-9)), num_cores)
    if wished > num_workers:
        return Limit("decoding", f"try --workers {wished}")
    return Limit("decoding", "which has every core: smaller images would help")


def limit_of(event: ExtractionProgress | ExtractionFinished) -> Limit:
    """Find the limit of a run so far, on this machine."""
    return find_limit(
        event.decode_s, event.compute_s, event.write_s, num_workers=event.num_workers, num_cores=num_cores()
    )
