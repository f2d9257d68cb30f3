"""URLs: data behind one are copied once; where a path of this machine is meant they are refused."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import MODEL, run
from fsspec.implementations.memory import MemoryFileSystem
from messages import raises, refuses
from photos import TINY_MODEL, write_photos

import layerbank as lb
from layerbank.data.sources import open_source
from layerbank.errors import RequestError, WorkError
from layerbank.events import CopyFinished, CopyProgress, CopyStarted, Event
from layerbank.jobs.units import open_data
from layerbank.outputs import check_local


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("extract", *MODEL, "--data", "demo:digits", "--cache", "s3://bucket/caches"), "--cache"),
        (("probe", *MODEL, "--data", "demo:digits", "--runs", "gs://bucket/runs"), "--runs"),
        (("cache", "ls", "--cache", "HTTPS://host/caches"), "--cache"),
        (("cache", "info", "s3://bucket/store.zarr"), "STORE"),
        (("cache", "merge", "s3://bucket/store.zarr"), "STORES"),
        (("report", "runs", "--csv", "s3://bucket/a.csv"), "--csv"),
        (("study", "smoke", "--runs", "memory://runs"), "--runs"),
    ],
)
def test_a_url_as_a_path_of_a_command_is_refused(command: tuple[Any, ...], option: str) -> None:
    refuses(run(*command), "layerbank.url_not_a_path", where=option)
    assert list(Path().iterdir()) == []


def test_a_url_as_a_folder_of_a_function_or_job_is_refused(tmp_path: Path) -> None:
    model = lb.open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")
    images = lb.open_images(f"folder:{write_photos(tmp_path / 'photos', {'train': 1})}")
    with raises("layerbank.url_not_a_path", RequestError, where="extract, cache"):
        lb.extract(model, images, cache="s3://bucket/caches", progress=False)
    with raises("layerbank.url_not_a_path", RequestError, where="probe job, cache_root"):
        lb.ProbeJob(data="demo:digits", model=TINY_MODEL, probes=["alf"], cache_root=Path("s3://bucket"))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("path", ["caches", "/a/b:c", "C:/caches", "a b:/c", "../s3"])
def test_other_paths_are_no_urls(path: str) -> None:
    check_local(Path(path), "--cache")


# --- data behind URLs ---


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    filesystem = MemoryFileSystem()
    filesystem.put(str(write_photos(tmp_path / "photos", {"train": 2, "test": 1})), "/far/photos", recursive=True)
    yield filesystem
    filesystem.rm("/far", recursive=True)


def test_a_folder_behind_a_url_is_copied_once(remote: MemoryFileSystem, tmp_path: Path) -> None:
    events: list[Event] = []
    source = open_source("folder:memory://far/photos", "train", events.append)
    local = open_source(f"folder:{tmp_path}/photos", "train")
    assert source.ids == local.ids
    assert all(source.read(row) == local.read(row) for row in range(len(local)))
    assert (source.name, source.uri) == ("photos", "folder:memory://far/photos")
    started, finished = events[0], events[-1]
    assert isinstance(started, CopyStarted)
    assert isinstance(finished, CopyFinished)
    assert (started.num_files, started.size_bytes) == (finished.num_files, finished.size_bytes)
    assert started.num_files == 9
    remote.rm("/far/photos/train", recursive=True)
    again: list[Event] = []
    assert open_source("folder:memory://far/photos", "test", again.append).ids == ["test/blue/000.png"] + [
        f"test/{name}/000.png" for name in ("green", "red")
    ]
    assert again == []


def test_a_table_behind_a_url_is_refused_before_anything_is_copied(remote: MemoryFileSystem, tmp_path: Path) -> None:
    for name in ("labels.csv", "{split}.jsonl"):
        with raises("data.url_of_table", RequestError, url=f"memory://far/photos/{name}"):
            open_source(f"csv:memory://far/photos/{name}?image=path", "train")
    assert not (tmp_path / "user").exists()


def test_files_of_a_pattern_are_copied_for_the_split_that_is_asked_for(remote: MemoryFileSystem) -> None:
    for split in ("train", "test"):
        remote.pipe(f"/far/photos/x_{split}.npz", b"no zip")
    events: list[Event] = []
    with raises("data.bad_npz", RequestError):
        open_source("npz:memory://far/photos/x_{split}.npz", "test", events.append)
    assert isinstance(events[0], CopyStarted)
    assert events[0].num_files == 1


@pytest.mark.parametrize("error", [ConnectionError("the line is cut"), KeyboardInterrupt()])
def test_a_copy_that_ends_early_goes_on_later(
    error: BaseException, remote: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_file = MemoryFileSystem.open

    def fail_later(self: MemoryFileSystem, path: str, *options: Any, **others: Any) -> Any:
        if len(opened) == 4:
            raise error
        opened.append(path)
        return open_file(self, path, *options, **others)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "open", fail_later)
        with pytest.raises((WorkError, KeyboardInterrupt)):
            open_source("folder:memory://far/photos", "train")
    remote.pipe(opened[0], remote.cat(opened[0]) + b"changed meanwhile")
    events: list[Event] = []
    assert len(open_source("folder:memory://far/photos", "train", events.append)) == 6
    assert isinstance(events[0], CopyStarted)
    assert events[0].num_files == 6


@pytest.mark.parametrize("way", ["study", "Python"])
def test_whoever_opens_data_behind_a_url_hears_of_the_copy(way: str, remote: MemoryFileSystem) -> None:
    uri, events = "folder:memory://far/photos", list[Event]()
    if way == "study":
        open_data(lb.StudyJob(data=[uri], models=[TINY_MODEL], probes=["ridge-cls"]), uri, events.append)
    else:
        lb.open_images(uri, progress=events.append)
    assert isinstance(events[0], CopyStarted)
    assert any(isinstance(event, CopyFinished) for event in events)


def test_one_of_several_processes_copies_and_the_others_wait(remote: MemoryFileSystem) -> None:
    events: list[Event] = []
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_source("folder:memory://far/photos", "train", events.append), range(4)))
    assert [len(source) for source in opened] == [6] * 4
    assert [type(event) for event in events if not isinstance(event, CopyProgress)] == [CopyStarted, CopyFinished]


def test_a_file_of_another_size_is_no_copy(remote: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    info = MemoryFileSystem.info
    larger = lambda self, path, **options: {**info(self, path, **options), "size": 10}  # noqa: E731
    remote.pipe("/far/a.npz", b"no zip")
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "info", larger)
        with raises("data.copy_failed", WorkError):
            open_source("npz:memory://far/a.npz", "all")


def test_urls_that_name_nothing_are_refused(remote: MemoryFileSystem) -> None:
    for url in ("memory://far/nothing", "nosuch://far/photos"):
        with raises("data.no_such_url", RequestError, url=url):
            open_source(f"folder:{url}", "train")


# --- over HTTP


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of tmp_path/site, which has lists of its folders as web servers do."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    write_photos(tmp_path / "site" / "photos", {"train": 2, "test": 1})
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / "site" / f"x_{split}.npz", images=pixels, labels=np.arange(6) % 2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "site"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_and_folders_of_a_web_server_are_copied(site: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec needs it for http")
    source = open_source(f"npz:{site}/x_{{split}}.npz", "test")
    assert np.array_equal(source.read(3), open_source(f"npz:{tmp_path}/site/x_{{split}}.npz", "test").read(3))
    folder = open_source(f"folder:{site}/photos", "train")
    local = open_source(f"folder:{tmp_path}/site/photos", "train")
    assert folder.ids == local.ids
    assert all(folder.read(row) == local.read(row) for row in range(len(local)))
    with raises("data.no_such_url", RequestError):
        open_source(f"npz:{site}/none.npz", "test")
    with raises("data.url_of_table", RequestError):
        open_source(f"csv:{site}/labels.csv", "train")


def test_a_web_address_without_its_package_names_the_package(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry  # type: ignore[attr-defined]  # it remembers what was imported

    for name in ("http", "https"):
        monkeypatch.delitem(_registry, name, raising=False)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with raises("data.no_such_url", RequestError) as refused:
        open_source(f"npz:{site}/x_{{split}}.npz", "test")
    assert "aiohttp" in str(refused.error)
