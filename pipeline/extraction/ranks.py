"""Which of several workers this process is: by `--shard i/n`, or by the environment that torchrun sets.

Knows nothing of stores: what a worker may write is for `cache` to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from layerbank.cache import Worker

from ..errors import RequestError

_LAUNCHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
)  # all three, so that a stray RANK of something else is not taken for it


def parse_shard(text: str) -> Worker:
    """The worker that `--shard` names: it keeps to its share.

    >>> parse_shard("1/4")
    Worker(index=1, count=4, helps=False)

    Raises:
        RequestError: no such shard.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not index < count:
        raise RequestError(
            where="--shard",
            expected="i/n with 0 <= i < n, such as 0/4",
            got=repr(text),
            todo="Number shards from 0. In a Slurm array of tasks 0-7: --shard $SLURM_ARRAY_TASK_ID/8.",
        )
    return Worker(index, count, helps=False)


def worker_of_launcher(environment: Mapping[str, str]) -> Worker | None:
    """The worker that torchrun has made this process; None where it did not, or for a world of one.

    >>> worker_of_launcher({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    Worker(index=1, count=2, helps=True)

    Raises:
        RequestError: its variables are no numbers that fit.
    """
    if any(name not in environment for name in _LAUNCHER):
        return None
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        if not 0 <= rank < size:
            raise ValueError
    except ValueError:
        raise RequestError(
            where="the environment of torchrun",
            expected="RANK below WORLD_SIZE",
            got=", ".join(f"{name}={environment[name]}" for name in _LAUNCHER),
            todo="Unset them, or start this with torchrun.",
        ) from None
    return Worker(rank, size) if size > 1 else None


def device_of_worker(device: str, index: int, num_gpus: int | None = None) -> str:
    """One GPU a worker, taken in turn; a device that was named with its number is kept.

    >>> device_of_worker("auto", 3, 2), device_of_worker("cuda:1", 3, 2), device_of_worker("auto", 3, 0)
    ('cuda:1', 'cuda:1', 'auto')
    """
    num_gpus = _num_gpus() if num_gpus is None else num_gpus
    return f"cuda:{index % num_gpus}" if device in ("auto", "cuda") and num_gpus else device


def choose_processes(processes: int | None, device: str, worker: Worker | None, num_gpus: int | None = None) -> int:
    """How many processes run the model: what was asked for, else one a GPU that is there, else one.

    >>> choose_processes(None, "auto", None, 4), choose_processes(None, "cuda:1", None, 4), choose_processes(None, "auto", None, 0)
    (4, 1, 1)

    Raises:
        RequestError: several processes of what is one of several workers itself.
    """
    if worker is not None:
        if processes not in (None, 1):
            raise RequestError(
                where="--processes",
                expected="one process a shard, or a rank of torchrun",
                got=f"{processes} for worker {worker}",
                todo="Leave --processes out, or let it share the rows by itself.",
            )
        return 1
    if processes is not None:
        return processes
    return max(1, _num_gpus() if num_gpus is None else num_gpus) if device == "auto" else 1


def refuse_shards(worker: Worker | None) -> None:
    """A cluster's workers are its own.

    Raises:
        RequestError: this process is one of several workers already.
    """
    if worker is not None:
        raise RequestError(
            where="--engine ray",
            expected="one command for the whole cluster",
            got=f"worker {worker} of --shard or torchrun",
            todo="Leave --shard and torchrun out: the workers of the cluster share the rows by themselves.",
        )


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
