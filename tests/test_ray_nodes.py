"""`--engine ray` on several nodes: one of them is lost, or the head, and nothing else is."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import run, start, wait_until_at_work
from messages import shows
from photos import write_photos
from ray_nodes import kill_node, nodes, options, processes_of, wait_until
from study_recipes import TIMES, results, write_recipe
from token_stores import tree

from layerbank.cache import Worker
from layerbank.cache.writing.locking import is_locked, read_owner, worker_file
from layerbank.events import (
    ClusterJoined,
    Event,
    ExtractionProgress,
    ExtractionStarted,
    OnEvent,
    StudyUnitAgain,
    WorkerLost,
    ignore,
)
from layerbank.executors.executor import Done, Lost
from layerbank.executors.ray_executor import RayExecutor
from layerbank.executors.studies import run_study
from layerbank.executors.workers import run_in_worker, run_workers
from layerbank.jobs.extract import extract_share, prepare_shares
from layerbank.jobs.job import StudyJob
from layerbank.jobs.recipe import open_recipe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def driver_of(cluster: Any) -> Iterator[Any]:
    """This process as a driver on the head."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        for module in (__name__, wait_until.__module__):  # a node of the cluster has no tests
            ray.cloudpickle.register_pickle_by_value(sys.modules[module])
        yield ray
    finally:
        ray.shutdown()


def here() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def say_where(folder: Path, name: str, doomed: str, worker: int, on_event: OnEvent) -> str:
    """A task that returns the node that did it; the one on the doomed node waits for its end, the third for news of that."""
    (folder / name).touch()
    # each node gets one of the first two
    wait_until((folder / {"first": "second", "second": "first", "third": "lost"}[name]).exists)
    on_event(ExtractionProgress(**PROGRESS))
    if here() == doomed:
        (folder / "at work").touch()
        time.sleep(600)
    return here()


PROGRESS: dict[str, Any] = {
    "num_done": 1, "num_pending": 2, "elapsed_s": 1.0, "decode_s": 1.0, "compute_s": 0.0, "write_s": 0.0,
    "num_workers": 1,
}  # fmt: skip


def when(is_so: Callable[[], object], node: Any) -> threading.Thread:
    """Kill a node as soon as it is so."""

    def kill() -> None:
        wait_until(is_so, patience_s=200)
        kill_node(node)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_what_a_lost_node_had_begun_is_begun_again_on_another_although_all_its_cores_are_taken(tmp_path: Path) -> None:
    done: dict[int, str] = {}
    lost: list[Lost] = []
    with nodes((1, 1)) as cluster, driver_of(cluster):
        head, second = cluster.list_all_nodes()
        killer = when((tmp_path / "at work").exists, second)
        with RayExecutor([tmp_path], None, "cpu", ignore) as executor:
            tasks = [partial(say_where, tmp_path, name, second.node_id) for name in ("first", "second", "third")]
            for outcome in executor.run(tasks, lambda number, event: None):
                if isinstance(outcome, Done):
                    done[outcome.index] = outcome.value
                else:
                    lost.append(outcome)
                    (tmp_path / "lost").touch()
        killer.join()
    assert done == dict.fromkeys(range(3), head.node_id)
    assert [(one.again, one.num_left) for one in lost] == [(True, 1)]


def extract_on_both(share: dict[str, Any], folder: Path, doomed: str, worker: Worker, on_event: OnEvent) -> None:
    """`extract_share`, but the worker of the doomed node waits for its end in the middle of a block; the other one begins then."""
    is_doomed, at_work = here() == doomed, folder / "at work"

    def act(event: Event) -> None:
        if isinstance(event, ExtractionStarted) and not is_doomed:
            wait_until(at_work.exists, patience_s=200)
        on_event(event)
        if isinstance(event, ExtractionProgress) and is_doomed:
            at_work.touch()
            time.sleep(600)

    extract_share(share, worker, act)


@pytest.mark.slow
def test_a_node_is_lost_in_the_middle_of_a_block_and_the_store_has_the_bytes_of_one_process(
    many_photos: Path,
    extracted_store: Path,
    tmp_path: Path,
) -> None:
    """When the other node has done everything else."""
    root = tmp_path / "caches"
    store = root / extracted_store.relative_to(extracted_store.parents[1])
    events: list[Event] = []
    with nodes((1, 1)) as cluster, driver_of(cluster):
        _, second = cluster.list_all_nodes()
        killer = when(
            lambda: any(isinstance(one, ExtractionProgress) and one.num_done >= 312 for one in events), second
        )
        with RayExecutor([root], None, "auto", events.append) as executor:
            share = run_in_worker(partial(prepare_shares, options(many_photos, root)), executor, ignore)
            run_workers(partial(extract_on_both, share, tmp_path, second.node_id), executor, events.append)
        killer.join()
    assert events[0] == ClusterJoined(num_nodes=2, num_workers=2, num_gpus=0, num_cpus=1)
    (lost,) = [event for event in events if isinstance(event, WorkerLost)]
    assert lost.worker in ("0/2", "1/2")
    assert tree(store) == tree(extracted_store)
    assert not is_locked(store)


@pytest.mark.slow
def test_a_node_is_lost_in_the_middle_of_a_study_and_stores_and_results_are_those_of_one_process(
    tmp_path: Path,
) -> None:
    data = [
        f"folder:{write_photos(tmp_path / name, {'train': number, 'test': 20}, seed=number)}"
        for name, number in (("a", 70), ("b", 50), ("c", 40))
    ]
    recipe = open_recipe(str(write_recipe(tmp_path, data, ["linear-cls", "alf"])))

    def study_in(name: str) -> StudyJob:
        return replace(recipe, cache_root=tmp_path / name / "caches", runs_root=tmp_path / name / "runs", workers=0)

    alone, failures = run_study(study_in("alone"))
    assert not failures
    events: list[Event] = []
    with nodes((1, 1)) as cluster, driver_of(cluster):
        _, second = cluster.list_all_nodes()
        killer = when(lambda: is_writing(second, tmp_path / "spread" / "caches"), second)
        folders = [tmp_path / "spread" / name for name in ("caches", "runs")]
        with RayExecutor(folders, None, "auto", events.append) as executor:
            spread, failures = run_study(study_in("spread"), executor=executor, on_event=events.append)
        killer.join()
    assert not failures
    assert len([event for event in events if isinstance(event, StudyUnitAgain)]) == 1
    assert without_times(spread) == without_times(alone)
    assert results(tmp_path / "spread") == results(tmp_path / "alone")
    assert list((tmp_path / "spread").rglob(".sweeps")) == []
    one, other = (stores(tmp_path / name / "caches") for name in ("alone", "spread"))
    assert one == other


def stores(cache: Path) -> dict[str, bytes]:
    """The files of a cache but for its locks, and its index, which depends on how old a file was when it was hashed."""
    files = tree(cache).items()
    return {name: content for name, content in files if not name.endswith(".lock") and not name.startswith(".index/")}


def is_writing(node: Any, root: Path) -> bool:
    """Whether a process of a node has a store to itself."""
    owners = [read_owner(file) for file in root.rglob("*.lock")]
    return not {owner.pid for owner in owners if owner is not None}.isdisjoint(processes_of(node))


def without_times(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gcs_server", "everything"])
def test_the_head_is_lost_and_the_command_ends_with_a_message_and_the_next_one_goes_on(
    extract_arguments: tuple[str, ...],
    extracted_store: Path,
    tmp_path: Path,
    what: str,
) -> None:
    store = tmp_path / extracted_store.relative_to(extracted_store.parents[1])
    with nodes((1, 1)) as cluster:
        address = cluster.address
        command = start(*extract_arguments, "--engine", "ray", "--cache", tmp_path, RAY_ADDRESS=address)
        try:
            wait_until_at_work(command, store)
            for owner in [read_owner(worker_file(store, index)) for index in range(2)]:
                if owner is not None:
                    os.kill(owner.pid, signal.SIGSTOP)  # or all would be done before anybody misses the head
            if what == "everything":
                kill_node(cluster.head_node)
            else:
                cluster.head_node.kill_gcs_server()
            began = time.monotonic()
            _, said = command.communicate(timeout=120)
            assert time.monotonic() - began < 60
        finally:
            command.kill()
            command.communicate()
        assert command.returncode == 1, said
        assert shows(said, "executors.ray_head_lost")
        assert f"the Ray cluster at {address}" in " ".join(said.split())
        assert "Traceback" not in said
    wait_until(lambda: not is_locked(store), patience_s=120)
    again = run(*extract_arguments, "--cache", tmp_path)
    assert again.exit_code == 0, again.stderr
    assert tree(store) == tree(extracted_store)
