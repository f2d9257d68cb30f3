"""URLs: refused where a path of this machine is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import MODEL, run
from messages import raises, refuses
from photos import TINY_MODEL, write_photos

import layerbank as lb
from layerbank.errors import RequestError
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
