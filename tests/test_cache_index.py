"""The content index: which files are known, for any number of rows in each, and what is on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layerbank.cache import index
from layerbank.cache.checked_arrays import STALE_STAGING_S, UnusableIndex
from layerbank.cache.index import (
    EMPTY,
    SETTLED_NS,
    STATUS,
    ContentIndex,
    index_folders,
    read_index,
    read_status,
    read_whole,
    write_index,
)

NOW = 10**18


def make(counts: list[int], seed: int = 0) -> ContentIndex:
    """An index of settled files with these numbers of rows."""
    rng = np.random.default_rng(seed)
    status = np.zeros(len(counts), dtype=STATUS)
    status["size"], status["inode"] = (
        rng.integers(1, 1000, len(counts)),
        2**63 + np.arange(len(counts), dtype=np.uint64),
    )
    keys = rng.integers(0, 2**64, len(counts), dtype=np.uint64)
    hashes, rule1 = (rng.integers(1, 2**64, sum(counts), dtype=np.uint64) for _ in range(2))
    return ContentIndex.of_files(
        keys, status, np.full(len(counts), NOW), np.array(counts, dtype=np.int64), hashes, rule1
    )


def find(known: ContentIndex, records: NDArray[np.void]) -> NDArray[np.int64]:
    return known.find(records["key"], records["num_rows"], lambda files: records["status"][files])


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 4), max_size=8), seed=st.integers(0, 2**32), data=st.data())
def test_files_are_found_in_any_order_with_the_hashes_of_their_rows(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    known = make(counts, seed)
    order = np.array(data.draw(st.permutations(range(len(counts)))), dtype=np.int64)
    order = order[: data.draw(st.integers(0, len(counts)))]
    places = find(known, known.records[order])
    assert places.tolist() == order.tolist()
    hashes, rule1 = known.hashes_of(places)
    starts = np.cumsum([0, *counts])
    rows = [row for file in order for row in range(starts[file], starts[file + 1])]
    assert hashes.tolist() == known.hashes[rows].tolist()
    assert known.rule1_hashes is not None or not len(known.hashes)
    if known.rule1_hashes is not None:
        assert rule1.tolist() == known.rule1_hashes[rows].tolist()


@pytest.mark.parametrize("field", ["size", "mtime_ns", "ctime_ns", "inode"])
def test_a_file_with_another_size_time_or_inode_is_unknown(field: str) -> None:
    known = make([1, 2, 1])
    records = known.records.copy()
    records["status"][field][1] += 1
    assert find(known, records).tolist() == [0, -1, 2]


def test_a_file_with_another_number_of_rows_or_another_key_is_unknown() -> None:
    known = make([1, 2, 1])
    records = known.records.copy()
    records["num_rows"][0] = 2
    records["key"][2] ^= np.uint64(1)
    assert find(known, records).tolist() == [-1, 1, -1]


@pytest.mark.parametrize("field", ["mtime_ns", "ctime_ns"])
@pytest.mark.parametrize(("age_ns", "place"), [(SETTLED_NS, 0), (SETTLED_NS - 1, -1), (0, -1), (-(10**12), -1)])
def test_a_record_made_too_soon_after_a_change_does_not_count(field: str, age_ns: int, place: int) -> None:
    known = make([1])
    known.records["status"][field] = NOW - age_ns
    assert find(known, known.records).tolist() == [place]


def test_only_files_with_a_record_are_looked_at() -> None:
    known = make([1, 1, 1])
    asked: list[int] = []
    keys = known.records["key"].copy()
    keys[1] ^= np.uint64(1)
    known.find(keys, known.records["num_rows"], lambda files: asked.extend(files) or known.records["status"][files])
    assert asked == [0, 2]
    assert find(EMPTY, known.records).tolist() == [-1, -1, -1]


def test_an_index_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    known, path = make([1, 3, 2]), tmp_path / "folder" / "a.index"
    assert write_index([path], known, "some data") == ""
    back = read_index(path, "some data")
    assert back.records.tobytes() == known.records.tobytes()
    assert back.hashes.tolist() == known.hashes.tolist()
    assert back.rule1_hashes is not None
    assert known.rule1_hashes is not None
    assert back.rule1_hashes.tolist() == known.rule1_hashes.tolist()
    assert read_index(tmp_path / "missing.index", "some data") is EMPTY
    with pytest.raises(UnusableIndex, match="other data"):
        read_index(path, "other data")


def test_every_altered_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    write_index([path], make([1, 2]), "some data")
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :])
        with pytest.raises(UnusableIndex):
            read_index(path, "some data")
        path.write_bytes(content[:place])
        with pytest.raises(UnusableIndex):
            read_index(path, "some data")


def test_the_first_place_that_can_be_written_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    places = [tmp_path / "file" / "a.index", tmp_path / "folder" / "a.index"]
    assert write_index(places, EMPTY, "x") == ""
    assert places[1].exists()
    assert write_index(places[:1], EMPTY, "x") != ""


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    fresh, stale = tmp_path / "a.index.00.part", tmp_path / "a.index.11.part"
    for staging in (fresh, stale):
        staging.write_bytes(b"half")
    os.utime(stale, (1, stale.stat().st_mtime - STALE_STAGING_S - 60))
    write_index([tmp_path / "a.index"], EMPTY, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index", fresh.name]


def test_the_users_folder_follows_the_xdg_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert index_folders(Path("caches")) == [Path("caches/.index"), tmp_path / "layerbank/index"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert index_folders(Path("caches"))[1] == tmp_path / "home/.cache/layerbank/index"


def test_a_file_is_read_whole_even_where_the_system_gives_it_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    real = os.read
    monkeypatch.setattr(index.os, "read", lambda fd, size: real(fd, min(size, 7)))
    content, status, is_settled = read_whole(path)
    assert content == bytes(range(100))
    assert is_settled
    assert status == read_status([path])[0].item()
    assert read_status([tmp_path / "missing"])["size"].tolist() == [-1]
