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
from hub_repository import SIZE, has_run, write_repository
from messages import raises, refuses
from photos import TINY_MODEL
from ray_nodes import options
from study_recipes import TIMES, write_recipe
from token_stores import tree

from layerbank.cache import NotWritableError, StoreLockedError, Worker, check_test_lock, offer_test_lock
from layerbank.cache.writing.locking import is_locked
from layerbank.cache.writing.workers import TEST_LOCK_PREFIX
from layerbank.errors import Message, RequestError, WorkError
from layerbank.events import (
    ClusterBusy,
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
from layerbank.executors.ray_actor import enter_shared_folders, run_in_shared_folders
from layerbank.executors.ray_connection import HeadCheck, check_address
from layerbank.executors.ray_executor import RayExecutor
from layerbank.executors.ray_placement import place_actors
from layerbank.executors.workers import run_in_worker, run_workers
from layerbank.jobs.extract import extract_share, prepare_shares
from layerbank.models.trust import trust_file


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
    store = tmp_path / extracted_store.relative_to(extracted_store.parents[1])
    assert json.loads(done.stdout) == {"folders": [str(store.parent)]}
    assert tree(store) == tree(extracted_store)
    assert not is_locked(store)
    assert list(tmp_path.glob(f"{TEST_LOCK_PREFIX}*")) == []


def test_a_node_without_the_users_trust_file_gets_the_permission_of_the_driver(
    cluster: Any, photos: Path, tmp_path: Path
) -> None:
    """The actors were started before XDG_CONFIG_HOME was set, as on another machine."""
    repository = write_repository(tmp_path / "repository")
    model = f"torchhub:{repository}:tiny"
    options = (
        "--data",
        f"folder:{photos}",
        "--split",
        "test",
        "--image-size",
        SIZE,
        "--levels",
        "last",
        "--workers",
        0,
    )
    command = ("extract", "--model", model, *options, "--engine", "ray", "--cache", tmp_path / "caches")
    refuses(run(*command), "models.code_not_allowed", model=model)
    assert not has_run(repository)
    trust_file().parent.mkdir(parents=True)
    trust_file().write_text(f"models = [{json.dumps(model)}]")
    done = run(*command)
    assert done.exit_code == 0, done.output
    assert has_run(repository)


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
    store = root / extracted_store.relative_to(extracted_store.parents[1])
    events: list[Event] = []
    with RayExecutor([root], 2, "auto", events.append) as executor:
        share = run_in_worker(partial(prepare_shares, options(many_photos, root)), executor, ignore)
        assert list(share.folders) == [str(store.parent)]
        run_workers(partial(extract_or_die, share, tmp_path / "dead"), executor, events.append)
    (lost,) = [event for event in events if isinstance(event, WorkerLost)]
    assert lost == WorkerLost(worker="1/2", reason="its worker process has died", num_left=1, is_replaced=True)
    assert tree(store) == tree(extracted_store)
    assert not is_locked(store)


def die_or_say(folder: Path, name: str, worker: int, on_event: OnEvent) -> str:
    """A task whose first actor is killed; every actor of `mortal` is."""
    on_event(StudyUnitAgain(model=name, dataset=name, reason="said"))
    if name == "mortal" or not (folder / name).exists():
        (folder / name).touch()
        time.sleep(0.2)  # the event is on its way
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def test_a_task_whose_actor_died_is_begun_again_and_given_up_after_the_third(cluster: Any, tmp_path: Path) -> None:
    events: list[Event] = []
    with RayExecutor([tmp_path], 2, "cpu", ignore) as executor:
        tasks = [partial(die_or_say, tmp_path, name) for name in ("once", "mortal")]
        outcomes = list(executor.run(tasks, lambda number, event: events.append(event)))
    assert [one for one in outcomes if isinstance(one, Done)] == [Done(0, "once")]
    lost = [one for one in outcomes if isinstance(one, Lost)]
    assert sorted((one.index, one.again) for one in lost) == [(0, True), (1, False), (1, True), (1, True)]
    (given_up,) = [one.reason for one in lost if not one.again]
    assert given_up == "3 workers died one after the other, the last: its worker process has died"
    assert len(events) == 5


def die(on_event: OnEvent) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_three_actors_is_an_error_with_a_warning_for_each(cluster: Any, tmp_path: Path) -> None:
    events: list[Event] = []
    with RayExecutor([tmp_path], 1, "cpu", ignore) as executor, raises("executors.workers_lost", WorkError, count=1):
        run_in_worker(die, executor, events.append)
    assert [event.is_replaced for event in events if isinstance(event, WorkerLost)] == [True, True, False]


class Absent:
    """A task that a node cannot unpickle, for it lacks a module."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import layerbank_of_another_version",)


def test_a_node_without_this_layerbank_is_an_error_that_says_what_to_install(cluster: Any, tmp_path: Path) -> None:
    with RayExecutor([tmp_path], 1, "cpu", ignore) as executor:
        missing = "No module named 'layerbank_of_another_version'"
        with raises("executors.layerbank_missing_on_node", RequestError, reason=missing):
            run_in_worker(Absent(), executor, ignore)  # type: ignore[arg-type]


def wait_long(worker: int, on_event: OnEvent) -> None:
    time.sleep(100)


def refuse(worker: int, on_event: OnEvent) -> None:
    raise NotWritableError(
        "layerbank.unknown_part", noun="task", name=worker, names="a, b", advice="Choose one of them."
    )


def test_an_error_of_a_task_arrives_with_its_class_key_and_values_and_ends_the_others(
    cluster: Any, tmp_path: Path
) -> None:
    with (
        RayExecutor([tmp_path], 2, "cpu", ignore) as executor,
        raises("layerbank.unknown_part", NotWritableError, name=0, names="a, b") as refused,
    ):
        list(executor.run([wait_long, refuse], lambda number, event: None))
    assert refused.error.got == "0"


def test_more_workers_than_the_cluster_has_cores_for_are_refused(
    cluster: Any, many_photos: Path, tmp_path: Path
) -> None:
    result = run(
        "extract", *MODEL, "--data", f"folder:{many_photos}", "--engine", "ray", "--processes", "3", "--cache", tmp_path
    )
    refuses(result, "executors.cluster_too_small", count=3, available=2, unit="cores")


def test_a_cluster_without_free_resources_is_reported_and_waited_for(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerbank.executors.ray_executor.BUSY_AFTER_S", 0.5)
    holder = cluster.remote(num_cpus=2)(_Nothing).remote()
    cluster.get(holder.do.remote())
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if isinstance(event, ClusterBusy):
            cluster.kill(holder)

    (tmp_path / "x").touch()
    with RayExecutor([tmp_path], 1, "cpu", note) as executor:
        assert run_in_worker(partial(die_or_say, tmp_path, "x", 0), executor, ignore) == "x"
    assert isinstance(events[0], ClusterJoined)
    assert [event.num_workers for event in events if isinstance(event, ClusterBusy)] == [1]


class _Nothing:
    def do(self) -> None:
        """Hold the cores."""


def test_a_missing_ray_is_an_error_that_names_the_extra(
    extract_arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refuses(run(*extract_arguments, "--engine", "ray", "--cache", tmp_path), "executors.ray_not_installed")


def test_a_shard_on_a_cluster_is_refused(extract_arguments: tuple[str, ...], tmp_path: Path) -> None:
    refused = run(*extract_arguments, "--engine", "ray", "--shard", "0/2", "--cache", tmp_path)
    assert refused.exit_code == 2
    assert "worker 0/2 of --shard or torchrun" in refused.stderr


@pytest.mark.parametrize("address", ["ray://head:10001", "head"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with raises("executors.bad_ray_address", RequestError, address=address):
        check_address(address)


def test_an_address_where_no_cluster_is_is_refused_at_once() -> None:
    with raises("executors.no_ray_cluster", RequestError, address="127.0.0.1:1") as refused:
        check_address("127.0.0.1:1")
    assert "refused" in refused.error.got


def test_a_head_that_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbank.executors.ray_connection.HEAD_TIMEOUT_S", 0.1)
    with raises("executors.ray_head_lost", WorkError, address="127.0.0.1:1"):
        HeadCheck("127.0.0.1:1").require()


def test_a_gpu_by_number_is_refused() -> None:
    with raises("executors.device_number_on_ray", RequestError, device="cuda:1"):
        place_actors([{"CPU": 2}], None, "cuda:1")


def test_a_cluster_without_gpus_cannot_run_cuda() -> None:
    with raises("executors.cluster_too_small", RequestError, count=1, available=0, unit="GPUs"):
        place_actors([{"CPU": 2}], None, "cuda")


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    with offer_test_lock(tmp_path) as file:
        assert check_test_lock(file) is None
        elsewhere = tmp_path / "elsewhere" / file.name
        assert check_test_lock(elsewhere, timeout_s=0.0) == "another folder of that name, or none"
        elsewhere.parent.mkdir()
        elsewhere.touch()
        assert check_test_lock(elsewhere) == "the same folder, without the locks that others hold in it"
    assert not file.exists()
    with raises("executors.folder_not_shared", RequestError, folder=elsewhere.parent):
        enter_shared_folders([elsewhere], str(tmp_path))


def test_a_working_folder_that_a_node_lacks_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    with offer_test_lock(tmp_path) as file, raises("executors.working_folder_missing", RequestError, folder=missing):
        enter_shared_folders([file], missing)


def test_the_locks_of_a_dead_machine_are_waited_for_by_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbank.executors.ray_actor.LOCK_RETRY_S", 0.01)
    tries: list[int] = []

    def locked_twice(worker: int, on_event: OnEvent) -> str:
        tries.append(0)
        if len(tries) < 3:
            raise StoreLockedError(Message(where="a", expected="b", got="c", todo="D."))
        return "done"

    assert run_in_shared_folders(locked_twice, 1, [], ".", 0, ignore) == "done"
    tries.clear()
    with pytest.raises(StoreLockedError):
        run_in_shared_folders(locked_twice, 0, [], ".", 0, ignore)


def test_a_study_spreads_its_units_over_a_cluster_and_leaves_the_rows_of_one_process(
    cluster: Any, photos: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, [f"folder:{photos}"], ["linear-cls", "ridge-last"], (TINY_MODEL, "timm/nobody"))
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
        for cost in TIMES:
            del row[cost]
    assert len(alone["rows"]) == 2
    assert spread["rows"] == alone["rows"]


def test_ctrl_c_ends_the_workers_of_a_cluster_and_the_next_run_goes_on_to_the_same_bytes(
    cluster: Any, extract_arguments: tuple[str, ...], extracted_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / extracted_store.relative_to(extracted_store.parents[1])
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
