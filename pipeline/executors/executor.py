"""What every executor does: run tasks in worker processes, pass their events on, and say which workers were lost.

The decisions taken here: a worker gets its next task when it has finished the one before, so nobody needs to know how long tasks
take. An error of one task ends the run: the others would meet it too. A worker that dies costs at most its task.

Knows nothing of models, images or stores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..events import Event, OnEvent

Task = Callable[[int, OnEvent], Any]
"""Called with the number of its worker on this machine and the callback for events. It and what it returns must pickle."""


@dataclass(frozen=True)
class Done:
    """The task of this index returned a value."""

    index: int
    value: Any


@dataclass(frozen=True)
class Lost:
    """The worker of a task has died.

    Attributes:
        index: index of the task.
        reason: how the worker ended; of a task that is given up, how often.
        num_left: number of other workers that run.
        again: whether another worker begins the task again; otherwise the task is given up.
    """

    index: int
    reason: str
    num_left: int
    again: bool


@dataclass(frozen=True)
class Returned:
    """The last message of a worker about a task that raised nothing."""

    value: Any


@dataclass(frozen=True)
class Died:
    """In place of a message: the worker has died."""

    reason: str


@dataclass
class Running:
    """A task that a worker has: its index, how many workers died with it, and how many tasks were begun before."""

    index: int
    attempt: int
    number: int
    has_begun: bool


class Executor(ABC):
    """Runs tasks in worker processes.

    Attributes:
        num_workers: number of tasks that run at a time.
        num_per_machine: the most workers that one machine runs.
        device: where tasks compute, `cpu` or `cuda`; None where their job says.
        max_attempts: a task is given up when so many workers died with it.
        begins_at_once: whether a worker never waits for resources before it begins.
    """

    num_workers: int
    num_per_machine: int
    device: str | None = None
    max_attempts = 1
    begins_at_once = True

    def run(
        self, tasks: Sequence[Task], on_event: Callable[[int, Event], None], *, share: bool = False
    ) -> Iterator[Done | Lost]:
        """Run every task once.

        Args:
            tasks: handed to workers in this order.
            on_event: called with each event and a number that differs for each time that a task was begun.
            share: the tasks share one work: when one of them has returned, those that have not begun are left out.

        Yields:
            A `Done` for each task, in the order in which tasks end; a `Lost` for each worker that died.

        Raises:
            Exception: the first error that a task raised; the other workers are ended.
        """
        waiting = [(index, 0) for index in reversed(range(len(tasks)))]
        running: dict[Any, Running] = {}
        num_begun, is_done = 0, False
        try:
            while waiting or running:
                while waiting and len(running) < self.num_workers:
                    index, attempt = waiting.pop()
                    self._begin(tasks[index], attempt, running, Running(index, attempt, num_begun, self.begins_at_once))
                    num_begun += 1
                for worker, message in self._messages(running):
                    one = running[worker]
                    if isinstance(message, Died):
                        del running[worker]
                        num_lost = one.attempt + 1
                        again = num_lost < self.max_attempts and not (share and is_done)
                        if again:
                            waiting.append((one.index, num_lost))
                        reason = message.reason
                        if not again and num_lost > 1:
                            reason = f"{num_lost} workers died one after the other, the last: {reason}"
                        yield Lost(one.index, reason, len(running), again)
                        continue
                    one.has_begun = True
                    if isinstance(message, BaseException):
                        raise message
                    if isinstance(message, Returned):
                        del running[worker]
                        is_done = True
                        self._keep(worker, is_needed=bool(waiting))
                        yield Done(one.index, message.value)
                    else:
                        on_event(one.number, message)
                if share and is_done:
                    waiting.clear()
                    unused = [worker for worker, one in running.items() if not one.has_begun]
                    self._end(unused)
                    for worker in unused:
                        del running[worker]
        finally:
            self._end(running)

    @abstractmethod
    def _begin(self, task: Task, attempt: int, running: dict[Any, Running], one: Running) -> None:
        """Hand a task to an idle worker or a new one, and add it to `running` under a key for that worker."""

    @abstractmethod
    def _messages(self, running: Mapping[Any, Running]) -> Iterable[tuple[Any, Any]]:
        """Wait for messages: (worker, event, error, `Returned` or `Died`)."""

    @abstractmethod
    def _keep(self, worker: Any, *, is_needed: bool) -> None:
        """Keep a worker whose task has returned for the next task, if there is one."""

    @abstractmethod
    def _end(self, workers: Collection[Any]) -> None:
        """End workers, even in the middle of a task; those that have ended are ignored."""


def run_task(task: Task, worker: int, send: Callable[[object], None]) -> None:
    """Run a task in its worker: send its events as they come, then `Returned` or the error."""
    try:
        value = task(worker, send)
    except Exception as error:  # raised again by the parent
        send(error)
    else:
        send(Returned(value))
