"""Which of several workers this process is: by `--shard i/n`, or by the environment that torchrun sets.

Knows nothing of stores: `cache` decides what a worker may write.
"""

from __future__ import annotations

from collections.abc import Mapping

from layerbank.cache import Worker

from ..errors import RequestError
from ..quantities import whole_number

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # all three: a stray RANK alone is not torchrun's


def parse_shard(text: str) -> Worker:
    """Return the worker that `--shard` names; it computes its own share only.

    >>> parse_shard("1/4")
    Worker(index=1, count=4, helps=False)

    Raises:
        RequestError: no such shard.
    """
    index, _, count = (whole_number(part) for part in text.strip().partition("/"))
    if index is None or count is None or index >= count:
        raise RequestError("extraction.malformed_shard", text=text)
    return Worker(index, count, helps=False)


def worker_of_launcher(environment: Mapping[str, str]) -> Worker | None:
    """Return the worker that this process is in torchrun; None without torchrun, or if there is one process only.

    >>> worker_of_launcher({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    Worker(index=1, count=2, helps=True)

    Raises:
        RequestError: its variables are not numbers that fit together.
    """
    if any(name not in environment for name in _TORCHRUN):
        return None
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        if not 0 <= rank < size:
            raise ValueError
    except ValueError:
        variables = ", ".join(f"{name}={environment[name]}" for name in _TORCHRUN)
        raise RequestError("extraction.bad_torchrun_environment", variables=variables) from None
    return Worker(rank, size) if size > 1 else None


def device_of_worker(device: str, index: int, num_gpus: int | None = None) -> str:
    """Choose the GPU of a worker, in turn; a device named with its number is kept.

    >>> device_of_worker("auto", 3, 2), device_of_worker("cuda:1", 3, 2), device_of_worker("auto", 3, 0)
    ('cuda:1', 'cuda:1', 'auto')
    """
    num_gpus = _num_gpus() if num_gpus is None else num_gpus
    return f"cuda:{index % num_gpus}" if device in ("auto", "cuda") and num_gpus else device


def choose_processes(processes: int | None, device: str, worker: Worker | None, num_gpus: int | None = None) -> int:
    """Choose how many processes run the model: as requested, else one for each GPU, else one.

    >>> choose_processes(None, "auto", None, 4), choose_processes(None, "cuda:1", None, 4), choose_processes(None, "auto", None, 0)
    (4, 1, 1)

    Raises:
        RequestError: several processes, where this process is one of several workers itself.
    """
    if worker is not None:
        if processes not in (None, 1):
            raise RequestError("extraction.processes_of_a_worker", processes=processes, worker=worker)
        return 1
    if processes is not None:
        return processes
    return max(1, _num_gpus() if num_gpus is None else num_gpus) if device == "auto" else 1


def refuse_shards(worker: Worker | None) -> None:
    """Refuse --shard and torchrun together with a Ray cluster, which has workers of its own.

    Raises:
        RequestError: this process is one of several workers.
    """
    if worker is not None:
        raise RequestError("extraction.ray_with_shards", worker=worker)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
