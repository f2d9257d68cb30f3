"""Run pieces of work on a Ray cluster: the engine of `--engine ray`.

The decisions taken here: an actor has a GPU to itself, or a share of the cores where there is none, and does one piece of work at
a time. Ray places actors and says when one has died; what its piece had begun is in the stores, so another actor begins the piece
again and goes on there, up to three times. Rows are given to nobody from here: workers of one store share them through the store,
as those of `workers` do. So every node must see the cache folder, with its locks, and the working folder, under the same names;
the first is tried out by every actor before it begins.

The only module that knows Ray; knows nothing of models, images or stores.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from cache import StoreLockedError, Worker, offer_probe, see_probe

from ..errors import RequestError, WorkError
from ..events import ClusterBusy, ClusterJoined, Emit, Event, WorkerLost
from .relay import Relay
from .workers import Work, as_ours

Task = Callable[[Emit], Any]
"""A piece of work: called with where to tell events; it and what it returns must pickle."""

MAX_LIVES = 3  # a piece whose third actor dies is what kills them
OBJECT_STORE_BYTES = 128 << 20  # of a Ray of our own: events go through it, images and tokens do not
BUSY_AFTER_S = 20.0  # starting an actor takes a few seconds; after that the cluster has no room
ANSWER_S = 10.0
LEASE_S = 120.0  # a file server may hold the locks of a machine that has died so long
LOOK_AGAIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What each actor gets, and how many there are.

    Attributes:
        count: actors at a time.
        device: for the work: `auto` has become `cuda` or `cpu`.
        num_gpus, num_cpus: of each actor.
        num_on_a_node: the most actors that one machine may come to have.
    """

    count: int
    device: str
    num_gpus: int
    num_cpus: int
    num_on_a_node: int


def place(nodes: Sequence[Mapping[str, float]], count: int | None, device: str) -> Placement:
    """One actor a GPU of the cluster, or one a node where it has none; another count shares the cores.

    Args:
        nodes: resources of each living node, `CPU` and `GPU` among them.
        count: actors asked for.
        device: auto, cpu or cuda.

    Raises:
        RequestError: no room for so many, or a device that a cluster does not hand out.

    >>> place([{"CPU": 16, "GPU": 4}, {"CPU": 8, "GPU": 2}], None, "auto")
    Placement(count=6, device='cuda', num_gpus=1, num_cpus=4, num_on_a_node=4)
    >>> place([{"CPU": 8}, {"CPU": 4}], 3, "auto")
    Placement(count=3, device='cpu', num_gpus=0, num_cpus=4, num_on_a_node=2)
    """
    if device not in ("auto", "cpu", "cuda"):
        raise RequestError(
            where="--device",
            expected="auto, cpu or cuda with --engine ray",
            got=device,
            todo="Leave the number out: Ray gives each worker a GPU of its own.",
        )
    gpus = [(int(node.get("CPU", 0)), int(node["GPU"])) for node in nodes if node.get("GPU", 0) >= 1]
    cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if device == "cuda" or (device == "auto" and gpus):
        num_gpus = sum(number for _, number in gpus)
        _check_room(count, num_gpus, "GPUs")
        count = count or num_gpus
        most = min(count, max(number for _, number in gpus))
        each = min(num_cpus // number for num_cpus, number in gpus)
        return Placement(count=count, device="cuda", num_gpus=1, num_cpus=each, num_on_a_node=most)
    _check_room(count, sum(cores), "cores")
    if count is None:
        count, each = len(cores), min(cores)
    else:
        each = max(size for size in range(1, max(cores) + 1) if sum(have // size for have in cores) >= count)
    most = min(count, max(cores) // each)
    return Placement(count=count, device="cpu", num_gpus=0, num_cpus=each, num_on_a_node=most)


def _check_room(count: int | None, room: int, what: str) -> None:
    if room < (count or 1):
        raise RequestError(
            where="--engine ray",
            expected=f"room for {count or 1} workers",
            got=f"a cluster with {room} {what}",
            todo="Ask for fewer with --processes, or join more nodes: `ray start --address HEAD`.",
        )


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

    def __init__(self, folders: Sequence[Path], count: int | None, device: str, emit: Emit) -> None:
        self._folders, self._count, self._device, self._emit = folders, count, device, emit
        self._actors: list[Any] = []
        self._idle: list[Any] = []

    def __enter__(self) -> RayEngine:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # Ray prints: stdout is for answers
            self._ray = stack.enter_context(_connected())
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self.placement = place(nodes, self._count, self._device)
            self._probes = [stack.enter_context(offer_probe(folder)) for folder in self._folders]
            stack.callback(self._end_actors)
            self._closing = stack.pop_all()
        self._emit(
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
            PipelineError: of the first task that failed; the other actors are ended.
        """
        ray = self._ray
        waiting = [(index, 0) for index in reversed(range(len(tasks)))]
        running: dict[Any, _Running] = {}
        num_begun, done = 0, False
        began, told_busy = time.monotonic(), False
        try:
            while waiting or running:
                while waiting and len(running) < self.placement.count:
                    index, life = waiting.pop()
                    actor = self._idle.pop() if self._idle else self._make_actor()
                    told = actor.run.options(num_returns="streaming", max_task_retries=0).remote(
                        tasks[index], life, self._probes, os.getcwd()
                    )
                    running[told] = _Running(index, life, num_begun, actor)
                    num_begun += 1
                ready, _ = ray.wait(list(running), timeout=BUSY_AFTER_S)
                if not ready and not told_busy and not any(one.has_begun for one in running.values()):
                    told_busy = True
                    self._emit(ClusterBusy(waited_s=time.monotonic() - began, num_workers=len(running)))
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
                        lives, reason = one.life + 1, _how_it_ended(error)
                        again = lives < MAX_LIVES and not (share and done)
                        lost(Lost(index=one.index, reason=reason, num_left=len(running), again=again))
                        if again:
                            waiting.append((one.index, lives))
                        else:
                            yield one.index, _gave_up(lives, reason)
                        continue
                    one.has_begun = True
                    if isinstance(message, _Returned):
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
        )(_Actor)
        self._actors.append(actor_class.remote(self.placement.num_cpus))
        return self._actors[-1]

    def _end_actors(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def do_one(self, task: Task, emit: Emit) -> Any:
        """Do one task somewhere, again elsewhere if its actor dies, and return what it returned.

        Raises:
            As `do`; WorkError: its actors died, three of them.
        """

        ((_, result),) = self.do([task], lambda number, event: emit(event), lambda lost: emit(lost.of_worker(1)))
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


@dataclass(frozen=True)
class _Returned:
    value: Any


def run_on_ray(work: Work, engine: RayEngine, emit: Emit) -> None:
    """`run_processes` on a cluster: the workers of one or several stores, each in an actor of its own.

    Args:
        work: called with its number and where to tell events; it must pickle.
        engine: the cluster, which says how many workers there are.
        emit: told what happens, of all of them as if they were one.

    Raises:
        PipelineError: the error of the first that failed; the others are ended.
        WorkError: every worker died, again and again.
    """
    count = engine.placement.count
    relay = Relay(emit)

    tasks = [partial(work, Worker(index, count)) for index in range(count)]
    results = [
        result for _, result in engine.do(tasks, relay.tell, lambda lost: emit(lost.of_worker(count)), share=True)
    ]
    if all(isinstance(result, WorkError) for result in results):
        raise results[0]
    relay.finish()


class _Actor:
    """One process of the cluster, for one piece of work after the other."""

    def __init__(self, num_cpus: int) -> None:
        """Keep to the cores one has; torch, which reads this, comes with the first piece of work."""
        if num_cpus:
            asked = os.environ.get("OMP_NUM_THREADS", "")
            os.environ["OMP_NUM_THREADS"] = str(min(num_cpus, int(asked)) if asked.isdigit() else num_cpus)

    def run(self, task: Task, life: int, probes: Sequence[Path], folder: str) -> Iterator[object]:
        """Yield the events of a task as they come, at last `_Returned` or the error."""
        told: queue.SimpleQueue[object] = queue.SimpleQueue()

        def work() -> None:
            try:
                take_place(probes, folder)
                told.put(_Returned(do_patiently(task, life, told.put)))
            except Exception as error:  # judged by the driver
                told.put(as_ours(error))

        threading.Thread(target=work, daemon=True).start()
        while True:
            message = told.get()
            yield message
            if isinstance(message, (_Returned, BaseException)):
                return


def take_place(probes: Sequence[Path], folder: str) -> None:
    """Be where the command was given, and see what it sees.

    Raises:
        RequestError: this node has another file system.
    """
    node = socket.gethostname()
    for probe in probes:
        problem = see_probe(probe)
        if problem is not None:
            raise RequestError(
                where=f"{probe.parent}, on node {node}",
                expected="one folder for all nodes of the cluster, on a file system that passes on locks",
                got=problem,
                todo="Choose folders that all nodes share with --cache DIR and, for a study, --runs DIR.",
            )
    try:
        os.chdir(folder)
    except OSError as error:
        raise RequestError(
            where=f"the working folder {folder}, on node {node}",
            expected="the folder in which the command was given, on every node",
            got=str(error.strerror),
            todo="Give the command in a folder that all nodes share.",
        ) from None


def do_patiently(task: Task, life: int, emit: Emit) -> Any:
    """The task; where an actor has died before, its locks may outlive it for a while."""
    deadline = time.monotonic() + LEASE_S
    while True:
        try:
            return task(emit)
        except StoreLockedError:
            if life == 0 or time.monotonic() > deadline:
                raise
            time.sleep(LOOK_AGAIN_S)


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    """Ray, connected to a cluster."""
    try:
        import ray
    except ImportError as error:
        raise RequestError(
            where="--engine ray",
            expected="the package ray",
            got=str(error),
            todo="Install the extra here and on every node: pip install 'layerbank[ray]'.",
        ) from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    if address is not None:
        check_address(address)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that somebody extracts tokens
        how |= {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(**how)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is not None:
            raise _no_cluster(address, " ".join(str(error).split())[:300]) from error
        raise
    try:
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Ask the head before Ray does, which takes minutes to say that nobody answers.

    Args:
        address: `host:port` of the head, or `auto`.

    Raises:
        RequestError: nobody answers there, or it is the address of Ray's client server.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise _no_cluster(address, "an address of another form")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, got: str) -> RequestError:
    return RequestError(
        where=f"RAY_ADDRESS={address}",
        expected="host:port of a Ray cluster's head, or auto on one of its machines",
        got=got,
        todo="Start one with `ray start --head`, or unset RAY_ADDRESS: then a Ray of this machine alone is started.",
    )


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
