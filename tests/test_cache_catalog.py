"""What stores there are, and what of it may be deleted."""

from __future__ import annotations

import os
from pathlib import Path

from messages import raises
from token_stores import (
    append,
    make_arrays,
    make_spec,
    open_writer,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import (
    DamagedStoreError,
    NotAStoreError,
    StoreLockedError,
    TokenStore,
    Worker,
    delete_store,
    find_garbage,
    find_unfinished,
    list_stores,
    read_store_info,
    remove_garbage,
    verify_store,
)
from layerbank.cache.writing.locking import lock_file


def test_every_store_under_a_folder_is_listed_with_its_state(tmp_path: Path) -> None:
    complete, test = make_spec(), make_spec(name="test", transform="resize 64")
    write_store(complete.path(tmp_path), complete)
    write_store(test.path(tmp_path), test, num_batches=9)
    (tmp_path / "timm-vit_tiny/broken.zarr").mkdir(parents=True)
    (tmp_path / "timm-vit_tiny/broken.zarr/zarr.json").write_text('{"format": "layerbank token store"')
    broken, first, second = sorted(list_stores(tmp_path), key=lambda info: info.state)[::-1][:3][::-1]
    by_state = {info.state: info for info in list_stores(tmp_path)}
    assert {broken.state, first.state, second.state} == {"complete", "writing", "unreadable"}
    info = by_state["complete"]
    assert (info.path, info.spec, info.problem) == (complete.path(tmp_path), complete, None)
    assert info.arrays == info.complete_arrays == make_arrays()
    assert (info.num_blocks_done, info.num_blocks) == (5, 5)
    assert info.size_bytes == sum(len(raw) for raw in tree(info.path).values())
    assert info.attributes == {"request": "all levels"}
    assert info.owners == ()
    info = by_state["writing"]
    assert (info.arrays, info.complete_arrays) == (make_arrays(), [])
    assert (info.num_blocks_done, info.num_blocks) == (2, 5)
    info = by_state["unreadable"]
    assert isinstance(info.problem, DamagedStoreError)
    assert (info.spec, info.arrays, info.num_blocks, info.num_blocks_done, info.attributes) == (None, [], 0, 0, {})


def test_a_folder_that_is_not_there_has_no_stores(tmp_path: Path) -> None:
    assert list_stores(tmp_path / "nowhere") == []
    assert find_garbage(tmp_path / "nowhere") == []


def test_a_store_inside_a_store_is_not_looked_for(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/b.zarr").mkdir()
    assert [info.path for info in list_stores(tmp_path)] == [tmp_path / "a.zarr"]


def test_the_owner_of_a_store_that_is_being_written_is_named(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()):
        (owner,) = read_store_info(tmp_path / "a.zarr").owners
    assert owner.pid == os.getpid()
    assert not owner.is_gone
    assert read_store_info(tmp_path / "a.zarr").owners == ()


def test_garbage_is_found_first_and_deleted_on_request(tmp_path: Path) -> None:
    write_store(tmp_path / "kept.zarr")
    write_store(tmp_path / "half.zarr", num_batches=5)
    write_store(tmp_path / "adding.zarr", arrays=make_arrays()[:2])
    write_store(tmp_path / "adding.zarr", num_batches=1)
    (tmp_path / "adding.zarr/content_hashes/.journal/aside~tokens~final~cls~c.0.0").write_bytes(b"half")
    (tmp_path / "kept.zarr.old").mkdir()
    (tmp_path / "kept.zarr.old/zarr.json").write_text("old")
    lock_file(tmp_path / "gone.zarr").touch()
    kept = tree(tmp_path / "kept.zarr")
    found = find_garbage(tmp_path, unfinished_for_s=0.0)
    assert [(garbage.path.name, garbage.size_bytes > 0, garbage.reason) for garbage in found] == [
        ("aside~tokens~final~cls~c.0.0", True, "a chunk that a killed writer left behind"),
        ("gone.zarr.lock", False, "the lock of a store that is gone"),
        (
            "half.zarr",
            True,
            "never finished (1 of 5 row blocks) and no longer written; the same extraction would continue it",
        ),
        ("kept.zarr.old", True, "left behind when a store was made or deleted"),
    ]
    assert (tmp_path / "half.zarr").exists()
    assert remove_garbage(found) == sum(garbage.size_bytes for garbage in found)
    assert find_garbage(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        *("kept.zarr", "kept.zarr.lock", "adding.zarr", "adding.zarr.lock")
    }
    assert tree(tmp_path / "kept.zarr") == kept
    assert len(TokenStore.open(tmp_path / "adding.zarr").arrays) == 2


def test_a_store_between_two_shards_is_kept_with_what_is_committed_in_it(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with open_writer(store, make_spec(), make_arrays(), worker=Worker(0, 3, helps=False)) as writer:
        for batch in writer.claim():
            append(writer, batch)
    staging = store / "content_hashes/.journal/aside~tokens~final~cls~c.0.0"
    staging.write_bytes(b"half")
    committed = tree(store)
    (kept,) = find_unfinished(tmp_path)
    assert (kept.path, kept.num_blocks, kept.num_blocks_done, kept.age_s < 60) == (store, 5, 2, True)
    assert [garbage.path for garbage in find_garbage(tmp_path)] == [staging]
    assert [garbage.path for garbage in find_garbage(tmp_path, unfinished_for_s=3600.0)] == [staging]
    remove_garbage(find_garbage(tmp_path))
    assert tree(store) == {
        name: content for name, content in committed.items() if name != staging.relative_to(store).as_posix()
    }
    for file in (lock_file(store), *store.rglob("*")):
        os.utime(file, (0, 0))
    assert [garbage.path for garbage in find_garbage(tmp_path, unfinished_for_s=3600.0)] == [store]
    with open_writer(store, make_spec(), make_arrays(), worker=Worker(1, 3, helps=False)):
        pass  # it takes the store up and is killed before its first block
    assert find_garbage(tmp_path, unfinished_for_s=3600.0) == []


def test_links_to_stores_and_files_of_others_are_neither_garbage_nor_deleted(tmp_path: Path) -> None:
    store = tmp_path / "elsewhere" / "a.zarr"
    write_store(store)
    root = tmp_path / "caches"
    root.mkdir()
    (root / "b.zarr").symlink_to(store)
    (root / "mine.zarr.lock").write_text("notes of my own")
    assert find_garbage(root, unfinished_for_s=0.0) == []
    with raises("cache.store_is_link", NotAStoreError, store=root / "b.zarr", target=store):
        delete_store(root / "b.zarr")
    assert (root / "b.zarr").resolve() == store
    assert verify_store(store) == []


def test_what_a_living_writer_holds_is_no_garbage(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", num_batches=5)
    found = find_garbage(tmp_path, unfinished_for_s=0.0)
    with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()) as writer:
        append(writer, writer.pending()[0])
        assert find_garbage(tmp_path, unfinished_for_s=0.0) == find_unfinished(tmp_path) == []
        with raises("cache.store_locked", StoreLockedError):
            remove_garbage(found)
    assert (tmp_path / "a.zarr").exists()
