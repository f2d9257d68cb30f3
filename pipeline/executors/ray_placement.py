"""What each actor of a cluster gets, and how many there are: arithmetic on the resources of its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import RequestError


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
