"""What a store will take is known before it is made: the forecast is what lies on the disk afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from messages import raises
from token_stores import (
    BATCH_SIZE,
    append,
    hashes_of,
    make_arrays,
    make_parity,
    make_rows,
    make_spec,
    open_writer,
    tokens_of,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import (
    ArraySpec,
    BatchNotes,
    SpecError,
    SpecMismatchError,
    StoreForecast,
    Worker,
    check_request,
    forecast_store,
    needed_bytes,
    storage_dtypes_text,
)

ROW_SHAPES = {"cls": (192,), "ap": (192,), "grid2": (4, 192), "patch": (49, 192)}


def arrays_of(*kinds: str, levels: tuple[str, ...] = ("block.0", "block.11", "final")) -> list[ArraySpec]:
    return [ArraySpec(level=level, kind=kind, row_shape=ROW_SHAPES[kind]) for level in levels for kind in kinds]


def forecast(store: Path, spec: Any, arrays: list[ArraySpec], **changes: Any) -> StoreForecast:
    arguments = {
        "name": spec.name,
        "sample_ids": [f"image {row}" for row in range(spec.num_rows)],
        "batch_size": BATCH_SIZE,
        "attributes": {"request": "all levels"},
    }
    how = {name: changes.pop(name) for name in ("replaced", "worker") if name in changes}
    request = check_request(spec.model, make_rows(spec.num_rows), arrays, **(arguments | changes))
    return forecast_store(store, request, **how)


def fill(store: Path, spec: Any, arrays: list[ArraySpec], num_blocks: int | None = None, **changes: Any) -> None:
    """Write what is missing, without a note: nothing is skipped or saturated."""
    with open_writer(store, spec, arrays, **changes) as writer:
        for batch in writer.claim():
            if num_blocks is not None and batch.block >= num_blocks:
                return
            hashes = hashes_of(range(batch.start, batch.stop))
            tokens = {
                array.name: tokens_of(array, hashes, storage_dtype=spec.model.storage_dtype) for array in batch.arrays
            }
            writer.append(batch, tokens, content_hashes=hashes, notes=BatchNotes())
        writer.complete()


def on_disk(store: Path) -> tuple[int, int]:
    files = tree(store)
    return sum(map(len, files.values())), len(files)


@pytest.mark.parametrize(
    ("num_rows", "kinds", "storage_dtype"),
    [
        (1, ("cls",), "float16"),
        (37, ("cls", "ap", "grid2"), "bfloat16,cls=float32"),
        (512, ("patch",), "float32"),
        (513, ("cls", "ap"), "float32"),
        (1797, ("cls", "ap", "grid2"), "float16"),
        (1000, ("cls", "patch"), "float16"),  # chunks smaller than a block
        (9000, ("cls",), "float16,cls=float32"),
    ],
)
def test_the_forecast_is_the_size_of_the_finished_store(
    tmp_path: Path, num_rows: int, kinds: tuple[str, ...], storage_dtype: str
) -> None:
    storage_dtype = storage_dtypes_text(storage_dtype)
    spec, arrays, store = make_spec(num_rows, storage_dtype=storage_dtype), arrays_of(*kinds), tmp_path / "a.zarr"
    parity = {array.name: make_parity() for array in arrays}
    planned = forecast(store, spec, arrays, parity=parity)
    assert not store.exists()
    fill(store, spec, arrays, parity=parity)
    assert (planned.size_bytes, planned.num_files) == on_disk(store)
    assert (planned.written_bytes, planned.written_files, planned.num_missing_rows) == (*on_disk(store), num_rows)
    assert sum(array.size_bytes for array in planned.arrays) == sum(
        len(raw) for path, raw in tree(store).items() if path.startswith("tokens/") and "/c." in path
    )


def test_what_an_interrupted_store_holds_is_not_written_again(tmp_path: Path) -> None:
    spec, arrays, store = make_spec(1797), arrays_of("cls", "grid2"), tmp_path / "a.zarr"
    fill(store, spec, arrays, num_blocks=2)
    before = on_disk(store)
    planned = forecast(store, spec, arrays)
    assert planned.missing_rows[0].start == 2 * len(planned.missing_rows[0])
    fill(store, spec, arrays)
    after = on_disk(store)
    assert (planned.size_bytes, planned.num_files) == after
    assert (planned.written_bytes, planned.written_files) == (after[0] - before[0], after[1] - before[1])
    assert all(0 < array.missing_bytes < array.size_bytes for array in planned.arrays)


def test_kinds_and_levels_that_are_added_are_all_that_is_written(tmp_path: Path) -> None:
    spec, store = make_spec(1797), tmp_path / "a.zarr"
    fill(store, spec, arrays_of("cls"))
    more = arrays_of("cls", "ap", levels=("block.0", "block.5"))
    planned = forecast(store, spec, more)
    assert {array.spec.name for array in planned.arrays if array.missing_bytes} == {
        "tokens/norm2/block.0/ap",
        "tokens/norm2/block.5/cls",
        "tokens/norm2/block.5/ap",
    }
    before = on_disk(store)
    fill(store, spec, more)
    assert (planned.size_bytes, planned.num_files) == on_disk(store)
    assert planned.written_bytes == on_disk(store)[0] - before[0]


@pytest.mark.parametrize("first", [True, False], ids=["the store alone", "the request alone"])
def test_a_store_keeps_or_lacks_sizes_whatever_a_later_request_has(tmp_path: Path, first: bool) -> None:
    spec, arrays, store = make_spec(1797), arrays_of("cls"), tmp_path / "a.zarr"
    sizes = np.arange(1797)
    fill(store, spec, arrays, num_blocks=2, sizes=sizes if first else None)
    planned = forecast(store, spec, arrays, sizes=None if first else sizes)
    fill(store, spec, arrays, sizes=None if first else sizes)
    assert (planned.size_bytes, planned.num_files) == on_disk(store)


def test_a_complete_store_lacks_nothing(tmp_path: Path) -> None:
    spec, arrays, store = make_spec(), arrays_of("cls"), tmp_path / "a.zarr"
    fill(store, spec, arrays)
    planned = forecast(store, spec, arrays)
    assert (planned.written_bytes, planned.written_files, planned.missing_rows) == (0, 0, ())
    assert (planned.size_bytes, planned.num_files) == on_disk(store)


def test_a_store_that_is_made_anew_is_written_whole_and_the_old_one_is_freed_first(tmp_path: Path) -> None:
    spec, arrays, store = make_spec(), arrays_of("cls"), tmp_path / "a.zarr"
    fill(store, spec, arrays)
    fill(tmp_path / "b.zarr", spec, arrays)
    planned = forecast(store, spec, arrays, replaced=[store, tmp_path / "b.zarr"])
    assert planned.written_bytes == planned.size_bytes == on_disk(store)[0]
    assert (planned.freed_bytes, planned.present_bytes) == (2 * on_disk(store)[0], 0)
    assert needed_bytes(tmp_path, [planned]) < needed_bytes(tmp_path, [forecast(tmp_path / "c.zarr", spec, arrays)])


def test_the_forecast_of_a_shard_is_its_own_share(tmp_path: Path) -> None:
    spec, arrays, store = make_spec(1797), arrays_of("cls", "ap"), tmp_path / "a.zarr"
    worker = Worker(1, 3, helps=False)
    planned = forecast(store, spec, arrays, worker=worker)
    whole = forecast(store, spec, arrays)
    assert 0 < planned.num_missing_rows < whole.num_missing_rows == 1797
    fill(store, spec, arrays, worker=worker)
    assert planned.size_bytes == pytest.approx(on_disk(store)[0], rel=0.001)  # complete is as long as writing, nearly
    assert (
        planned.num_files == on_disk(store)[1] - 1
    )  # its journal beside that of the first, until the store is complete


def test_rows_that_are_skipped_and_values_out_of_range_cost_a_few_bytes_more_than_forecast(tmp_path: Path) -> None:
    spec, arrays, store = make_spec(), arrays_of("cls"), tmp_path / "a.zarr"
    planned = forecast(store, spec, arrays)
    write_store(store, spec, arrays)  # one row in a hundred is skipped, with a reason
    assert planned.size_bytes < on_disk(store)[0] < 1.002 * planned.size_bytes


def test_a_forecast_refuses_what_the_writer_would_refuse(tmp_path: Path) -> None:
    spec, arrays, store = make_spec(), make_arrays(), tmp_path / "a.zarr"
    with open_writer(store, spec, arrays) as writer:
        append(writer, writer.pending()[0])
    with raises(
        "cache.other_identity", SpecMismatchError, differences="weights = '0123456789abcdef' instead of 'ffffffff'"
    ):
        forecast(store, make_spec(weights="ffffffff"), arrays)
    with raises("cache.changed_row_shape", SpecError, array="tokens/final/cls", expected=(8,), got=(16,)):
        forecast(store, spec, make_arrays(levels=["final"], kinds=["cls"], width=16))
