"""The executor of a Ray cluster: `--engine ray`.

The decisions taken here: an actor has a GPU to itself, or a share of the cores where there is none, and runs one task at a time.
Ray places actors and says when one has died; what its task had begun is in the stores, so another actor begins the task again and
goes on there, up to three times. Every node must see the cache folder, with its locks, and the working folder under the same names;
every actor checks this before a task.

Knows nothing of models, images or stores.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerbank.cache import offer_test_lock

from ..errors import RequestError
from ..events import ClusterBusy, ClusterJoined, OnEvent, ignore
from .executor import Died, Executor, Running, Task
from .ray_actor import Actor
from .ray_connection import HEAD_CHECK_S, HeadCheck, connected
from .ray_placement import place_actors

MAX_ATTEMPTS = 3  # a task whose third actor dies is what kills them
BUSY_AFTER_S = 20.0  # starting an actor takes a few seconds; after that the cluster has no free resources


class RayExecutor(Executor):
    """Runs tasks in actors of a Ray cluster; a context manager.

    A task whose actor dies is begun again by another. `RAY_ADDRESS` names the cluster (`auto` for the one this machine is part of).
    Without it Ray starts on this machine and ends with the executor. A program that has called `ray.init` keeps its own.

    Args:
        folders: folders that all actors must see as the same, locks included.
        count: number of actors at a time; None is one a GPU, else one a node.
        device: auto, cpu or cuda.
        on_event: called when the cluster is joined, and when it has no free resources.

    Raises:
        RequestError: Ray is not installed, there is no such cluster, or it is too small.
        NotWritableError: a folder cannot be written.
        WorkError: while tasks run, the head of the cluster was lost.

    >>> import layerbank as lb
    >>> def run_on_cluster(job: lb.StudyJob) -> list[dict]:
    ...     with lb.RayExecutor([job.cache_root, job.runs_root]) as executor:
    ...         return lb.run(job, executor=executor)
    """

    max_attempts = MAX_ATTEMPTS
    begins_at_once = False

    def __init__(
        self,
        folders: Sequence[str | Path],
        count: int | None = None,
        device: str = "auto",
        on_event: OnEvent = ignore,
    ) -> None:
        self._folders, self._count, self._device, self._on_event = list(map(Path, folders)), count, device, on_event
        self._actors: list[Any] = []
        self._actor_of: dict[Any, Any] = {}  # stream of messages -> actor
        self._idle: list[Any] = []
        self._waited_s = 0.0  # since any actor was at work

    def __enter__(self) -> RayExecutor:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # Ray prints: stdout is for answers
            self._ray = stack.enter_context(connected())
            self._head = HeadCheck(self._ray.get_runtime_context().gcs_address)
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            placement = place_actors(nodes, self._count, self._device)
            self._test_locks = [stack.enter_context(offer_test_lock(folder)) for folder in self._folders]
            stack.callback(lambda: self._kill(self._actors))
            self._closing = stack.pop_all()
        self.num_workers, self.num_per_machine = placement.count, placement.num_per_machine
        self.device = placement.device
        self._resources = {"num_gpus": placement.num_gpus, "num_cpus": placement.num_cpus}
        self._on_event(ClusterJoined(num_nodes=len(nodes), num_workers=placement.count, **self._resources))
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def _begin(self, task: Task, attempt: int, running: dict[Any, Running], one: Running) -> None:
        if not self._idle:
            actor_class = self._ray.remote(**self._resources, max_restarts=0)(Actor)
            self._actors.append(actor_class.remote(self._resources["num_cpus"]))
            self._idle.append(self._actors[-1])
        actor = self._idle.pop()
        method = actor.run.options(num_returns="streaming", max_task_retries=0)
        stream = method.remote(task, attempt, self._test_locks, os.getcwd())
        self._actor_of[stream], running[stream] = actor, one

    def _messages(self, running: Mapping[Any, Running]) -> Iterator[tuple[Any, Any]]:
        self._head.require()
        have_begun = [one.has_begun for one in running.values()]
        if not all(have_begun):
            self._kill_idle()  # a node that is lost took resources with it: theirs may be all there are
        timeout_s = min(HEAD_CHECK_S, BUSY_AFTER_S)
        ready, _ = self._ray.wait(list(running), timeout=timeout_s)
        self._waited_s = 0.0 if ready or any(have_begun) else self._waited_s + timeout_s
        if 0 <= self._waited_s - BUSY_AFTER_S < timeout_s:
            self._on_event(ClusterBusy(waited_s=self._waited_s, num_workers=len(running)))
        for stream in ready:
            yield stream, self._receive(stream)

    def _receive(self, stream: Any) -> object:
        """The next message of a task, or `Died` after its actor.

        Raises:
            RequestError: the node could not even unpickle the task, because it lacks a module.
            WorkError: the whole cluster was lost.
        """
        try:
            return self._ray.get(next(stream))
        except self._ray.exceptions.RayError as error:
            if missing := re.search(r"No module named '[^']+'", str(error)):
                raise RequestError("executors.layerbank_missing_on_node", reason=missing[0]) from None
            if isinstance(error, self._ray.exceptions.RayTaskError):  # what a task raises comes as a message
                raise
            self._end([stream])  # Ray may have lost sight of an actor that lives
            self._head.require(now=True)
            self._kill_idle()  # they may have died with it, and would cost the task its attempts
            return Died(_reason_of(error))

    def _keep(self, worker: Any, *, is_needed: bool) -> None:
        self._idle.append(self._actor_of.pop(worker))

    def _end(self, workers: Collection[Any]) -> None:
        self._kill([self._actor_of.pop(stream) for stream in workers if stream in self._actor_of])

    def _kill_idle(self) -> None:
        self._kill(self._idle)
        self._idle.clear()

    def _kill(self, actors: Collection[Any]) -> None:
        for actor in actors:
            self._ray.kill(actor)


def _reason_of(error: Exception) -> str:
    """Ray's reason in a few words.

    >>> _reason_of(RuntimeError("The actor died.\\nThe actor is dead because its worker process has died. Worker exit ..."))
    'its worker process has died'
    """
    text = " ".join(str(error).split())
    _, found, reason = text.partition("The actor is dead because ")
    return (reason if found else text).partition(". ")[0][:200]
