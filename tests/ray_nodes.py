"""A Ray cluster of several nodes on this machine, and how one is lost: every process of it killed at once, as when power fails."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import MODEL

from layerbank.jobs.job import ExtractJob

STORE_BYTES = 80 << 20


@contextmanager
def nodes(num_cpus: tuple[int, ...], **settings: str) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`: its first node is the head; settings are Ray's own, of all of its processes."""
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie in it: its name must be short
    (folder / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", **settings}.items():
            patch.setenv(name, value)
        cluster = Cluster()
        try:
            for number in num_cpus:
                cluster.add_node(num_cpus=number, include_dashboard=False, object_store_memory=STORE_BYTES)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def kill_node(node: Any) -> None:
    """SIGKILL to all processes of a node."""
    for pid in processes_of(node):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_of(node: Any) -> list[int]:
    """Those that were started with it, and all below them: its workers."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            _, parent = file.read_text().rpartition(")")[2].split()[:2]
            children.setdefault(int(parent), []).append(int(file.parent.name))
    found = [info.process.pid for infos in node.all_processes.values() for info in infos]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found


def wait_until(is_so: Callable[[], object], patience_s: float = 60.0) -> None:
    """Until it is so; on a busy machine that takes as long as it takes."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def options(photos: Path, cache_root: Path) -> ExtractJob:
    """The job that `layerbank extract` makes of the fixture `extract_arguments`."""
    return ExtractJob(
        models=((MODEL[1], "random"),),
        data=f"folder:{photos}",
        image_size=32,
        cache_root=cache_root,
        device="cpu",
        batch_size=16,
        workers=0,
        splits=("train",),
        levels="last",
    )
