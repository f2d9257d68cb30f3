"""`--engine ray` on a local Ray of two workers: the bytes of one process, also when a worker is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import MODEL, run, start, wait_until_at_work
from groups import has_ended
from photos import TINY_MODEL
from ray_nodes import options
from token_stores import tree

from layerbank import RequestError, WorkError
from layerbank.cache import SpecError, StoreLockedError, Worker, offer_probe, see_probe
from layerbank.cache.locking import is_locked
from layerbank.cache.workers import PROBE_PREFIX
from layerbank.events import (
    CacheReused,
    ClusterBusy,
    ClusterJoined,
    Event,
    ExtractionProgress,
    ExtractionStarted,
    OnEvent,
    WorkerLost,
    ignore,
)
from layerbank.executors.ray_actor import do_patiently, take_place
from layerbank.executors.ray_connection import check_address
from layerbank.executors.ray_engine import Lost, RayEngine, run_on_ray
from layerbank.executors.ray_placement import place
from layerbank.jobs.extract import extract_share, prepare_shares


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers on this machine."""
    import ray

    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie in it: its name must be short
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=str(folder),
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node of the cluster has no tests
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_cluster_leaves_the_bytes_of_one_process_and_json_alone_on_stdout(
    cluster: Any, extract_arguments: tuple[str, ...], extracted_store: Path, tmp_path: Path
) -> None:
    done = run(*extract_arguments, "--engine", "ray", "--processes", "2", "--cache", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    store = tmp_path / extracted_store.relative_to(extracted_store.parents[2])
    assert json.loads(done.stdout) == {"stores": [str(store)]}
    assert tree(store) == tree(extracted_store)
    assert not is_locked(store)
    assert list(tmp_path.glob(f"{PROBE_PREFIX}*")) == []


def extract_or_die(share: dict[str, Any], dead: Path, worker: Worker, on_event: OnEvent) -> None:
    """`extract_share`, but worker 1 is killed with its first batch, in the middle of a block; worker 0 waits for that."""

    def act(event: Event) -> None:
        if worker.index == 0 and isinstance(event, ExtractionStarted):
            wait_for(dead)
        if worker.index == 1 and isinstance(event, ExtractionProgress) and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        on_event(event)

    extract_share(share, worker, act)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_of_two_workers_is_killed_and_the_others_leave_the_bytes_of_one_process(
    cluster: Any, many_photos: Path, extracted_store: Path, tmp_path: Path
) -> None:
    root = tmp_path / "caches"
    store = root / extracted_store.relative_to(extracted_store.parents[2])
    events: list[Event] = []
    with RayEngine([root], 2, "auto", events.append) as engine:
        share, stores = engine.do_one(partial(prepare_shares, options(many_photos, root)), ignore)
        assert stores == [store]
        run_on_ray(partial(extract_or_die, share, tmp_path / "dead"), engine, events.append)
    (lost,) = [event for event in events if isinstance(event, WorkerLost)]
    assert lost == WorkerLost(worker="1/2", reason="its worker process has died", num_left=1, is_replaced=True)
    assert tree(store) == tree(extracted_store)
    assert not is_locked(store)


def die_or_say(folder: Path, name: str, on_event: OnEvent) -> str:
    """A task whose first actor is killed, whatever it is; `mortal` kills every one."""
    on_event(CacheReused(store=Path(name), num_rows=1))
    if name == "mortal" or not (folder / name).exists():
        (folder / name).touch()
        time.sleep(0.2)  # what was told before is on its way
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def test_a_task_whose_actor_died_is_begun_again_and_given_up_after_the_third(cluster: Any, tmp_path: Path) -> None:
    lost: list[Lost] = []
    told: list[Event] = []
    with RayEngine([tmp_path], 2, "cpu", ignore) as engine:
        tasks = [partial(die_or_say, tmp_path, name) for name in ("once", "mortal")]
        results = dict(engine.do(tasks, lambda number, event: told.append(event), lost.append))
    assert results[0] == "once"
    assert str(results[1]) == (
        "--engine ray: expected a worker that lives until its work is done, got 3 lost one after the other, the last because its "
        "worker process has died. What was committed is kept: run the same command again. If memory ran out, use fewer workers "
        "(--processes)."
    )
    assert isinstance(results[1], WorkError)
    assert sorted((one.index, one.again) for one in lost) == [(0, True), (1, False), (1, True), (1, True)]
    assert len(told) == 5


class Absent:
    """A task that a node cannot unpickle, for it lacks a module."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import layerbank_of_another_version",)


def test_a_node_without_this_layerbank_is_said_with_what_brings_it(cluster: Any, tmp_path: Path) -> None:
    with (
        RayEngine([tmp_path], 1, "cpu", ignore) as engine,
        pytest.raises(RequestError, match=r"expected this layerbank on every node.*pip install 'layerbank\[ray\]'"),
    ):
        engine.do_one(Absent(), ignore)  # type: ignore[arg-type]


def wait_long(on_event: OnEvent) -> None:
    time.sleep(100)


def refuse(on_event: OnEvent) -> None:
    raise SpecError(where="here", expected="this", got="that", todo="Do it.")


def test_an_error_of_a_task_keeps_its_four_parts_and_ends_the_others(cluster: Any, tmp_path: Path) -> None:
    with (
        RayEngine([tmp_path], 2, "cpu", ignore) as engine,
        pytest.raises(RequestError, match=r"here: expected this, got that. Do it."),
    ):
        list(engine.do([wait_long, refuse], lambda number, event: None, lambda lost: None))


def test_more_workers_than_the_cluster_has_room_for_are_refused(
    cluster: Any, many_photos: Path, tmp_path: Path
) -> None:
    refused = run(
        "extract", *MODEL, "--data", f"folder:{many_photos}", "--engine", "ray", "--processes", "3", "--cache", tmp_path
    )
    assert refused.exit_code == 2
    assert "a cluster with 2 cores" in refused.stderr
    assert "Ask for fewer with --processes" in refused.stderr


def test_a_cluster_without_room_now_is_told_and_waited_for(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerbank.executors.ray_engine.BUSY_AFTER_S", 0.5)
    holder = cluster.remote(num_cpus=2)(_Nothing).remote()
    cluster.get(holder.do.remote())
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if isinstance(event, ClusterBusy):
            cluster.kill(holder)

    (tmp_path / "x").touch()
    with RayEngine([tmp_path], 1, "cpu", note) as engine:
        assert engine.do_one(partial(die_or_say, tmp_path, "x"), ignore) == "x"
    assert isinstance(events[0], ClusterJoined)
    assert [event.num_workers for event in events if isinstance(event, ClusterBusy)] == [1]


class _Nothing:
    def do(self) -> None:
        """Take the room."""


def test_ray_that_is_not_installed_is_said_with_the_extra_that_brings_it(
    extract_arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = run(*extract_arguments, "--engine", "ray", "--cache", tmp_path)
    assert refused.exit_code == 2
    assert "layerbank: --engine ray" in refused.stderr
    assert "pip install 'layerbank[ray]'" in refused.stderr


def test_a_shard_on_a_cluster_is_refused(extract_arguments: tuple[str, ...], tmp_path: Path) -> None:
    refused = run(*extract_arguments, "--engine", "ray", "--shard", "0/2", "--cache", tmp_path)
    assert refused.exit_code == 2
    assert "worker 0/2 of --shard or torchrun" in refused.stderr


@pytest.mark.parametrize(
    ("address", "got"), [("127.0.0.1:1", "refused"), ("ray://head:10001", "another form"), ("head", "another form")]
)
def test_an_address_where_no_cluster_is_is_refused_at_once(address: str, got: str) -> None:
    with pytest.raises(RequestError, match=rf"RAY_ADDRESS={address}: expected host:port of .*{got}.*unset RAY_ADDRESS"):
        check_address(address)


def test_a_gpu_by_number_is_refused() -> None:
    with pytest.raises(RequestError, match=r"--device: expected auto, cpu or cuda with --engine ray, got cuda:1"):
        place([{"CPU": 2}], None, "cuda:1")


def test_a_cluster_without_gpus_is_no_place_for_cuda() -> None:
    with pytest.raises(RequestError, match="expected room for 1 workers, got a cluster with 0 GPUs"):
        place([{"CPU": 2}], None, "cuda")


def test_a_folder_that_is_not_shared_is_told(tmp_path: Path) -> None:
    with offer_probe(tmp_path) as probe:
        assert see_probe(probe) is None
        elsewhere = tmp_path / "elsewhere" / probe.name
        assert see_probe(elsewhere, timeout_s=0.0) == "another folder of that name, or none"
        elsewhere.parent.mkdir()
        elsewhere.touch()
        assert see_probe(elsewhere) == "the same folder, without the locks that others hold in it"
    assert not probe.exists()
    with pytest.raises(RequestError, match=r"elsewhere, on node .*: expected one folder for all nodes of the cluster"):
        take_place([elsewhere], str(tmp_path))


def test_a_working_folder_that_a_node_lacks_is_told(tmp_path: Path) -> None:
    with (
        offer_probe(tmp_path) as probe,
        pytest.raises(
            RequestError, match=r"expected the folder in which the command was given, on every node, got No such"
        ),
    ):
        take_place([probe], str(tmp_path / "none"))


def test_the_locks_of_a_dead_machine_are_waited_for_by_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbank.executors.ray_actor.LOOK_AGAIN_S", 0.01)
    tries: list[int] = []

    def locked_twice(on_event: OnEvent) -> str:
        tries.append(0)
        if len(tries) < 3:
            raise StoreLockedError(where="a", expected="b", got="c", todo="d")
        return "done"

    assert do_patiently(locked_twice, 1, ignore) == "done"
    tries.clear()
    with pytest.raises(StoreLockedError):
        do_patiently(locked_twice, 0, ignore)


def test_a_study_spreads_its_units_over_a_cluster_and_leaves_the_rows_of_one_process(
    cluster: Any, photos: Path, tmp_path: Path
) -> None:
    recipe, protocol = tmp_path / "recipe.toml", tmp_path / "fast.toml"
    protocol.write_text("min_steps = 10\nlrs = [0.01]\nweight_decays = [1e-4]\ndropouts = [0.0]\n")
    recipe.write_text(
        f'models = ["{TINY_MODEL}", "timm/nobody"]\ndata = ["folder:{photos}"]\nprobes = ["linear-cls", "ridge-last"]\n'
        f'protocol = "{protocol}"\nimage_size = 32\nweights = {{ "{TINY_MODEL}" = "random" }}\n'
    )
    answers = []
    for how in ((), ("--engine", "ray", "--processes", "2")):
        place = ("--cache", tmp_path / f"caches{how[:2]}", "--runs", tmp_path / f"runs{how[:2]}", "--workers", "0")
        done = run("study", recipe, *place, *how, "--json")
        assert done.exit_code == 1, done.stderr
        answers.append(json.loads(done.stdout))
    alone, spread = answers
    assert spread["failures"] == alone["failures"]
    assert [failure["model"] for failure in alone["failures"]] == ["timm/nobody"]
    for row in (*alone["rows"], *spread["rows"]):
        for cost in ("seconds", "memory", "together_with"):
            del row[cost]
    assert len(alone["rows"]) == 2
    assert spread["rows"] == alone["rows"]


def test_ctrl_c_ends_the_workers_of_a_cluster_and_the_next_run_goes_on_to_the_same_bytes(
    cluster: Any, extract_arguments: tuple[str, ...], extracted_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / extracted_store.relative_to(extracted_store.parents[2])
    address = cluster.get_runtime_context().gcs_address
    command = start(
        *extract_arguments,
        "--engine",
        "ray",
        "--processes",
        "2",
        "--cache",
        tmp_path,
        in_a_group_of_its_own=True,
        RAY_ADDRESS=address,
    )
    owner = wait_until_at_work(command, store)
    os.killpg(command.pid, signal.SIGINT)
    said = command.communicate(timeout=60)[1]
    assert command.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert has_ended(command.pid)
    deadline = time.monotonic() + 10
    while not owner.is_gone or is_locked(store):  # Ray kills the workers a moment later
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = run(*extract_arguments, "--cache", tmp_path)
    assert again.exit_code == 0, again.stderr
    assert tree(store) == tree(extracted_store)
