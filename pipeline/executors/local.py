"""The executor of this machine: a spawned process a worker, connected by a pipe.

A worker runs one task after the other and keeps what a task leaves in memory, such as an open model. A worker that dies takes its
task with it, and a new one takes its place if tasks are left.

Knows nothing of models, images or stores.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from numbers import Integral
from typing import Any

from ..cores import num_cores
from ..errors import RequestError
from .executor import Died, Executor, Running, Task, run_task

TERMINATION_S = 15.0  # a process that gets SIGTERM discards its row block and ends; later it is killed


class LocalExecutor(Executor):
    """Runs tasks in processes of this machine, on the device of the job; several GPUs are assigned to the processes in turn.

    Args:
        num_workers: number of processes, at least 1.

    Raises:
        RequestError: another number.

    >>> import layerbank as lb
    >>> executor = lb.LocalExecutor(2)  # for lb.run(job, executor=executor), below `if __name__ == "__main__":` in a script
    >>> executor.num_workers
    2
    """

    def __init__(self, num_workers: int) -> None:
        if not isinstance(num_workers, Integral) or isinstance(num_workers, bool) or num_workers < 1:
            raise RequestError("executors.number_of_workers", got=repr(num_workers))
        self.num_workers = self.num_per_machine = int(num_workers)
        self._processes: dict[Any, Any] = {}  # our end of the pipe -> process
        self._idle: list[Any] = []

    def _begin(self, task: Task, attempt: int, running: dict[Any, Running], one: Running) -> None:
        with interrupts_wait():
            pipe = self._idle.pop() if self._idle else self._start()
            running[pipe] = one
            with suppress(BrokenPipeError, ConnectionResetError):  # it has died, which the next read of the pipe finds
                pipe.send(task)

    def _start(self) -> Any:
        """A new process has the number of the one whose place it takes, and with it that one's GPU."""
        number = min(set(range(self.num_workers)) - {process.number for process in self._processes.values()})
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process: Any = context.Process(target=_work, args=(number, self.num_workers, theirs), name=f"worker-{number}")
        process.number = number
        self._processes[ours] = process
        process.start()
        theirs.close()
        return ours

    def _messages(self, running: Mapping[Any, Running]) -> Iterator[tuple[Any, Any]]:
        ready: list[Any] = wait(list(running))
        for pipe in ready:
            try:
                message = pipe.recv()
            except (EOFError, OSError):  # also in the middle of a message
                message = Died(self._join(pipe))
            yield pipe, message

    def _keep(self, worker: Any, *, is_needed: bool) -> None:
        if is_needed:
            self._idle.append(worker)
        else:
            worker.close()  # the process ends
            self._join(worker)

    def _join(self, pipe: Any) -> str:
        """Wait for the end of a process, and return how it ended."""
        process = self._processes[pipe]
        process.join()
        del self._processes[pipe]
        if process.exitcode < 0:
            return f"killed by {signal.Signals(-process.exitcode).name}"
        return f"ended with exit code {process.exitcode}"

    def _end(self, workers: Collection[Any]) -> None:
        pipes = [pipe for pipe in [*workers, *self._idle] if pipe in self._processes]
        processes = [self._processes.pop(pipe) for pipe in pipes]
        self._idle.clear()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(TERMINATION_S)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Start a process within: Ctrl-C waits until the process is known here, and the process inherits that it ignores Ctrl-C.

    Blocking the signal is not enough, because another thread may receive it. On Windows, where it cannot be blocked, Ctrl-C may end
    a process that is just starting with a traceback of its own.
    """
    received: list[int] = []
    handler, mask = None, None
    if threading.current_thread() is threading.main_thread():  # no other is interrupted
        handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # else it starts with the first process, and unblocks the signal
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def _work(number: int, num_processes: int, pipe: Connection) -> None:
    """The main function of a worker process: run tasks until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends its workers
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(message: object) -> None:
        try:
            pipe.send(message)
        except BrokenPipeError:  # the parent has ended
            sys.exit(1)

    try:
        if num_processes > 1:
            _share_cores(num_processes)
        while True:
            try:
                task = pipe.recv()
            except (EOFError, OSError):
                return
            run_task(task, number, send)
    except SystemExit:  # the parent waits for the end of this process, and Python takes seconds to unload torch
        os._exit(1)


def _end_with_parent() -> None:
    """End at once when the parent is killed, so that the next run of the command finds its stores unlocked."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _share_cores(num_processes: int) -> None:
    """Limit torch's threads: processes that each use every core wait for each other."""
    import torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() // num_processes)))
