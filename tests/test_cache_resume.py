"""Whatever kills a writer, the next one leaves the store that an uninterrupted run leaves, byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from kills import run_program
from messages import raises
from token_stores import (
    NUM_ROWS,
    append,
    folders_of,
    make_arrays,
    make_spec,
    open_writer,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import IncompleteStoreError, TokenStore, Worker, format, index, verify_store
from layerbank.cache.header import read_header
from layerbank.cache.journal import CHECKED_FILE, JOURNAL_FOLDER, WORKER_FILE, read_journal

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

KILLER = """
import json, random, time
from pathlib import Path
from kills import is_killed
from token_stores import make_arrays, make_spec, write_store

folder, mode = Path(sys.argv[1]), sys.argv[2]
arrays = make_arrays()
random.seed(0)

def write(path, **arguments):
    write_store(path, make_spec(), before_batch=lambda: time.sleep(random.random() * 0.004), **arguments)

kills, stores, seen = 0, [], {}

def look(path):
    "Where the last kill has hit."
    journal = path / "content_hashes/.journal/worker-0.jsonl"
    if not path.exists():
        where = "before the store was there"
    elif any(journal.parent.glob("aside~tokens*")):
        where = "within a block"
    elif journal.read_bytes().count(b"\\n") in (0, 5):
        where = "before the first block or after the last"
    else:
        where = "between blocks"
    seen[where] = seen.get(where, 0) + 1

if mode == "random":
    started = time.perf_counter()
    is_killed(lambda: write(folder / "warm.zarr", arrays=arrays))
    uninterrupted_s = time.perf_counter() - started
    while kills < 24:
        path = folder / f"{len(stores)}.zarr"
        if len(stores) % 3 == 1:                 # the later arrays are added to a complete store
            is_killed(lambda: write(path, arrays=arrays[:2]))
        arguments = {"overwrite": len(stores) % 3 == 2}
        while is_killed(lambda: write(path, arrays=arrays, **arguments), after_s=random.random() * uninterrupted_s):
            kills += 1
            look(path)
            arguments = {}
        stores.append(path.name)
else:
    killed, step = True, int(sys.argv[3])
    while killed:
        path = folder / f"{kills * step}.zarr"
        killed = is_killed(lambda: write(path, arrays=arrays), at_call=kills * step)
        if killed:
            kills += 1
            look(path)
            is_killed(lambda: write(path, arrays=arrays))
        stores.append(path.name)
print(json.dumps({"kills": kills, "stores": stores, "seen": seen}))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uninterrupted") / "a.zarr"
    write_store(path)
    return path


def test_processes_killed_at_random_moments_leave_the_same_bytes_in_the_end(
    tmp_path: Path, uninterrupted: Path
) -> None:
    report = run_program(KILLER, tmp_path, "random")
    assert report["kills"] >= 20
    for store in report["stores"]:
        assert tree(tmp_path / store) == tree(uninterrupted), report
        assert folders_of(tmp_path / store) == folders_of(uninterrupted)
    leftovers = {path.name for path in tmp_path.iterdir() if not path.name.endswith((".zarr", ".zarr.lock"))}
    assert leftovers == set()


def test_a_process_killed_before_any_call_that_changes_the_disk_leaves_the_same_bytes_in_the_end(
    tmp_path: Path, uninterrupted: Path
) -> None:
    report = run_program(KILLER, tmp_path, "calls", 7)
    assert report["kills"] >= 20
    for store in report["stores"]:
        assert tree(tmp_path / store) == tree(uninterrupted), (store, report)
        assert folders_of(tmp_path / store) == folders_of(uninterrupted)


def journal_of(store: Path) -> Path:
    return store / JOURNAL_FOLDER / WORKER_FILE


def test_a_torn_last_line_of_the_journal_costs_that_block_only(tmp_path: Path, uninterrupted: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, num_batches=12)
    raw = journal_of(store).read_bytes()
    assert raw.count(b"\n") == 3
    journal_of(store).write_bytes(raw[:-20])
    assert {batch.block for batch in write_store(store)} == {2, 3, 4}
    assert tree(store) == tree(uninterrupted)


def test_a_chunk_of_an_unfinished_store_that_no_longer_checks_is_computed_again(
    tmp_path: Path, uninterrupted: Path
) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, num_batches=12)
    chunk = store / "tokens/final/cls/c.1.0"
    raw = bytearray(chunk.read_bytes())
    raw[17] ^= 64
    chunk.write_bytes(raw)
    again = [(batch.block, batch.arrays) for batch in write_store(store)]
    damaged = tuple(array for array in make_arrays() if array.name == "tokens/final/cls")
    assert set(again) == {(1, damaged), (3, tuple(make_arrays())), (4, tuple(make_arrays()))}
    assert tree(store) == tree(uninterrupted)


def test_content_hashes_that_are_lost_come_back_and_cost_no_row(tmp_path: Path, uninterrupted: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, num_batches=12)
    (store / "content_hashes/c.0").unlink()
    assert {batch.block for batch in write_store(store)} == {3, 4}
    assert tree(store) == tree(uninterrupted)


@pytest.mark.parametrize("file", ["sample_ids/bytes/c.0", "sample_ids/offsets/zarr.json"])
def test_ids_that_are_lost_are_replaced_by_those_of_a_later_writer(tmp_path: Path, file: str) -> None:
    store, others = tmp_path / "a.zarr", [f"photo {row}" for row in range(NUM_ROWS)]
    write_store(store)
    write_store(store, sample_ids=others)
    assert TokenStore.open(store).sample_ids[5] == "image 5"  # sound ones stay
    (store / file).unlink()
    write_store(store, sample_ids=others)
    assert list(TokenStore.open(store).sample_ids) == others
    assert verify_store(store) == []


@pytest.mark.parametrize(
    "file", ["content_hashes/c.0", "sample_ids/bytes/c.0", "tokens/final/cls/zarr.json", "tokens/zarr.json"]
)
def test_what_is_written_once_is_put_back_when_it_was_altered(tmp_path: Path, uninterrupted: Path, file: str) -> None:
    store = tmp_path / "a.zarr"
    write_store(store)
    (store / file).write_bytes(b"{}")
    assert write_store(store) == []
    assert tree(store) == tree(uninterrupted)


def test_what_a_killed_owner_left_beside_the_store_is_removed(tmp_path: Path, uninterrupted: Path) -> None:
    for name in ("a.zarr.new", "a.zarr.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text("half")
    write_store(tmp_path / "a.zarr")
    assert {path.name for path in tmp_path.iterdir()} == {"a.zarr", "a.zarr.lock"}
    assert tree(tmp_path / "a.zarr") == tree(uninterrupted)


def test_the_state_turns_complete_after_everything_else(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    states = []
    replace = os.replace

    def watched(source: str | Path, target: str | Path) -> None:
        replace(source, target)
        if store.exists() and not str(target).startswith(str(store / "tokens")):
            states.append((Path(target).name, read_header(store).state))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", watched)
        write_store(store)
    assert [state for _, state in states[:-1]] == ["writing"] * (len(states) - 1)
    assert states[-2:] == [("worker-0.jsonl", "writing"), ("zarr.json", "complete")]


def test_the_journal_of_a_complete_store_is_sorted_and_only_grows_before(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with open_writer(store, make_spec(), make_arrays()) as writer:
        grown = [b""]
        for batch in sorted(writer.pending(), key=lambda batch: (-batch.block, batch.start)):
            append(writer, batch)
            raw = journal_of(store).read_bytes()
            assert raw.startswith(grown[-1])
            grown.append(raw)
        assert [json.loads(line)["entry"]["block"] for line in raw.splitlines()] == [4, 3, 2, 1, 0]
        writer.complete()
    lines = journal_of(store).read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["entry"]["block"] for line in lines] == [0, 1, 2, 3, 4]
    assert b"".join(lines) == read_journal(store).render()


def test_a_store_without_one_complete_array_cannot_be_read_and_says_what_to_do(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", num_batches=9)
    with raises("cache.store_incomplete", IncompleteStoreError, store=tmp_path / "a.zarr", num_done=2, num_blocks=5):
        TokenStore.open(tmp_path / "a.zarr")


def test_resuming_reads_what_is_under_way_but_only_measures_what_is_complete(tmp_path: Path) -> None:
    arrays = make_arrays()
    write_store(tmp_path / "a.zarr", arrays=arrays[:2])
    chunk = tmp_path / "a.zarr/tokens/norm2/block.0/cls/c.2.0"
    raw = bytearray(chunk.read_bytes())
    raw[3] ^= 1
    chunk.write_bytes(raw)
    assert write_store(tmp_path / "a.zarr", arrays=arrays[:2]) == []
    chunk.write_bytes(raw[:-1])
    assert {(b.block, b.arrays) for b in write_store(tmp_path / "a.zarr", arrays=arrays[:2])} == {(2, (arrays[0],))}
    assert TokenStore.open(tmp_path / "a.zarr").num_rows == NUM_ROWS


@pytest.fixture
def chunks_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chunk files that are read back from here on; a file counts as settled at once."""
    read: list[str] = []
    fromfile = np.fromfile
    monkeypatch.setattr(index, "SETTLED_NS", 0)
    monkeypatch.setattr(
        format.np, "fromfile", lambda file, *args, **options: read.append(str(file)) or fromfile(file, *args, **options)
    )
    return read


def tokens_of(read: list[str]) -> list[str]:
    return [file.partition("/tokens/")[2] for file in read if "/tokens/" in file]


def test_each_committed_chunk_is_read_back_once_however_often_a_store_is_resumed(
    tmp_path: Path, uninterrupted: Path, chunks_read: list[str]
) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, num_batches=12)
    assert tokens_of(chunks_read) == []
    for _ in range(3):
        open_writer(store, make_spec(), make_arrays()).close()
    read = tokens_of(chunks_read)
    assert (
        len(read)
        == len(set(read))
        == sum(len(sums) for e in read_journal(store).entries.values() for sums in e.checksums.values())
    )
    assert verify_store(store) == []
    chunks_read.clear()
    write_store(store, num_batches=4)
    open_writer(store, make_spec(), make_arrays()).close()
    assert {file.split("/c.")[1][0] for file in tokens_of(chunks_read)} == {"3"}
    write_store(store)
    assert tree(store) == tree(uninterrupted)


def test_shards_one_after_the_other_read_each_chunk_once(tmp_path: Path, chunks_read: list[str]) -> None:
    store = tmp_path / "a.zarr"
    for number in range(5):
        with open_writer(store, make_spec(), make_arrays(), worker=Worker(number, 5, helps=False)) as writer:
            for batch in writer.claim():
                append(writer, batch)
            assert writer.complete() == (number == 4)
    read = tokens_of(chunks_read)
    assert {file.split("/c.")[1][0] for file in read} == set("0123")
    assert len(read) == len(set(read))


@pytest.mark.parametrize("damage", ["altered", "cut", "missing", "replaced"])
def test_a_chunk_that_was_damaged_after_it_was_checked_is_computed_again(
    tmp_path: Path, uninterrupted: Path, chunks_read: list[str], damage: str
) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, num_batches=12)
    open_writer(store, make_spec(), make_arrays()).close()
    chunk = store / "tokens/final/cls/c.1.0"
    raw = chunk.read_bytes()
    if damage == "altered":
        times = (chunk.stat().st_atime_ns, chunk.stat().st_mtime_ns)
        chunk.write_bytes(raw[:17] + bytes([raw[17] ^ 64]) + raw[18:])
        os.utime(chunk, ns=times)  # the ctime still shows it
    elif damage == "cut":
        chunk.write_bytes(raw[:-1])
    elif damage == "missing":
        chunk.unlink()
    else:
        other = tmp_path / "other"
        other.write_bytes(raw[::-1])
        os.replace(other, chunk)
    assert [batch.block for batch in write_store(store) if batch.block < 3] == [1] * 4
    assert tree(store) == tree(uninterrupted)


def test_a_damaged_record_of_checked_chunks_costs_only_their_reading(
    tmp_path: Path, uninterrupted: Path, chunks_read: list[str]
) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, num_batches=12)
    open_writer(store, make_spec(), make_arrays()).close()
    record = store / JOURNAL_FOLDER / CHECKED_FILE
    raw = record.read_bytes()
    num_chunks = len(tokens_of(chunks_read))
    for damaged in (b"", raw[:-1], raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]):
        record.write_bytes(damaged)
        chunks_read.clear()
        open_writer(store, make_spec(), make_arrays()).close()
        assert len(tokens_of(chunks_read)) == num_chunks
        assert record.read_bytes() != damaged
    write_store(store)
    assert tree(store) == tree(uninterrupted)
