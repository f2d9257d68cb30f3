"""Law: one array in several stores, read by position, is the concatenation of its parts, for every way of mapping."""

from __future__ import annotations

import gc
import itertools
import math
import mmap
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises
from numpy.typing import NDArray

from layerbank.cache import DamagedStoreError, SpecError, TokenArray
from layerbank.cache.mapping import (
    DONT_NEED,
    START_ROWS,
    WILL_NEED,
    ChunkFiles,
    ChunkRows,
    ContiguousRows,
    JoinedRows,
    Rows,
    ZarrRows,
    can_be_contiguous,
    join_rows,
    map_rows,
    memory_maps,
    part_starts,
)

PAGE = mmap.ALLOCATIONGRANULARITY
DTYPES = ["float16", "float32", "uint16", "int64", "uint8"]
ROW_SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (16,), (2, 5), (PAGE // 4,), (4, PAGE // 8)]
needs_contiguous = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="contiguous maps need MAP_FIXED")


def some_values(num_rows: int, row_shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    size = num_rows * math.prod(row_shape) * np.dtype(dtype).itemsize
    return rng.integers(0, 120, size, dtype=np.uint8).view(dtype).reshape(num_rows, *row_shape)


def make_part(folder: Path, values: NDArray[Any], chunk_rows: int) -> ChunkFiles:
    """Chunk files as a store has them, with padding that no reader may see."""
    folder.mkdir()
    files = []
    for chunk, start in enumerate(range(0, len(values), chunk_rows)):
        data = values[start : start + chunk_rows].tobytes()
        files.append(folder / f"c.{chunk}")
        row_bytes = values.nbytes // len(values)
        files[-1].write_bytes(data + b"\xee" * (chunk_rows * row_bytes - len(data)) + b"\xcc" * 4)
    return ChunkFiles(tuple(files), values.shape, chunk_rows, values.dtype)


def make_parts(folder: Path, values: Sequence[NDArray[Any]], chunk_rows: Sequence[int]) -> list[ChunkFiles]:
    pairs = zip(values, chunk_rows, strict=True)
    return [make_part(folder / str(part), one, rows) for part, (one, rows) in enumerate(pairs)]


def whole_page_parts(folder: Path, row_shape: tuple[int, ...] = (PAGE // 2,)) -> tuple[list[ChunkFiles], list[Any]]:
    """Three parts, contiguous where the system can: 12, 1 and 7 rows; the first in 3 chunks."""
    values = [some_values(num, row_shape, "uint8", num) for num in (12, 1, 7)]
    return make_parts(folder, values, [4, 1, 8]), values


def all_ways(parts: Sequence[ChunkFiles]) -> list[Rows]:
    ways: list[Rows] = [
        join_rows(parts),
        JoinedRows([ChunkRows(part) for part in parts]),
        JoinedRows([map_rows(part) for part in parts]),
    ]
    return [*ways, ContiguousRows(parts)] if all(map(can_be_contiguous, parts)) else ways


def positions_of(values: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    starts = part_starts([len(one) for one in values])
    return np.concatenate([start + np.arange(len(one)) for start, one in zip(starts, values, strict=True)])


def gathered(rows: Rows, positions: NDArray[np.int64]) -> NDArray[Any]:
    out = np.empty((len(positions), *rows.shape[1:]), rows.dtype)
    rows.gather(positions, out)
    return out


def refusing(original: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`original`, which the system refuses at one of its calls."""
    calls = itertools.count()

    def sometimes(*arguments: Any) -> Any:
        if next(calls) == at:
            raise OSError("out of address space")
        return original(*arguments)

    return sometimes


def mapped_files(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(folder)) if sys.platform == "linux" else 0


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_join_is_the_concatenation_of_its_parts(data: st.DataObject) -> None:
    row_shape = data.draw(st.sampled_from(ROW_SHAPES), "row_shape")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    row_bytes = math.prod(row_shape) * np.dtype(dtype).itemsize
    page_rows = math.lcm(row_bytes, PAGE) // row_bytes  # chunks of so many rows fill whole pages
    lengths = st.integers(1, 40)
    if row_bytes <= 16:  # parts that end just before, at and after the least distance of two starts
        lengths |= st.integers(START_ROWS - 2, START_ROWS + 2)
    num_rows = data.draw(st.lists(lengths, min_size=1, max_size=6), "num_rows")
    chunk_rows = [
        data.draw(st.sampled_from([num, num + 3, page_rows, 3 * page_rows, -(-num // 4)]), "chunk_rows")
        for num in num_rows
    ]
    values = [some_values(num, row_shape, dtype, seed) for seed, num in enumerate(num_rows)]
    positions, expected = positions_of(values), np.concatenate(values)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(positions) - 1), max_size=90), "rows"), dtype=np.int64)
    first, second = sorted(data.draw(st.integers(0, len(positions)), "border") for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        ways = all_ways(make_parts(Path(folder), values, chunk_rows))
        for way in ways:
            assert (way.shape, way.dtype) == ((positions[-1] + 1, *row_shape), np.dtype(dtype))
            np.testing.assert_array_equal(gathered(way, positions[chosen]), expected[chosen])
            np.testing.assert_array_equal(gathered(way, positions), expected)
            if second > first and row_bytes <= 16:  # across borders and holes
                start, stop = positions[first], positions[second - 1] + 1
                read = way.read(start, stop)
                np.testing.assert_array_equal(read[positions[first:second] - start], expected[first:second])
        del way, ways


@given(num_rows=st.lists(st.integers(1, 3 * START_ROWS), min_size=1, max_size=9), row_bytes=st.integers(1, 10**6))
def test_starts_come_from_the_numbers_of_rows_and_are_whole_pages_for_any_row(
    num_rows: list[int], row_bytes: int
) -> None:
    starts = part_starts(num_rows)
    assert starts[0] == 0
    assert all(start * row_bytes % max(PAGE, 16384) == 0 for start in starts)
    for (start, following), num in zip(itertools.pairwise(starts), num_rows, strict=False):
        assert start + num <= following < start + num + START_ROWS


@needs_contiguous
def test_parts_with_whole_pages_or_single_chunks_share_one_array(tmp_path: Path) -> None:
    parts, values = whole_page_parts(tmp_path)
    rows = join_rows(parts)
    assert isinstance(rows, ContiguousRows)
    np.testing.assert_array_equal(rows.contiguous[positions_of(values)], np.concatenate(values))


def test_one_part_that_fills_no_whole_pages_makes_the_join_go_part_by_part(tmp_path: Path) -> None:
    values = [some_values(num, (7,), "float16", num) for num in (10, 6)]
    rows = join_rows(make_parts(tmp_path, values, [10, 4]))
    assert isinstance(rows, JoinedRows)
    np.testing.assert_array_equal(gathered(rows, positions_of(values)), np.concatenate(values))


def test_stores_that_only_zarr_can_read_are_joined_too(tmp_path: Path) -> None:
    values = [some_values(num, (3,), "float16", num) for num in (10, 6)]
    for part, one in enumerate(values):
        zarr.create_array(tmp_path / str(part), shape=one.shape, dtype=one.dtype, chunks=(4, 3))[...] = one
    rows = JoinedRows([ZarrRows(tmp_path / "0"), ZarrRows(tmp_path / "1")])
    chosen = np.array([15, 3, 3, 10, 0, 9])
    np.testing.assert_array_equal(gathered(rows, positions_of(values)[chosen]), np.concatenate(values)[chosen])
    np.testing.assert_array_equal(gathered(rows, chosen[1:3]), values[0][[3, 3]])  # and none of the second store
    np.testing.assert_array_equal(rows.read(START_ROWS - 1, START_ROWS + 6)[1:], values[1])


def test_a_join_of_one_store_is_the_map_of_that_store(tmp_path: Path) -> None:
    values = some_values(10, (7,), "float16")
    assert isinstance(join_rows([make_part(tmp_path / "a", values, 4)]), ChunkRows)
    array = TokenArray("a", join_rows([make_part(tmp_path / "b", values, 10)]), "float16")
    np.testing.assert_array_equal(array.read(0, 10), values)
    assert array.shape == values.shape


@pytest.mark.parametrize("refused", range(12))
def test_wherever_the_system_refuses_a_map_the_rows_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    parts, values = whole_page_parts(tmp_path)
    monkeypatch.setattr("layerbank.cache.mapping.memory_maps._mmap", refusing(memory_maps._mmap, refused))
    rows = join_rows(parts)
    if memory_maps.can_reserve():  # five files and their range
        assert isinstance(rows, JoinedRows if refused < 6 else ContiguousRows)
    np.testing.assert_array_equal(gathered(rows, positions_of(values)), np.concatenate(values))


@needs_contiguous
def test_maps_stop_before_the_process_has_none_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, values = whole_page_parts(tmp_path)
    gc.collect()
    held = memory_maps._held.num_maps
    for spare in (0, 3, 7, 8, 11, 16, 23, 24, 32):  # an array needs 8: 5 files and 3 holes
        monkeypatch.setattr("layerbank.cache.mapping.memory_maps._max_maps", lambda spare=spare: held + spare)
        arrays = [join_rows(parts) for _ in range(4)]
        for rows in arrays * 2:
            np.testing.assert_array_equal(gathered(rows, positions_of(values)), np.concatenate(values))
        assert memory_maps._held.num_maps <= held + spare + 4 * len(parts)  # every part may always map one file
        assert [type(rows) for rows in arrays].count(ContiguousRows) == min(spare // 8, 4)
        del rows, arrays
        gc.collect()
        assert memory_maps._held.num_maps == held


def test_without_an_mmap_of_ours_parts_are_mapped_by_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, values = whole_page_parts(tmp_path)
    monkeypatch.setattr("layerbank.cache.mapping.memory_maps._MAP_ANONYMOUS", 0)
    rows = join_rows(parts)
    assert isinstance(rows, JoinedRows)
    np.testing.assert_array_equal(gathered(rows, positions_of(values)), np.concatenate(values))
    rows.advise(0, rows.shape[0], WILL_NEED)


def test_reading_a_hole_is_harmless(tmp_path: Path) -> None:
    parts, values = whole_page_parts(tmp_path)
    positions = np.array([3, START_ROWS - 1, START_ROWS, START_ROWS + 5, 100, 2 * START_ROWS, 100])
    for way in all_ways(parts):
        read = gathered(way, positions)
        np.testing.assert_array_equal(read[[0, 2, 5]], [values[0][3], values[1][0], values[2][0]])
        assert not read[[1, 3, 4, 6]].any()
        assert not way.read(START_ROWS - 3, START_ROWS).any()
        np.testing.assert_array_equal(way.read(START_ROWS - 3, START_ROWS + 1)[3:], values[1])


def test_a_chunk_that_a_store_does_not_have_is_a_hole(tmp_path: Path) -> None:
    parts, values = whole_page_parts(tmp_path)
    files = parts[0].files
    parts[0] = ChunkFiles((files[0], None, files[2]), parts[0].shape, parts[0].chunk_rows, parts[0].dtype)
    there = np.delete(np.arange(20), np.arange(4, 8))
    for way in [*all_ways(parts), JoinedRows([ChunkRows(part) for part in parts])]:
        for advice in (WILL_NEED, DONT_NEED):
            way.advise(0, way.shape[0], advice)
        read = gathered(way, positions_of(values))
        np.testing.assert_array_equal(read[there], np.concatenate(values)[there])
        assert not read[4:8].any()
        np.testing.assert_array_equal(way.read(2, 10)[[0, 1, 6, 7]], values[0][[2, 3, 8, 9]])


@pytest.mark.parametrize("advice", [WILL_NEED, DONT_NEED])
def test_advice_across_parts_changes_nothing(tmp_path: Path, advice: int) -> None:
    parts, values = whole_page_parts(tmp_path)
    positions, expected = positions_of(values), np.concatenate(values)
    for way in all_ways(parts):
        np.testing.assert_array_equal(gathered(way, positions), expected)
        borders = [0, 5, 12, 13, START_ROWS, START_ROWS + 1, 2 * START_ROWS + 3, way.shape[0]]
        for start, stop in itertools.combinations_with_replacement(borders, 2):
            way.advise(start, stop, advice)
        np.testing.assert_array_equal(gathered(way, positions), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_advice_frees_and_reads_the_memory_of_every_part(tmp_path: Path) -> None:
    parts, values = whole_page_parts(tmp_path, (PAGE,))
    rows = ContiguousRows(parts)

    def resident_kb() -> int:
        entries = Path("/proc/self/smaps").read_text().split("VmFlags")
        return sum(int(one.split("Rss:")[1].split()[0]) for one in entries if str(tmp_path) in one)

    gathered(rows, positions_of(values))
    assert resident_kb() == 20 * PAGE // 1024
    rows.advise(0, rows.shape[0], DONT_NEED)
    assert resident_kb() == 0


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("ours", [True, False], ids=["mapped by us", "mapped by Python"])
def test_a_file_that_is_cut_off_while_a_join_is_opened_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, ours: bool
) -> None:
    if not ours:
        monkeypatch.setattr("layerbank.cache.mapping.memory_maps._MAP_ANONYMOUS", 0)
    parts, values = whole_page_parts(tmp_path)
    file = parts[part].files[-1]
    assert file is not None
    with open(file, "r+b") as opened:
        opened.truncate(parts[part].chunk_bytes - 1)
    with raises("cache.file_cut_short", DamagedStoreError, file=file, got=parts[part].chunk_bytes - 1):
        gathered(join_rows(parts), positions_of(values))
    gc.collect()
    assert not mapped_files(tmp_path)


@needs_contiguous
def test_the_last_array_gives_all_maps_back(tmp_path: Path) -> None:
    parts, values = whole_page_parts(tmp_path)
    contiguous = join_rows(parts).contiguous
    assert contiguous is not None
    view = contiguous[START_ROWS : START_ROWS + 1]
    del contiguous
    gc.collect()
    np.testing.assert_array_equal(view, values[1])
    assert mapped_files(tmp_path) == (5 if sys.platform == "linux" else 0)
    del view
    gc.collect()
    assert not mapped_files(tmp_path)


def test_positions_outside_all_stores_are_refused_not_clipped(tmp_path: Path) -> None:
    parts, values = whole_page_parts(tmp_path)
    for way in all_ways(parts):
        array = TokenArray("tokens/final/cls", way, "uint8")
        last = 2 * START_ROWS + 6
        np.testing.assert_array_equal(array.take(np.array([last, 0, last])), [values[2][6], values[0][0], values[2][6]])
        assert array.take(np.array([], dtype=np.int64)).shape == (0, PAGE // 2)
        with raises("cache.rows_out_of_range", SpecError, num_rows=last + 1, start=0, stop=last + 2):
            array.take(np.array([last + 1, 0]))
        with raises("cache.rows_out_of_range", SpecError, num_rows=last + 1, start=-1, stop=3):
            array.read(-1, 3)
