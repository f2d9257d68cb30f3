"""Events of several workers as if they came from one: begun once, progress added up, finished once.

Knows nothing of processes.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ..events import (
    CacheReused,
    Event,
    ExtractionFinished,
    ExtractionProgress,
    ExtractionStarted,
    OnEvent,
    ShareFinished,
    TokensOutOfRange,
)


class Relay:
    """Takes events of workers by number and tells one story.

    Args:
        emit: told the story.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._began = time.monotonic()
        self._num_missing: dict[Path, int] = {}
        self._now: dict[int, ExtractionProgress] = {}  # worker -> where it is in its present round
        self._past: dict[int, list[float]] = {}  # worker -> rows, batches and seconds of its rounds before
        self._num_workers = 0
        self._finished: dict[Path, ExtractionFinished] = {}
        self._reused: set[Path] = set()
        self._out_of_range: dict[tuple[str, int], tuple[int, int]] = {}

    def tell(self, worker: int, event: Event) -> None:
        """One event of one worker."""
        match event:
            case ExtractionStarted():
                if event.store not in self._num_missing:
                    self._num_missing[event.store] = event.num_missing
                    self._on_event(replace(event, num_pending=event.num_missing))
            case ExtractionProgress():
                self._now[worker] = event
                self._num_workers = event.num_workers
                self._on_event(self._progress())
            case ExtractionFinished():
                self._end_round(worker)
                before = self._finished.get(event.store)
                if before is not None:
                    event = replace(
                        event,
                        num_computed=before.num_computed + event.num_computed,
                        size_bytes=before.size_bytes + event.size_bytes,
                    )
                self._finished[event.store] = event
            case CacheReused():
                # a worker that comes when the others have just completed a store tells nothing new
                if event.store not in self._reused and event.store not in self._num_missing:
                    self._reused.add(event.store)
                    self._on_event(event)
            case ShareFinished():
                pass  # the others go on
            case TokensOutOfRange():
                self._out_of_range[event.array, worker] = (event.num_saturated, event.num_nonfinite)
                counts = [c for (array, _), c in self._out_of_range.items() if array == event.array]
                saturated, nonfinite = (sum(column) for column in zip(*counts, strict=True))
                self._on_event(replace(event, num_saturated=saturated, num_nonfinite=nonfinite))
            case _:
                self._on_event(event)

    def finish(self) -> None:
        """All workers have ended: tell of every store that it is finished."""
        shares = self._progress()
        for event in self._finished.values():
            self._on_event(
                replace(
                    event,
                    elapsed_s=shares.elapsed_s,
                    decode_s=shares.decode_s,
                    compute_s=shares.compute_s,
                    write_s=shares.write_s,
                )
            )

    def _end_round(self, worker: int) -> None:
        now = self._now.pop(worker, None)
        if now is not None:
            past = self._past.get(worker, [0.0] * 6)
            self._past[worker] = [before + new for before, new in zip(past, _numbers(now), strict=True)]

    def _progress(self) -> ExtractionProgress:
        """Rows and batches added up; the seconds are the wall's, shared out as the workers' own are."""
        rounds = [*self._past.values(), *map(_numbers, self._now.values())]
        done, batches, elapsed, *parts = (sum(column) for column in zip([0.0] * 6, *rounds, strict=True))
        wall_s = time.monotonic() - self._began
        decode_s, compute_s, write_s = (wall_s * part / max(elapsed, 1e-9) for part in parts)
        return ExtractionProgress(
            num_done=int(done),
            num_pending=sum(self._num_missing.values()),
            num_batches=int(batches),
            elapsed_s=wall_s,
            decode_s=decode_s,
            compute_s=compute_s,
            write_s=write_s,
            num_workers=self._num_workers,
        )


def _numbers(event: ExtractionProgress) -> list[float]:
    return [event.num_done, event.num_batches, event.elapsed_s, event.decode_s, event.compute_s, event.write_s]
