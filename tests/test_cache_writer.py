"""What a writer accepts, what it leaves on the disk, and what it refuses."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from messages import raises
from token_stores import (
    BATCH_SIZE,
    NUM_ROWS,
    append,
    files_of,
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
    Batch,
    BatchError,
    BatchNotes,
    CacheWriter,
    ChangedDataError,
    IncompleteStoreError,
    NotAStoreError,
    NotWritableError,
    SpecError,
    SpecMismatchError,
    StoreLockedError,
    TokenStore,
    Worker,
    delete_store,
    verify_store,
)

ROWS = np.arange(NUM_ROWS)


def test_zarr_itself_reads_what_was_written(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    for array in make_arrays():
        np.testing.assert_array_equal(group[array.name][...], tokens_of(array, hashes_of(ROWS)))  # type: ignore[index]
        assert group[array.name].metadata.dimension_names[0] == "row"  # type: ignore[union-attr]
    np.testing.assert_array_equal(group["content_hashes"][...], hashes_of(ROWS))  # type: ignore[index]
    offsets = group["sample_ids/offsets"][...]  # type: ignore[index]
    text = group["sample_ids/bytes"][...].tobytes()  # type: ignore[index, union-attr]
    assert text[offsets[41] : offsets[42]] == b"image 41"


def test_zarr_lists_the_store_without_a_warning(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", num_batches=3)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    names = {name for name, _ in group.members(max_depth=None)}
    assert names == {
        *("content_hashes", "sample_ids", "sample_ids/bytes", "sample_ids/offsets", "tokens", "tokens/norm2"),
        *("tokens/norm2/block.0", "tokens/norm2/block.0/cls", "tokens/norm2/block.0/grid2"),
        *("tokens/final", "tokens/final/cls", "tokens/final/grid2"),
    }


def test_zarr_verifies_chunks_that_we_wrote(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr/tokens/final/cls/c.1.0"
    raw = bytearray(chunk.read_bytes())
    raw[5] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path / "a.zarr/tokens/final/cls", mode="r")[...]


def test_chunks_of_zeros_are_written(tmp_path: Path) -> None:
    arrays = make_arrays(levels=["final"], kinds=["cls"])
    with open_writer(tmp_path / "a.zarr", make_spec(), arrays) as writer:
        for batch in writer.pending():
            zeros = {arrays[0].name: np.zeros((len(batch), 8), np.float16)}
            writer.append(batch, zeros, content_hashes=hashes_of(ROWS[batch.start : batch.stop]))
        writer.complete()
    assert len(list((tmp_path / "a.zarr/tokens/final/cls").glob("c.*"))) == writer._grid.num_blocks
    assert not TokenStore.open(tmp_path / "a.zarr").tokens("final", "cls").read(0, NUM_ROWS).any()


def test_batches_are_cut_at_fixed_rows_and_never_cross_a_block(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()) as writer:
        pending = writer.pending()
        block_rows = writer._grid.block_rows
    assert [row for batch in pending for row in range(batch.start, batch.stop)] == list(range(NUM_ROWS))
    for batch in pending:
        assert (batch.start - batch.block * block_rows) % BATCH_SIZE == 0
        assert batch.start // block_rows == (batch.stop - 1) // block_rows == batch.block
        assert batch.arrays == tuple(make_arrays())


def test_leaving_without_complete_keeps_every_committed_block(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a.zarr", num_batches=8)
    rest = write_store(tmp_path / "a.zarr")
    assert 0 < len(rest) < len(first)
    assert rest == first[-len(rest) :]
    assert not list((tmp_path / "a.zarr").rglob("aside*"))


def test_an_exception_in_the_caller_keeps_every_committed_block(tmp_path: Path) -> None:
    def stop_the_run() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()) as writer:
        for batch in writer.pending():
            append(writer, batch)
            if batch.block == 2:
                stop_the_run()
    assert {batch.block for batch in write_store(tmp_path / "a.zarr")} == {2, 3, 4}


def test_a_store_written_in_any_order_of_blocks_has_the_same_bytes(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    with open_writer(tmp_path / "b.zarr", make_spec(), make_arrays()) as writer:
        for batch in sorted(writer.pending(), key=lambda batch: (-batch.block, batch.start)):
            append(writer, batch)
        writer.complete()
    assert tree(tmp_path / "b.zarr") == tree(tmp_path / "a.zarr")


def test_nothing_in_a_store_tells_when_where_or_by_whom_it_was_written(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    (tmp_path / "elsewhere").mkdir()
    code = "import sys; from pathlib import Path; from token_stores import write_store; write_store(Path(sys.argv[1]))"
    run_python(code, str(tmp_path / "elsewhere/b.zarr"))
    assert tree(tmp_path / "elsewhere/b.zarr") == tree(tmp_path / "a.zarr")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    program = f"import sys; sys.path.insert(0, {str(root / 'tests')!r}); {code}"
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


PARITY = {array.name: make_parity(nonfinite=index) for index, array in enumerate(make_arrays())}


@pytest.mark.parametrize("split", [1, 2, 3])
def test_levels_and_kinds_added_later_give_the_store_written_at_once(tmp_path: Path, split: int) -> None:
    arrays = make_arrays()
    write_store(tmp_path / "once.zarr", arrays=arrays, parity=PARITY)
    first = {array.name: PARITY[array.name] for array in arrays[split:]}
    write_store(tmp_path / "later.zarr", arrays=arrays[split:], parity=first)
    pending = write_store(tmp_path / "later.zarr", arrays=arrays, parity=PARITY)
    assert {batch.arrays for batch in pending} == {tuple(arrays[:split])}
    assert tree(tmp_path / "later.zarr") == tree(tmp_path / "once.zarr")


def test_what_was_measured_of_an_array_is_kept_and_never_replaced(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    assert TokenStore.open(tmp_path / "a.zarr").parity == {}  # not measured
    write_store(tmp_path / "a.zarr", parity=PARITY)  # measured later, when nothing is pending
    assert TokenStore.open(tmp_path / "a.zarr").parity == PARITY
    write_store(tmp_path / "a.zarr", parity={name: make_parity(cosine_min=0.0) for name in PARITY})
    assert TokenStore.open(tmp_path / "a.zarr").parity == PARITY
    assert verify_store(tmp_path / "a.zarr") == []


def test_each_kind_is_stored_in_its_own_dtype(tmp_path: Path) -> None:
    spec = make_spec(storage_dtype="float16,cls=float32,grid2=bfloat16")
    arrays = [*make_arrays(), *make_arrays(kinds=["ap"])]
    write_store(tmp_path / "a.zarr", spec, arrays, num_batches=9)
    write_store(tmp_path / "a.zarr", spec, arrays)  # resumed
    cache = TokenStore.open(tmp_path / "a.zarr", spec)
    for array in arrays:
        logical, on_disk = {"cls": ("float32", "<f4"), "ap": ("float16", "<f2"), "grid2": ("bfloat16", "<u2")}[
            array.kind
        ]
        tokens = cache.tokens(array.level, array.kind)
        assert (tokens.logical_dtype, tokens.dtype) == (logical, np.dtype(on_disk))
        np.testing.assert_array_equal(
            tokens.read(0, NUM_ROWS), tokens_of(array, hashes_of(ROWS), storage_dtype=spec.model.storage_dtype)
        )
    assert verify_store(tmp_path / "a.zarr") == []


def test_adding_arrays_touches_no_byte_of_those_that_are_there(tmp_path: Path) -> None:
    arrays = make_arrays()
    write_store(tmp_path / "a.zarr", arrays=arrays[:2])
    before = {file: file.stat().st_mtime_ns for file in files_of(tmp_path / "a.zarr") if file.name.startswith("c.")}
    write_store(tmp_path / "a.zarr", arrays=arrays)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_arrays_complete_before_stay_readable_while_others_are_added(tmp_path: Path) -> None:
    arrays = make_arrays()
    write_store(tmp_path / "a.zarr", arrays=arrays[:2])
    write_store(tmp_path / "a.zarr", arrays=arrays, num_batches=9)
    cache = TokenStore.open(tmp_path / "a.zarr")
    assert list(cache.arrays.values()) == arrays[:2]
    assert set(cache.notes.saturated) == {array.name for array in arrays[:2]}
    # asking again for what is complete changes nothing about what is not
    assert write_store(tmp_path / "a.zarr", arrays=arrays[:2]) == []
    assert list(TokenStore.open(tmp_path / "a.zarr").arrays.values()) == arrays[:2]
    write_store(tmp_path / "a.zarr", arrays=arrays[2:])
    assert list(TokenStore.open(tmp_path / "a.zarr").arrays.values()) == arrays


def test_a_complete_store_has_nothing_pending_and_is_not_written_to(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    before = {file: file.stat().st_mtime_ns for file in files_of(tmp_path / "a.zarr")}
    assert write_store(tmp_path / "a.zarr") == []
    assert {file: file.stat().st_mtime_ns for file in files_of(tmp_path / "a.zarr")} == before


def test_the_batch_size_of_a_store_is_kept(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", num_batches=8)
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays(), batch_size=7) as writer:
        assert writer.batch_size == BATCH_SIZE


def test_attributes_are_those_of_the_first_call(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", num_batches=8, attributes={"levels": ("a", "b")})
    write_store(tmp_path / "a.zarr", attributes={"levels": ["c"]})
    assert TokenStore.open(tmp_path / "a.zarr").attributes == {"levels": ["a", "b"]}


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", attributes={"run": 1})
    assert len(write_store(tmp_path / "a.zarr", attributes={"run": 2}, overwrite=True)) > 0
    assert TokenStore.open(tmp_path / "a.zarr").attributes == {"run": 2}
    assert {file.name for file in tmp_path.iterdir()} == {"a.zarr", "a.zarr.lock"}


def test_overwrite_takes_a_store_with_a_damaged_header(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/zarr.json").write_bytes(b"")
    write_store(tmp_path / "a.zarr", overwrite=True)
    TokenStore.open(tmp_path / "a.zarr")


def test_a_store_that_is_being_written_is_not_deleted(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store)
    before = tree(store)
    with open_writer(store, make_spec(), make_arrays()), raises("cache.store_locked", StoreLockedError, store=store):
        delete_store(store)
    worker = Worker(0, 2)
    with open_writer(store, make_spec(), make_arrays(), worker=worker), raises("cache.store_locked", StoreLockedError):
        delete_store(store)
    assert tree(store) == before
    delete_store(store)
    assert list(tmp_path.iterdir()) == []
    delete_store(store)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_a_deletion_is_one_of_our_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "a.zarr"
    write_store(store)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with raises("cache.not_writable", NotWritableError, path=store):
        delete_store(store)
    monkeypatch.undo()
    TokenStore.open(store)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_a_store_is_neither_resumed_nor_deleted(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/thesis.txt").write_text("years of work")
    key = "cache.foreign_folder" if overwrite else "cache.no_header"
    with raises(key, NotAStoreError, store=tmp_path / "a.zarr") as refused:
        write_store(tmp_path / "a.zarr", overwrite=overwrite)
    assert "--cache DIR" in refused.error.todo
    assert (tmp_path / "a.zarr/thesis.txt").read_text() == "years of work"


def test_bfloat16_is_stored_as_its_bits(tmp_path: Path) -> None:
    spec, arrays = make_spec(storage_dtype="bfloat16"), make_arrays(kinds=["cls"])
    write_store(tmp_path / "a.zarr", spec, arrays)
    stored = zarr.open_array(tmp_path / "a.zarr" / arrays[0].name, mode="r")
    assert (stored.dtype, stored.attrs["logical_dtype"]) == (np.uint16, "bfloat16")
    tokens = TokenStore.open(tmp_path / "a.zarr").tokens("final", "cls")
    assert (tokens.dtype, tokens.logical_dtype) == (np.uint16, "bfloat16")
    np.testing.assert_array_equal(
        tokens.read(0, NUM_ROWS), tokens_of(arrays[1], hashes_of(ROWS), storage_dtype="bfloat16")
    )


def test_a_store_with_another_identity_is_refused_field_by_field(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    differences = "weights = '0123456789abcdef' instead of 'ffffffff'; compute_dtype = 'float32' instead of 'float16'"
    with raises("cache.other_identity", SpecMismatchError, differences=differences) as refused:
        write_store(tmp_path / "a.zarr", make_spec(compute_dtype="float16", weights="ffffffff", name="another name"))
    assert isinstance(refused.error, SpecMismatchError)
    assert [(d.field, d.expected, d.got) for d in refused.error.differences] == [
        ("weights", "ffffffff", "0123456789abcdef"),
        ("compute_dtype", "float16", "float32"),
    ]
    assert "--cache DIR" in refused.error.todo


def test_other_rows_are_another_store(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    rows = make_rows(ROWS[::-1])
    differences = f"rows = {make_rows().digest!r} instead of {rows.digest!r}"
    with raises("cache.other_identity", SpecMismatchError, store=tmp_path / "a.zarr", differences=differences):
        write_store(tmp_path / "a.zarr", rows=rows)


def test_the_same_rows_under_other_ids_and_names_are_the_same_store(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", num_batches=8)
    others = {"sample_ids": [f"photo {row}" for row in ROWS], "name": "photos", "sizes": ROWS}
    write_store(tmp_path / "a.zarr", make_spec(name="photos"), **others)
    store = TokenStore.open(tmp_path / "a.zarr")
    assert (store.spec.name, store.sample_ids[7]) == ("shapes-train", "image 7")  # the first names stay
    write_store(tmp_path / "b.zarr")
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


def test_another_row_shape_of_a_known_array_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    wider = [ArraySpec(level="final", kind="cls", row_shape=(16,))]
    with raises("cache.changed_row_shape", SpecError, array="tokens/final/cls", expected=(8,), got=(16,)):
        write_store(tmp_path / "a.zarr", arrays=wider)


def test_images_that_changed_are_refused_with_row_and_id(tmp_path: Path) -> None:
    arrays = make_arrays()
    write_store(tmp_path / "a.zarr", arrays=arrays[:1])
    before = tree(tmp_path / "a.zarr")
    with open_writer(tmp_path / "a.zarr", make_spec(), arrays) as writer:
        for batch in writer.pending():
            hashes = hashes_of(np.arange(batch.start, batch.stop))
            if batch.start <= 700 < batch.stop:
                hashes[700 - batch.start] += np.uint64(1)
                with raises("cache.changed_image", ChangedDataError, row=700, sample_id="image 700") as refused:
                    append(writer, batch, content_hashes=hashes)
                break
            append(writer, batch)
    stored = int(hashes_of(np.array([700]))[0])
    assert (refused.error.values["expected"], refused.error.values["got"]) == (f"{stored:016x}", f"{stored + 1:016x}")
    after = tree(tmp_path / "a.zarr")
    assert {name: after[name] for name in before if "c." in name} == {n: before[n] for n in before if "c." in n}
    TokenStore.open(tmp_path / "a.zarr")


def test_notes_are_kept_with_their_rows_and_counted(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    cache = TokenStore.open(tmp_path / "a.zarr")
    assert cache.skipped == {row: f"image {row} is cut off" for row in range(99, NUM_ROWS, 100)}
    assert cache.notes.saturated == {array.name: 1 for array in make_arrays()}
    assert cache.notes.nonfinite == {}
    totals = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["optional"]["notes"]  # type: ignore[index, call-overload]
    assert totals["num_skipped"] == 12  # type: ignore[index, call-overload]


def fewer_arrays(batch: Batch) -> dict[str, Any]:
    return {"tokens": {}}


def unknown_array(batch: Batch) -> dict[str, Any]:
    tokens = {array.name: tokens_of(array, hashes_of(range(batch.start, batch.stop))) for array in batch.arrays}
    return {"tokens": tokens | {"tokens/final/ap": np.zeros((len(batch), 8), np.float16)}}


def wider(batch: Batch) -> dict[str, Any]:
    return {"tokens": {array.name: np.zeros((len(batch), 9), np.float16) for array in batch.arrays}}


def doubles(batch: Batch) -> dict[str, Any]:
    return {"tokens": {array.name: np.zeros((len(batch), *array.row_shape)) for array in batch.arrays}}


def signed_hashes(batch: Batch) -> dict[str, Any]:
    return {"content_hashes": np.arange(len(batch))}


def rows_elsewhere(batch: Batch) -> dict[str, Any]:
    return {"notes": BatchNotes(skipped={1100: "cut off"})}


def arrays_elsewhere(batch: Batch) -> dict[str, Any]:
    return {"notes": BatchNotes(nonfinite={"tokens/norm2/block.7/cls": 3})}


FLOAT16 = "float16 (60, 8)"
INVALID = "cache.invalid_batch"


@pytest.mark.parametrize(
    ("change", "key", "expected", "got"),
    [
        (fewer_arrays, INVALID, f"tokens/norm2/block.0/cls: {FLOAT16}", "tokens/norm2/block.0/cls: nothing"),
        (unknown_array, INVALID, "tokens/final/ap: no such array", "tokens/final/ap: float16 (60, 8)"),
        (wider, INVALID, f"tokens/norm2/block.0/cls: {FLOAT16}", "tokens/norm2/block.0/cls: float16 (60, 9)"),
        (doubles, INVALID, f"tokens/norm2/block.0/cls: {FLOAT16}", "tokens/norm2/block.0/cls: float64 (60, 8)"),
        (signed_hashes, INVALID, "content_hashes: uint64 (60,)", "content_hashes: int64 (60,)"),
        (rows_elsewhere, INVALID, "notes.skipped: rows of the batch", "notes.skipped: [1100]"),
        (arrays_elsewhere, INVALID, "notes: arrays of the batch", "notes: ['tokens/norm2/block.7/cls']"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_the_right_one_written(
    tmp_path: Path, change: Callable[[Batch], dict[str, Any]], key: str, expected: str, got: str
) -> None:
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()) as writer:
        batch = writer.pending()[0]
        hashes = hashes_of(range(batch.start, batch.stop))
        arguments: dict[str, Any] = {
            "batch": batch,
            "tokens": {array.name: tokens_of(array, hashes) for array in batch.arrays},
            "content_hashes": hashes,
        } | change(batch)
        with raises(key, BatchError, start=0, stop=60) as refused:
            writer.append(arguments.pop("batch"), arguments.pop("tokens"), **arguments)
        assert refused.error.values["expected"].startswith(expected)
        assert refused.error.values["got"].startswith(got)
        append(writer, batch)


def test_a_batch_with_other_rows_is_refused_and_the_right_one_written(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()) as writer:
        batch = writer.pending()[0]
        expected = {"expected_start": 0, "expected_stop": 60, "expected_block": 0}
        with raises("cache.batch_out_of_order", BatchError, start=1, stop=60, block=0, **expected):
            append(writer, Batch(batch.block, batch.start + 1, batch.stop, batch.arrays))
        append(writer, batch)


def test_a_batch_out_of_order_or_of_a_committed_block_is_refused(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()) as writer:
        pending = writer.pending()
        append(writer, pending[0])
        with raises("cache.batch_out_of_order", BatchError, expected_start=60, expected_stop=120, expected_block=0):
            append(writer, pending[2])
        for batch in pending[1:]:
            if batch.block == 0:
                append(writer, batch)
        with raises("cache.batch_not_pending", BatchError, block=0):
            append(writer, pending[0])


def test_complete_is_refused_while_batches_are_pending(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()) as writer:
        for batch in writer.pending()[:8]:
            append(writer, batch)
        with raises("cache.batches_pending", IncompleteStoreError, num_blocks=5, num_done=2):
            writer.complete()


@pytest.mark.parametrize(
    ("changes", "expected", "got"),
    [
        ({"rows": make_rows(0)}, "rows: at least one, each with a hash", "rows: 0, 0 without"),
        ({"rows": make_rows([5, -1, -1])}, "rows: at least one, each with a hash", "rows: 3, 2 without"),
        ({"sizes": np.arange(5)}, "sizes: 1200 numbers", "sizes: 5"),
        ({"sample_ids": ["a"]}, "sample_ids: 1200 texts", "sample_ids: 1, 0 of them empty"),
        ({"sample_ids": [""] * NUM_ROWS}, "sample_ids: 1200 texts", "sample_ids: 1200, 1200 of them empty"),
        ({"batch_size": 0}, "batch_size: at least 1", "batch_size: 0"),
        ({"attributes": {"when": object()}}, "attributes: values that JSON can hold", "not JSON serializable"),
        (
            {"parity": {"tokens/final/cls": {"cosine_min": float("nan")}}},
            "parity: values that JSON can hold",
            "not JSON compliant",
        ),
        ({"parity": {"tokens/final/ap": {}}}, "parity: parity of requested arrays", "parity: ['tokens/final/ap']"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], expected: str, got: str
) -> None:
    with raises("cache.invalid_arguments", SpecError) as refused:
        open_writer(tmp_path / "a.zarr", make_spec(), make_arrays(), **changes)
    assert expected in refused.error.values["expected"]
    assert got in refused.error.values["got"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arrays", [[], make_arrays() * 2])
def test_no_array_or_a_repeated_one_is_refused(tmp_path: Path, arrays: list[ArraySpec]) -> None:
    with raises("cache.invalid_arguments", SpecError, expected="arrays: at least one, each once"):
        open_writer(tmp_path / "a.zarr", make_spec(), arrays)


def test_a_second_writer_is_refused_with_owner_and_age(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from token_stores import *; "
        "writer = open_writer(Path(sys.argv[1]), make_spec(), make_arrays()); print('open', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parent.parent
    program = f"import sys; sys.path.insert(0, {str(root / 'tests')!r}); {code}"
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a.zarr")], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"open\n"
        with raises("cache.store_locked", StoreLockedError, store=tmp_path / "a.zarr") as refused:
            write_store(tmp_path / "a.zarr")
        assert refused.error.values["owner"].startswith(f"process {owner.pid} on ")
        assert "which began 0 min ago: -c " in refused.error.values["owner"]
    finally:
        owner.kill()
        owner.communicate()
    write_store(tmp_path / "a.zarr")  # a killed owner frees it


def test_a_second_writer_of_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()), raises("cache.store_locked"):
        write_store(tmp_path / "a.zarr")
    write_store(tmp_path / "a.zarr")


def test_a_writer_may_be_closed_by_another_thread(tmp_path: Path) -> None:
    import threading

    writer: CacheWriter = open_writer(tmp_path / "a.zarr", make_spec(), make_arrays())
    thread = threading.Thread(target=writer.close)
    thread.start()
    thread.join()
    write_store(tmp_path / "a.zarr")
