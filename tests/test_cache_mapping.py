"""Law: rows through a map are the rows that zarr reads, for every shape, chunk size, dtype, order and way of mapping."""

from __future__ import annotations

import gc
import mmap
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from layerbank.cache import DamagedStoreError, SpecError, TokenArray
from layerbank.cache.mapping import (
    ChunkFiles,
    ChunkRows,
    ContiguousRows,
    Rows,
    ZarrRows,
    can_be_contiguous,
    find_chunk_files,
    map_rows,
    memory_maps,
    open_rows,
)

PAGE = mmap.ALLOCATIONGRANULARITY
DTYPES = ["float16", "float32", "uint16", "int64", "uint8"]
needs_contiguous = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="contiguous maps need MAP_FIXED")


def make_array(path: Path, values: NDArray[Any], chunk_rows: int, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "chunks": (chunk_rows, *values.shape[1:]),
        "serializer": BytesCodec(endian="little"),
        "compressors": [Crc32cCodec()],
        "filters": None,
        "config": {"write_empty_chunks": True},
    } | changes
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, zarr_format=3, **arguments)
    array[...] = values


def open_array(path: Path) -> TokenArray:
    rows = open_rows(path)
    return TokenArray(str(path), rows, rows.dtype.name)


def some_values(num_rows: int, row_shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    size = num_rows * int(np.prod(row_shape)) * np.dtype(dtype).itemsize
    return rng.integers(0, 120, size, dtype=np.uint8).view(dtype).reshape(num_rows, *row_shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_way_of_mapping_reads_what_zarr_reads(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(1, 70), "num_rows")
    row_shape = data.draw(st.sampled_from([(), (1,), (3,), (16,), (2, 5), (PAGE // 4,), (4, PAGE // 8)]), "row_shape")
    chunk_rows = data.draw(st.integers(1, num_rows + 3), "chunk_rows")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    changes = data.draw(
        st.sampled_from(
            [
                {},
                {"compressors": None},
                {"chunk_key_encoding": {"name": "default", "separator": "."}},
                {"chunk_key_encoding": {"name": "v2", "separator": "."}},
                {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
            ]
        ),
        "changes",
    )
    rows = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=90), "rows"), dtype=np.int64)
    start = data.draw(st.integers(0, num_rows), "start")
    stop = data.draw(st.integers(start, num_rows), "stop")
    values = some_values(num_rows, row_shape, dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zarr"
        make_array(path, values, chunk_rows, **changes)
        files = find_chunk_files(path)
        assert files is not None
        ways: list[Rows] = [ChunkRows(files), ZarrRows(path)]
        if can_be_contiguous(files):
            ways.append(ContiguousRows([files]))
        from_zarr = zarr.open_array(path, mode="r")
        for way in ways:
            out = np.empty((len(rows), *row_shape), dtype)
            way.gather(rows, out)
            np.testing.assert_array_equal(out, from_zarr[...][rows])  # type: ignore[index]
            np.testing.assert_array_equal(way.read(start, stop), from_zarr[start:stop])
            assert (way.shape, way.dtype) == (values.shape, values.dtype)
        del way, ways


@needs_contiguous
@settings(max_examples=20, deadline=None)
@given(num_chunks=st.integers(1, 9), pages=st.integers(1, 3), cut=st.integers(0, 7), dtype=st.sampled_from(DTYPES))
def test_chunks_of_whole_pages_become_one_array(num_chunks: int, pages: int, cut: int, dtype: str) -> None:
    width = PAGE // 8 // np.dtype(dtype).itemsize
    num_rows = num_chunks * 8 * pages - cut
    values = some_values(num_rows, (width,), dtype)
    with tempfile.TemporaryDirectory() as folder:
        make_array(Path(folder) / "a.zarr", values, 8 * pages)
        rows = open_rows(Path(folder) / "a.zarr")
        assert isinstance(rows, ContiguousRows)
        np.testing.assert_array_equal(rows.contiguous, values)
        del rows


@needs_contiguous
def test_chunks_that_fill_no_whole_pages_are_read_chunk_by_chunk(tmp_path: Path) -> None:
    make_array(tmp_path / "a.zarr", some_values(10, (7,), "float16"), 4)
    assert isinstance(open_rows(tmp_path / "a.zarr"), ChunkRows)
    assert open_array(tmp_path / "a.zarr").contiguous is None


@needs_contiguous
def test_a_single_chunk_of_any_size_is_one_array(tmp_path: Path) -> None:
    make_array(tmp_path / "a.zarr", some_values(10, (7,), "float16"), 10)
    assert isinstance(open_rows(tmp_path / "a.zarr"), ContiguousRows)


def refusing(original: Callable[..., Any], times: set[int]) -> Callable[..., Any]:
    """`original`, which the system refuses at some of its calls."""
    calls = iter(range(10**9))

    def sometimes(*arguments: Any) -> Any:
        if next(calls) in times:
            raise OSError("out of address space")
        return original(*arguments)

    return sometimes


@needs_contiguous
def test_where_the_system_refuses_a_contiguous_map_rows_come_chunk_by_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = some_values(16, (PAGE // 8,), "uint8")
    make_array(tmp_path / "a.zarr", values, 8)
    files = find_chunk_files(tmp_path / "a.zarr")
    assert files is not None
    monkeypatch.setattr("layerbank.cache.mapping.memory_maps._mmap", refusing(memory_maps._mmap, {1}))
    rows = map_rows(files)
    assert isinstance(rows, ChunkRows)
    np.testing.assert_array_equal(rows.read(3, 12), values[3:12])


def test_where_the_system_allows_few_maps_older_ones_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = some_values(30, (7,), "uint8")
    make_array(tmp_path / "a.zarr", values, 3)
    files = find_chunk_files(tmp_path / "a.zarr")
    assert files is not None
    monkeypatch.setattr("layerbank.cache.mapping.rows.map_file", refusing(memory_maps.map_file, {4, 8}))
    rows = ChunkRows(files)
    np.testing.assert_array_equal(rows.read(0, 30), values)
    assert len(rows._chunks) == 3


def test_without_an_mmap_of_ours_chunks_are_mapped_by_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = some_values(30, (7,), "uint8")
    make_array(tmp_path / "a.zarr", values, 3)
    monkeypatch.setattr("layerbank.cache.mapping.memory_maps._MAP_ANONYMOUS", 0)
    rows = open_rows(tmp_path / "a.zarr")
    assert isinstance(rows, ChunkRows)
    np.testing.assert_array_equal(rows.read(0, 30), values)


@pytest.mark.parametrize(
    "changes",
    [
        {"compressors": [ZstdCodec()]},
        {"serializer": BytesCodec(endian="big")},
        {"chunks": (4, 8), "shards": (8, 8)},
        {"chunks": (4, 4)},
        {"compressors": [Crc32cCodec(), ZstdCodec()]},
    ],
    ids=["compressed", "big-endian", "sharded", "split along two axes", "compressed after the checksum"],
)
def test_layouts_that_are_not_plain_memory_are_read_by_zarr(tmp_path: Path, changes: dict[str, Any]) -> None:
    values = some_values(16, (8,), "float32")
    make_array(tmp_path / "a.zarr", values, 4, **changes)
    array = open_array(tmp_path / "a.zarr")
    assert isinstance(array._rows, ZarrRows)
    np.testing.assert_array_equal(array.take(np.array([3, 3, 15, 0])), values[[3, 3, 15, 0]])
    np.testing.assert_array_equal(array.read(2, 9), values[2:9])


def test_a_foreign_array_that_leaves_out_empty_chunks_is_read_by_zarr(tmp_path: Path) -> None:
    values = some_values(16, (8,), "float32")
    values[4:8] = 0
    make_array(tmp_path / "a.zarr", values, 4, config={"write_empty_chunks": False})
    array = open_array(tmp_path / "a.zarr")
    assert isinstance(array._rows, ZarrRows)
    np.testing.assert_array_equal(array.read(0, 16), values)


def test_a_zarr_v2_array_is_read_by_zarr(tmp_path: Path) -> None:
    values = some_values(16, (8,), "float32")
    array = zarr.create_array(tmp_path / "a.zarr", shape=(16, 8), chunks=(4, 8), dtype="float32", zarr_format=2)
    array[...] = values
    np.testing.assert_array_equal(open_array(tmp_path / "a.zarr").read(0, 16), values)


@needs_contiguous
def test_views_keep_the_map_alive_and_the_last_one_gives_it_back(tmp_path: Path) -> None:
    values = some_values(64, (PAGE,), "uint8")
    make_array(tmp_path / "a.zarr", values, 8)
    contiguous = open_array(tmp_path / "a.zarr").contiguous
    assert contiguous is not None
    view = contiguous[10:12]
    del contiguous
    gc.collect()
    np.testing.assert_array_equal(view, values[10:12])
    del view
    gc.collect()
    if sys.platform == "linux":
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@needs_contiguous
def test_writing_to_the_array_changes_no_file(tmp_path: Path) -> None:
    make_array(tmp_path / "a.zarr", some_values(8, (PAGE,), "uint8"), 8)
    before = (tmp_path / "a.zarr/c/0/0").read_bytes()
    contiguous = open_array(tmp_path / "a.zarr").contiguous
    assert contiguous is not None
    contiguous[...] = 255
    assert (tmp_path / "a.zarr/c/0/0").read_bytes() == before


@pytest.mark.parametrize("chunk_rows", [2, 1], ids=["contiguous", "by chunk"])
@pytest.mark.parametrize("ours", [True, False], ids=["mapped by us", "mapped by Python"])
def test_a_file_shorter_than_its_chunk_is_never_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int, ours: bool
) -> None:
    if not ours:
        monkeypatch.setattr("layerbank.cache.mapping.memory_maps._MAP_ANONYMOUS", 0)
    paths = tuple(tmp_path / str(chunk) for chunk in range(2 // chunk_rows))
    for path in paths:
        path.write_bytes(bytes(chunk_rows * (PAGE + 4) - 1))
    files = ChunkFiles(paths, (2, PAGE + 4), chunk_rows, np.dtype(np.uint8))
    size = chunk_rows * (PAGE + 4)
    with raises("cache.file_cut_short", DamagedStoreError, file=paths[0], expected=size, got=size - 1):
        map_rows(files).read(0, 2)


def test_a_buffer_is_filled_in_place_and_must_fit(tmp_path: Path) -> None:
    values = some_values(16, (8,), "float16")
    make_array(tmp_path / "a.zarr", values, 16)
    array = open_array(tmp_path / "a.zarr")
    out = np.empty((3, 8), np.float16)
    assert array.take(np.array([5, 0, 5]), out) is out
    np.testing.assert_array_equal(out, values[[5, 0, 5]])
    with raises("cache.wrong_buffer", SpecError, expected="float16 (2, 8)", got="float16 (3, 8)"):
        array.take(np.array([1, 2]), out)


@pytest.mark.parametrize("rows", [[-1, 3], [0, 16]])
def test_rows_out_of_range_are_refused_not_clipped(tmp_path: Path, rows: list[int]) -> None:
    make_array(tmp_path / "a.zarr", some_values(16, (8,), "float16"), 16)
    with raises("cache.rows_out_of_range", SpecError, num_rows=16, start=rows[0], stop=rows[1] + 1):
        open_array(tmp_path / "a.zarr").take(np.array(rows))
    with raises("cache.rows_out_of_range", SpecError, num_rows=16, start=4, stop=17):
        open_array(tmp_path / "a.zarr").read(4, 17)


def test_taking_no_rows_gives_no_rows(tmp_path: Path) -> None:
    make_array(tmp_path / "a.zarr", some_values(16, (8,), "float16"), 4)
    assert open_array(tmp_path / "a.zarr").take(np.array([], dtype=np.int64)).shape == (0, 8)
