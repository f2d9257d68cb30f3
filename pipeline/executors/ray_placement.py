"""How many actors a Ray cluster runs, and which resources each gets: arithmetic on the resources of its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Actors of a cluster.

    Attributes:
        count: number of actors at a time.
        device: where they compute, `cuda` or `cpu`.
        num_gpus, num_cpus: resources of each actor.
        num_per_machine: the most actors that one machine runs.
    """

    count: int
    device: str
    num_gpus: int
    num_cpus: int
    num_per_machine: int


def place_actors(nodes: Sequence[Mapping[str, float]], count: int | None, device: str) -> Placement:
    """Place one actor on each GPU of the cluster, or on each node where it has none; another count shares the cores.

    Args:
        nodes: resources of each living node, `CPU` and `GPU` among them.
        count: number of actors; None chooses it.
        device: auto, cpu or cuda.

    Raises:
        RequestError: the cluster is too small for so many, or the device has a number.

    >>> place_actors([{"CPU": 16, "GPU": 4}, {"CPU": 8, "GPU": 2}], None, "auto")
    Placement(count=6, device='cuda', num_gpus=1, num_cpus=4, num_per_machine=4)
    >>> place_actors([{"CPU": 8}, {"CPU": 4}], 3, "auto")
    Placement(count=3, device='cpu', num_gpus=0, num_cpus=4, num_per_machine=2)
    """
    if device not in ("auto", "cpu", "cuda"):
        raise RequestError("executors.device_number_on_ray", device=device)
    gpus = [(int(node.get("CPU", 0)), int(node["GPU"])) for node in nodes if node.get("GPU", 0) >= 1]
    cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if device == "cuda" or (device == "auto" and gpus):
        num_gpus = sum(number for _, number in gpus)
        _check_size(count, num_gpus, "GPUs")
        count = count or num_gpus
        most = min(count, max(number for _, number in gpus))
        each = min(num_cpus // number for num_cpus, number in gpus)
        return Placement(count=count, device="cuda", num_gpus=1, num_cpus=each, num_per_machine=most)
    _check_size(count, sum(cores), "cores")
    if count is None:
        count, each = len(cores), min(cores)
    else:
        each = max(size for size in range(1, max(cores) + 1) if sum(have // size for have in cores) >= count)
    most = min(count, max(cores) // each)
    return Placement(count=count, device="cpu", num_gpus=0, num_cpus=each, num_per_machine=most)


def _check_size(count: int | None, available: int, unit: str) -> None:
    if available < (count or 1):
        raise RequestError("executors.cluster_too_small", count=count or 1, available=available, unit=unit)
