"""Several workers of the same stores: each is one of n, and their events are shown as if they came from one process.

The decision taken here: workers know nothing of each other and get no rows from here. The stores say who computes what, so a
worker that is killed is a warning, not an end, as long as another one lives.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from layerbank.cache import Worker

from ..errors import WorkError
from ..events import (
    Event,
    ExtractionFinished,
    ExtractionProgress,
    ExtractionStarted,
    OnEvent,
    RowsFound,
    ShareFinished,
    TokensOutOfRange,
    WorkerLost,
)
from .executor import Done, Executor

PHASES = ("decode_s", "compute_s", "write_s")


def run_workers(work: Callable[[Worker, OnEvent], None], executor: Executor, on_event: OnEvent) -> None:
    """Run the same work in every worker of an executor.

    Args:
        work: called with the worker and the callback for events; it must pickle.
        executor: says how many workers there are.
        on_event: called with the events of all workers as if they were one.

    Raises:
        Exception: the error of the first worker that failed; the others are ended.
        WorkError: every worker died.
    """
    count = executor.num_workers
    relay = Relay(on_event)
    _results([partial(work, Worker(index, count)) for index in range(count)], executor, relay.add, on_event)
    relay.finish()


def run_in_worker(task: Callable[[OnEvent], Any], executor: Executor, on_event: OnEvent) -> Any:
    """Run one task in a worker of an executor, and return what it returned.

    Raises:
        Exception: the error of the task.
        WorkError: the worker died, and those that followed it.
    """
    (result,) = _results([task], executor, lambda number, event: on_event(event), on_event)
    return result


def _results(
    tasks: Sequence[Callable[[OnEvent], Any]],
    executor: Executor,
    on_task_event: Callable[[int, Event], None],
    on_event: OnEvent,
) -> list[Any]:
    """What tasks return that share one work: at least one result."""
    results, reasons = [], []
    for outcome in executor.run([partial(_without_number, task) for task in tasks], on_task_event, share=True):
        if isinstance(outcome, Done):
            results.append(outcome.value)
            continue
        name = f"{outcome.index}/{len(tasks)}"
        reasons.append(outcome.reason)
        on_event(WorkerLost(worker=name, reason=outcome.reason, num_left=outcome.num_left, is_replaced=outcome.again))
    if not results:
        raise WorkError("executors.workers_lost", count=len(tasks), reason=", ".join(dict.fromkeys(reasons)))
    return results


def _without_number(task: Callable[[OnEvent], Any], number: int, on_event: OnEvent) -> Any:
    return task(on_event)


class Relay:
    """Joins the events of several workers: each store begins once, progress is summed, each store finishes once.

    Args:
        on_event: called with the joined events.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._began = time.monotonic()
        self._num_missing: dict[Path, int] = {}
        self._num_finished: Counter[int] = Counter()  # worker -> stores
        self._progress: dict[
            tuple[int, int], ExtractionProgress
        ] = {}  # (worker, its stores before) -> progress on a store
        self._finished: dict[Path, ExtractionFinished] = {}
        self._found: set[tuple[str, str, str]] = set()  # model, data set and split
        self._stores: dict[int, Path] = {}  # worker -> the store it fills
        self._out_of_range: dict[tuple[tuple[str, Path | None], int, int], TokensOutOfRange] = {}

    def add(self, worker: int, event: Event) -> None:
        """Take one event of one worker."""
        match event:
            case ExtractionStarted():
                self._stores[worker] = event.store
                if event.store not in self._num_missing:
                    self._num_missing[event.store] = event.num_missing
                    self._on_event(replace(event, num_pending=event.num_missing))
            case ExtractionProgress():
                self._progress[worker, self._num_finished[worker]] = event
                self._on_event(self._sum_progress(event.num_workers))
            case ExtractionFinished():
                self._num_finished[worker] += 1
                before = self._finished.get(event.store, replace(event, num_computed=0, size_bytes=0))
                self._finished[event.store] = replace(
                    event,
                    num_computed=before.num_computed + event.num_computed,
                    size_bytes=before.size_bytes + event.size_bytes,
                )
            case RowsFound():
                # what the first worker finds; a later one sees rows of the others
                if (found := (event.backbone, event.dataset, event.split)) not in self._found:
                    self._found.add(found)
                    self._on_event(event)
            case ShareFinished():
                pass  # the others go on
            case TokensOutOfRange():
                place = event.array, self._stores.get(worker)
                self._out_of_range[place, worker, self._num_finished[worker]] = event  # each share counts from 0
                same = [one for (other, *_), one in self._out_of_range.items() if other == place]
                num_saturated, num_nonfinite = (
                    sum(one.num_saturated for one in same),
                    sum(one.num_nonfinite for one in same),
                )
                self._on_event(replace(event, num_saturated=num_saturated, num_nonfinite=num_nonfinite))
            case _:
                self._on_event(event)

    def finish(self) -> None:
        """After all workers have ended: say of every store that it is finished."""
        total = self._sum_progress()
        seconds = {name: getattr(total, name) for name in ("elapsed_s", *PHASES)}
        for event in self._finished.values():
            self._on_event(replace(event, **seconds))

    def _sum_progress(self, num_workers: int = 0) -> ExtractionProgress:
        """Sum the rows; the seconds are wall time, in the proportions of the workers' own."""
        parts = self._progress.values()
        wall_s = time.monotonic() - self._began
        scale = wall_s / max(sum(one.elapsed_s for one in parts), 1e-9)
        return ExtractionProgress(
            num_done=sum(one.num_done for one in parts),
            num_pending=sum(self._num_missing.values()),
            elapsed_s=wall_s,
            num_workers=num_workers,
            **{phase: scale * sum(getattr(one, phase) for one in parts) for phase in PHASES},
        )
