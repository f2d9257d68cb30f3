"""Inputs that once went wrong: hostile journals, absurd numbers, full disks, targets that contradict each other."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from commands import run
from messages import raises
from token_stores import make_arrays, write_images

from layerbank.cache import DamagedStoreError, Target, export_hdf5, merge_stores, verify_store, write_target
from layerbank.cache.journal import JOURNAL_FOLDER, WORKER_FILE, parse_line
from layerbank.data.views import ViewRule


def a_store(root: Path, images: int | range = 600, name: str = "train") -> Path:
    return write_images(root, images, make_arrays(kinds=("cls",)), name=name)


def test_a_journal_line_that_commits_an_array_without_chunks_is_no_entry(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    file = store / JOURNAL_FOLDER / WORKER_FILE
    lines = file.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[0])["entry"]
    name = next(iter(entry["checksums"]))
    entry["checksums"][name] = []
    dumped = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    crc = f"{google_crc32c.value(dumped):08x}"
    sealed = json.dumps({"crc32c": crc, "entry": entry}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    assert parse_line(sealed) is None
    file.write_bytes(b"".join([sealed, *lines[1:]]))
    assert verify_store(store)
    with pytest.raises(DamagedStoreError):
        merge_stores([store], tmp_path, name="merged")


def test_targets_that_contradict_each_other_are_left_out_of_a_merge(tmp_path: Path) -> None:
    stores = [a_store(tmp_path, images, name) for name, images in (("a", range(600)), ("b", range(500, 1100)))]
    for number, store in enumerate(stores):
        for name, values in (("label", np.full(600, number)), ("alike", np.zeros(600, np.int64))):
            write_target(store, name, Target(values=values, type="multiclass", class_names=("x", "y")), num_rows=600)
    merged = merge_stores(stores, tmp_path, name="merged", delete=True)
    assert merged.targets_left_out == ("label",)
    assert all(store.exists() for store in stores)


def test_more_views_than_a_store_can_number_are_refused() -> None:
    with raises("data.bad_views", num_views=65_536):
        ViewRule(num_views=65_536)


def test_an_export_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with raises("cache.storage_full"):
        export_hdf5(store, tmp_path / "x.h5")
    assert not list(tmp_path.glob("x.h5*"))


def test_a_full_disk_anywhere_is_an_error_in_four_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("layerbank.cache.list_stores", full)
    result = run("cache", "ls", "--cache", tmp_path)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
