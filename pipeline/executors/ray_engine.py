"""Run pieces of work on a Ray cluster: the engine of `--engine ray`.

The decisions taken here: an actor has a GPU to itself, or a share of the cores where there is none, and does one piece of work at
a time. Ray places actors and says when one has died; what its piece had begun is in the stores, so another actor begins the piece
again and goes on there, up to three times. Rows are given to nobody from here: workers of one store share them through the store,
as those of `executors/processes.py` do. So every node must see the cache folder, with its locks, and the working folder, under the
same names; the first is tried out by every actor before it begins.

Knows nothing of models, images or stores.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from layerbank.cache import Worker, offer_probe

from ..errors import RequestError, WorkError
from ..events import ClusterBusy, ClusterJoined, Event, OnEvent, WorkerLost
from .processes import Work
from .ray_actor import Actor, Returned, Task
from .ray_connection import LOOK_S, Head, connected
from .ray_placement import place
from .relay import Relay

MAX_LIVES = 3  # a piece whose third actor dies is what kills them
BUSY_AFTER_S = 20.0  # starting an actor takes a few seconds; after that the cluster has no room


@dataclass(frozen=True, kw_only=True)
class Lost:
    """An actor has died.

    Attributes:
        index: of its task.
        reason: Ray's.
        num_left: how many others are at work.
        again: whether the task is begun again.
    """

    index: int
    reason: str
    num_left: int
    again: bool

    def of_worker(self, count: int) -> WorkerLost:
        """As one of several workers of the same stores."""
        return WorkerLost(
            worker=f"{self.index}/{count}", reason=self.reason, num_left=self.num_left, is_replaced=self.again
        )


class RayEngine:
    """A cluster that does pieces of work; a context manager.

    `RAY_ADDRESS` names the cluster (`auto` for the one this machine is part of). Without it a Ray of our own starts on this machine
    and ends with the work. A program that has called `ray.init` keeps its own.

    Args:
        folders: what all actors must see as the same folders, locks included.
        count: actors at a time; None is one a GPU, else one a node.
        device: auto, cpu or cuda.
        emit: told which cluster it is.

    Raises:
        RequestError: Ray is not installed, there is no such cluster, or it has no room.
        NotWritableError: a folder cannot be written.
    """

    def __init__(self, folders: Sequence[Path], count: int | None, device: str, on_event: OnEvent) -> None:
        self._folders, self._count, self._device, self._on_event = folders, count, device, on_event
        self._actors: list[Any] = []
        self._idle: list[Any] = []

    def __enter__(self) -> RayEngine:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # Ray prints: stdout is for answers
            self._ray = stack.enter_context(connected())
            self._head = Head(self._ray.get_runtime_context().gcs_address)
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self.placement = place(nodes, self._count, self._device)
            self._probes = [stack.enter_context(offer_probe(folder)) for folder in self._folders]
            stack.callback(self._end_actors)
            self._closing = stack.pop_all()
        self._on_event(
            ClusterJoined(
                num_nodes=len(nodes),
                num_workers=self.placement.count,
                num_gpus=self.placement.num_gpus,
                num_cpus=self.placement.num_cpus,
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def do(
        self,
        tasks: Sequence[Task],
        tell: Callable[[int, Event], None],
        lost: Callable[[Lost], None],
        *,
        share: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Do every task, as many at a time as there is room for.

        Args:
            tasks: the pieces of work.
            tell: told the events, with a number for each time that a task was begun.
            lost: told of an actor that has died.
            share: the tasks share one work, so that it is done when one of them is and nobody else has begun.

        Yields:
            The number of a task and what it returned, as they end; a `WorkError` for one whose actors died, three of them.
            Tasks that share one work and were not needed any more are left out.

        Raises:
            LayerbankError: of the first task that failed; the other actors are ended.
            WorkError: the head of the cluster was lost.
        """
        ray = self._ray
        waiting = [(index, 0) for index in reversed(range(len(tasks)))]
        running: dict[Any, _Running] = {}
        num_begun, done = 0, False
        began, told_busy = time.monotonic(), False
        try:
            while waiting or running:
                self._head.require()
                while waiting and len(running) < self.placement.count:
                    index, life = waiting.pop()
                    actor = self._idle.pop() if self._idle else self._make_actor()
                    told = actor.run.options(num_returns="streaming", max_task_retries=0).remote(
                        tasks[index], life, self._probes, os.getcwd()
                    )
                    running[told] = _Running(index, life, num_begun, actor)
                    num_begun += 1
                if not all(one.has_begun for one in running.values()):
                    self._end_idle()  # a node that is lost took room with it: theirs may be all there is
                ready, _ = ray.wait(list(running), timeout=min(LOOK_S, BUSY_AFTER_S))
                waited_s, nobody = time.monotonic() - began, not any(one.has_begun for one in running.values())
                if nobody and not ready and not told_busy and waited_s > BUSY_AFTER_S:
                    told_busy = True
                    self._on_event(ClusterBusy(waited_s=waited_s, num_workers=len(running)))
                for told in ready:
                    one = running[told]
                    try:
                        message = ray.get(next(told))
                    except ray.exceptions.RayTaskError as error:  # what a task raises comes as a message
                        _refuse_without_layerbank(error)
                        raise
                    except ray.exceptions.RayError as error:
                        _refuse_without_layerbank(error)
                        del running[told]
                        ray.kill(one.actor)  # Ray may have lost sight of one that lives
                        self._head.require(now=True)  # or is this no death but the end of the cluster?
                        began, told_busy = time.monotonic(), False
                        lives, reason = one.life + 1, _how_it_ended(error)
                        self._end_idle()  # they may have died with it, and would cost the piece its lives
                        again = lives < MAX_LIVES and not (share and done)
                        lost(Lost(index=one.index, reason=reason, num_left=len(running), again=again))
                        if again:
                            waiting.append((one.index, lives))
                        else:
                            yield one.index, _gave_up(lives, reason)
                        continue
                    one.has_begun = True
                    if isinstance(message, Returned):
                        self._idle.append(running.pop(told).actor)
                        done = True
                        yield one.index, message.value
                    elif isinstance(message, BaseException):
                        raise message
                    else:
                        tell(one.number, message)
                if share and done:
                    waiting.clear()
                    for told in [told for told, one in running.items() if not one.has_begun]:
                        ray.kill(running.pop(told).actor)
        finally:
            for one in running.values():
                ray.kill(one.actor)

    def _make_actor(self) -> Any:
        actor_class = self._ray.remote(
            num_gpus=self.placement.num_gpus, num_cpus=self.placement.num_cpus, max_restarts=0
        )(Actor)
        self._actors.append(actor_class.remote(self.placement.num_cpus))
        return self._actors[-1]

    def _end_idle(self) -> None:
        while self._idle:
            self._ray.kill(self._idle.pop())

    def _end_actors(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def do_one(self, task: Task, on_event: OnEvent) -> Any:
        """Do one task somewhere, again elsewhere if its actor dies, and return what it returned.

        Raises:
            As `do`; WorkError: its actors died, three of them.
        """

        ((_, result),) = self.do(
            [task], lambda number, event: on_event(event), lambda lost: on_event(lost.of_worker(1))
        )
        if isinstance(result, WorkError):
            raise result
        return result


@dataclass
class _Running:
    """An actor at work: its task, the how-manieth for it, and its own number."""

    index: int
    life: int
    number: int
    actor: Any
    has_begun: bool = False


def run_on_ray(work: Work, engine: RayEngine, on_event: OnEvent) -> None:
    """`run_processes` on a cluster: the workers of one or several stores, each in an actor of its own.

    Args:
        work: called with its number and where to tell events; it must pickle.
        engine: the cluster, which says how many workers there are.
        emit: told what happens, of all of them as if they were one.

    Raises:
        LayerbankError: the error of the first that failed; the others are ended.
        WorkError: every worker died, again and again.
    """
    count = engine.placement.count
    relay = Relay(on_event)

    tasks = [partial(work, Worker(index, count)) for index in range(count)]
    results = [
        result for _, result in engine.do(tasks, relay.tell, lambda lost: on_event(lost.of_worker(count)), share=True)
    ]
    if all(isinstance(result, WorkError) for result in results):
        raise results[0]
    relay.finish()


def _refuse_without_layerbank(error: Exception) -> None:
    """Where a node could not even unpickle what it is to do.

    Raises:
        RequestError: it lacks a module.
    """
    if missing := re.search(r"No module named '[^']+'", str(error)):
        raise RequestError(
            where="--engine ray",
            expected="this layerbank on every node",
            got=missing[0],
            todo="Install the same version there, with the extra: pip install 'layerbank[ray]'.",
        ) from None


def _how_it_ended(error: Exception) -> str:
    """Ray's reason in a few words.

    >>> _how_it_ended(RuntimeError("The actor died.\\nThe actor is dead because its worker process has died. Worker exit ..."))
    'its worker process has died'
    """
    text = " ".join(str(error).split())
    _, found, reason = text.partition("The actor is dead because ")
    return (reason if found else text).partition(". ")[0][:200]


def _gave_up(lives: int, reason: str) -> WorkError:
    return WorkError(
        where="--engine ray",
        expected="a worker that lives until its work is done",
        got=f"{lives} lost one after the other, the last because {reason}",
        todo="What was committed is kept: run the same command again. If memory ran out, use fewer workers (--processes).",
    )
