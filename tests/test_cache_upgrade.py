"""Stores of format 1 are read as they are, and upgraded without images or model, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from commands import run
from golden_stores import committed_values, stores_under, tree, unpack
from kills import run_program
from messages import raises, refuses, shows
from own_mounts import in_own_mounts
from token_stores import folders_of, make_model, without_fsync  # noqa: F401

from layerbank.cache import (
    CacheWriter,
    ModelStores,
    RowSet,
    StoreFiles,
    TokenStore,
    TokenView,
    WantedRows,
    find_format1,
    find_garbage,
    list_targets,
    read_target,
    upgrade_store,
    verify_store,
)
from layerbank.cache.errors import StorageFullError
from layerbank.cache.header import read_header
from layerbank.cache.journal import JOURNAL_FOLDER, WORKER_FILE
from layerbank.cache.view import UNREADABLE
from layerbank.cache.writing.locking import StoreLock

ROOT = Path(__file__).parent.parent
COMPLETE = "shapes/train/timm-vit_tiny-9215b1f9.zarr"  # two arrays, and one in progress
UNFINISHED = "shapes/train/timm-vit_tiny-f1c12bde.zarr"  # two of five row blocks
MODULE_TAP = "shapes/train/timm-vit_tiny-48616a6c.zarr"
VIEWS = "photos/train/demo-vit-s-focus-40b68eb4.zarr"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores of format 1, never changed: `caches` of real images and `synthetic` ones."""
    return unpack(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def synthetic(golden: Path, tmp_path: Path) -> Path:
    return shutil.copytree(golden / "synthetic", tmp_path / "cache")


@pytest.fixture
def caches(golden: Path, tmp_path: Path) -> Path:
    return shutil.copytree(golden / "caches", tmp_path / "cache")


def upgrade_all(root: Path) -> None:
    for path in find_format1(root):
        upgrade_store(path, root)


def wanted(rows: RowSet, chosen: np.ndarray[Any, Any]) -> WantedRows:
    """These rows by hash rule 2, under which arrays have other hashes, and by rule 1."""
    hashes = rows.hashes[chosen]
    rule2 = RowSet(
        hashes=np.where(hashes == 0, hashes, hashes ^ np.uint64(0xABCDEF)),
        views=None if rows.views is None else rows.views[chosen],
        view_rule=rows.view_rule,
    )
    return WantedRows(rows=rule2, rule1_hashes=hashes)


# Read as they are


@pytest.mark.parametrize("folder", ["caches", "synthetic"])
def test_a_store_of_format_1_is_read_as_it_is(golden: Path, folder: str) -> None:
    before = tree(golden)
    for path in stores_under(golden / folder):
        rows, values = committed_values(path)
        files = StoreFiles.read(path)
        complete = [key for key, name in files.arrays.items() if files.header.arrays[name].complete]
        for key in complete:
            store = TokenStore.open(path, tap=key[0] or None)
            assert (store.tokens(*key[1:]).read(0, store.num_rows) == values[key]).all()
            mapped = TokenStore.open(path, tap=key[0] or None, mapped=False).tokens(*key[1:])
            assert (mapped.read(0, store.num_rows) == values[key]).all()
            tap = key[0] or "norm2"
            view = TokenView.open(
                golden / folder, store.spec.model, wanted(rows, np.arange(len(rows))), [key[1:]], tap=tap
            )
            usable = np.flatnonzero(view.positions >= 0)
            assert len(usable) == len(rows) - len(view.skipped)
            assert (view.tokens(*key[1:]).take(view.positions[usable]) == values[key][usable]).all()
    assert tree(golden) == before


def test_a_store_of_format_1_is_read_on_a_read_only_disk(golden: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom layerbank.cache import CacheError, TokenStore, list_stores, upgrade_store\n"
        "for one in list_stores(sys.argv[1]):\n"
        "    store = TokenStore.open(one.path)\n"
        "    print(len(store.rows), *[store.tokens(*a).read(0, 1).shape for a in store.arrays])\n"
        "    try: upgrade_store(one.path, sys.argv[1])\n"
        "    except CacheError as error: print(error)\n"
    )
    lines = in_own_mounts(
        'mount --bind "$2" "$2"\nmount -o remount,ro,bind "$2"\n"$1" "$3" "$2"',
        str(golden / "caches"),
        str(program),
    )
    assert len(lines) == 10
    assert lines[0] == "10 (1, 384)"
    assert all(shows(line, "cache.upgrade_not_writable") for line in lines[1::2])


def test_a_store_of_format_1_is_never_written(golden: Path) -> None:
    before = tree(golden)
    path = golden / "synthetic" / UNFINISHED
    header = read_header(path)
    arrays = [entry.spec for entry in header.arrays.values()]
    rows = RowSet(hashes=np.arange(1, 1201, dtype=np.uint64))
    ids = [str(row) for row in range(1200)]
    with raises("cache.old_format", store=path, expected=2, got=1):
        CacheWriter.open(path, header.spec.model, rows, arrays, name="shapes", sample_ids=ids, batch_size=60)
    assert tree(golden) == before


# The upgrade


@pytest.mark.parametrize("folder", ["caches", "synthetic"])
@pytest.mark.parametrize("links", [True, False])
def test_after_an_upgrade_every_token_is_found_by_its_hash_and_is_the_same(
    golden: Path, tmp_path: Path, folder: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(golden / folder, tmp_path / "cache")
    if not links:
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    for path in find_format1(root):
        model, (rows, values) = read_header(path).spec.model, committed_values(path)
        files = StoreFiles.read(path)
        chunks = {file: file.stat().st_ino for name in files.header.arrays for file in (path / name).glob("c.*")}
        done = upgrade_store(path, root)
        assert done.damages == ()
        assert verify_store(done.store) == []
        new = StoreFiles.read(done.store)
        assert new.rows.hashes.tolist() == rows.hashes.tolist()
        for key, name in files.arrays.items():
            in_blocks = files.committed(["content_hashes", name])
            chosen = np.flatnonzero(np.repeat(in_blocks, files.header.block_rows)[: len(rows)])
            view = TokenView.open(root, model, wanted(rows, chosen), [key[1:]], tap=key[0] or "norm2")
            usable = np.flatnonzero(view.positions >= 0)
            has_hash = [row for row in chosen.tolist() if rows.hashes[row]]  # format 1 kept none of unreadable files
            reasons = {files.skipped[row] for row in has_hash if row in files.skipped}
            assert set(view.skipped.values()) - {UNREADABLE} == reasons
            assert len(usable) == len(chosen) - len(view.skipped) > 0
            found = view.tokens(*key[1:]).take(view.positions[usable])
            assert found.tobytes() == values[key][chosen[usable]].tobytes()
            for file in (done.store / new.arrays[key]).glob("c.*"):
                old = path / name / file.name
                assert (file.stat().st_ino == chunks[old]) == links
                assert file.read_bytes() == (golden / folder / old.relative_to(root)).read_bytes()
    assert find_format1(root) == []
    assert {path.parent.parent for path in stores_under(root, version=2)} == {root}
    assert not (root / "photos").exists()
    assert not (root / "shapes").exists()


def test_an_upgraded_store_keeps_what_was_recorded(caches: Path) -> None:
    old = caches / "photos/test/demo-vit-s-focus-29c0a343.zarr"
    before, notes, ids = read_header(old), StoreFiles.read(old).journal.notes(()), list(TokenStore.open(old).sample_ids)
    done = upgrade_store(old, caches)
    store = TokenStore.open(done.store)
    header = read_header(done.store)
    assert header.batch_size == before.batch_size
    assert header.versions == before.versions
    assert header.attributes.items() >= before.attributes.items()
    assert header.spec.model == before.spec.model
    assert [*header.arrays] == [
        "tokens/norm2/block.3/ap",
        "tokens/norm2/block.3/cls",
        "tokens/final/ap",
        "tokens/final/cls",
    ]
    assert header.parity == {
        name.replace("tokens/block", "tokens/norm2/block"): one for name, one in before.parity.items()
    }
    assert header.notes == before.notes
    assert store.skipped == dict(notes.skipped) == {11: "bytes in no image format that Pillow knows"}
    assert list(store.sample_ids) == ids
    label = read_target(done.store, "label", num_rows=12)
    assert (label.values.tolist(), label.type) == ([0] * 4 + [1] * 4 + [2] * 4, "multiclass")
    assert list(label.class_names) == ["blue", "green", "red"]
    assert done.store.parent.parent == caches


def test_counts_of_values_out_of_range_get_the_new_names_of_their_arrays(synthetic: Path) -> None:
    done = upgrade_store(synthetic / COMPLETE, synthetic)
    header = read_header(done.store)
    assert header.notes["saturated"] == {"tokens/final/cls": 1, "tokens/norm2/block.0/cls": 1}
    assert header.state == "writing"
    assert [array.name for array in header.complete_arrays] == ["tokens/norm2/block.0/cls", "tokens/final/cls"]
    assert StoreFiles.read(done.store).committed(["tokens/final/grid2"]).tolist() == [True, False, False, False, False]


def test_the_centre_views_of_a_store_with_augmented_views_are_found_without_them(caches: Path) -> None:
    rows, values = committed_values(caches / VIEWS)
    model = read_header(caches / VIEWS).spec.model
    upgrade_store(caches / VIEWS, caches)
    centre = np.flatnonzero(rows.views == 0)
    assert len(centre) == 24
    found = TokenView.open(caches, model, WantedRows(rows=RowSet(hashes=rows.hashes[centre])), [("final", "cls")])
    tokens = found.tokens("final", "cls").take(found.positions)
    assert (tokens == values["", "final", "cls"][centre]).all()


def test_rows_that_were_never_committed_are_counted_and_the_others_are_found(synthetic: Path) -> None:
    model = read_header(synthetic / UNFINISHED).spec.model
    done = upgrade_store(synthetic / UNFINISHED, synthetic)
    assert (done.num_rows, done.num_rows_left_behind) == (1200, 720)
    rows = StoreFiles.read(done.store).rows
    assert np.flatnonzero(rows.hashes).tolist() == list(range(1, 480))  # the first image has no hash there
    found = ModelStores(synthetic, model).find(WantedRows(rows=RowSet(hashes=rows.hashes)), [("", "final", "cls")])
    assert (found.store >= 0).tolist() == [False] + [True] * 479 + [False] * 720


def test_stores_that_differ_in_tap_alone_each_keep_their_tokens(caches: Path) -> None:
    """In format 2 they have equal rows of one model, so the second gets another name."""
    first, second = (
        upgrade_store(path, caches).store for path in sorted((caches / "photos/train").glob("*.zarr"))[1:3]
    )
    assert read_header(first).spec.rows_digest == read_header(second).spec.rows_digest
    assert first.name.replace("photos-train-", "photos-train-2-") == second.name
    assert TokenStore.open(first).tap == "block"
    assert TokenStore.open(second).tap == "norm2"
    assert read_header(second).spec.path(caches) == second


def test_a_copy_that_was_upgraded_before_is_recognised_and_the_old_store_deleted(synthetic: Path) -> None:
    kept = shutil.copytree(synthetic / COMPLETE, synthetic.parent / "kept.zarr")
    done = upgrade_store(synthetic / COMPLETE, synthetic)
    before = tree(done.store)
    shutil.copytree(kept, synthetic / COMPLETE)
    assert upgrade_store(synthetic / COMPLETE, synthetic) == done
    assert tree(done.store) == before
    assert not (synthetic / COMPLETE).exists()
    assert upgrade_store(synthetic / COMPLETE, synthetic) == done  # a third time there is nothing left to do


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: (store / "tokens/final/cls/c.2.0").unlink(),
        lambda store: flip(store / "tokens/final/cls/c.2.0"),
        lambda store: flip(store / "sample_ids/bytes/c.0"),
        lambda store: flip(store / "tokens/final/zarr.json"),
        lambda store: flip(next(store.glob("targets/label.*/c.0"))),
        lambda store: (store / "content_hashes/.targets/label.json").unlink(),
    ],
    ids=["chunk missing", "chunk altered", "ids altered", "metadata altered", "labels altered", "labels missing"],
)
def test_an_upgraded_copy_that_was_damaged_since_does_not_cost_the_old_store(
    synthetic: Path, damage: Callable[[Path], object]
) -> None:
    kept = shutil.copytree(synthetic / COMPLETE, synthetic.parent / "kept.zarr")
    done = upgrade_store(synthetic / COMPLETE, synthetic)
    damage(done.store)
    shutil.copytree(kept, synthetic / COMPLETE)
    again = upgrade_store(synthetic / COMPLETE, synthetic)
    assert again.store != done.store
    assert verify_store(again.store) == []
    assert list_targets(again.store) == ["label"]


# Interruptions

KILLER = """
import json, os, shutil
from pathlib import Path
from kills import is_killed
from layerbank.cache import find_format1, remove_leftovers, upgrade_store

source, folder, step, links = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def upgrade():
    for path in find_format1(root):
        upgrade_store(path, root)
    remove_leftovers(root)

if links == "copies":
    original = os.link  # zarr makes its own files with it
    def link(source, target):
        if Path(target).name.startswith(("c.", ".layerbank")):
            raise OSError(1, "no links here")
        original(source, target)
    os.link = link

number, states, killed = -step, {}, True
while killed:
    number += step
    root = shutil.copytree(source, folder / str(number))
    killed = is_killed(upgrade, at_call=number)
    state = f"{len(list(root.glob('*/*/*.zarr')))} old, {len(list(root.glob('*/*.zarr')))} new"
    states[state] = states.get(state, 0) + 1
    assert not is_killed(upgrade)
print(json.dumps({"calls": number, "states": states}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize(("links", "step"), [("links", 11), ("copies", 29)])
def test_an_upgrade_killed_before_any_call_that_changes_the_disk_ends_the_same_when_it_is_repeated(
    golden: Path, tmp_path: Path, links: str, step: int
) -> None:
    source = tmp_path / "source"
    for store in (
        "caches/photos/train/demo-vit-s-focus-786f60df.zarr",
        "caches/photos/train/demo-vit-s-focus-acb4e1fe.zarr",
    ):
        shutil.copytree(golden / store, source / Path(store).relative_to("caches"))
    uninterrupted = shutil.copytree(source, tmp_path / "uninterrupted")
    upgrade_all(uninterrupted)
    (tmp_path / "killed").mkdir()
    report = run_program(KILLER, source, tmp_path / "killed", step, links)
    assert report["calls"] >= 200
    assert {"2 old, 0 new", "1 old, 1 new", "0 old, 2 new"} <= report["states"].keys()
    for root in (tmp_path / "killed").iterdir():
        assert tree(root) == tree(uninterrupted), (root, report)
        assert folders_of(root) == folders_of(uninterrupted), (root, report)
        assert find_garbage(root) == []


def test_one_store_killed_between_rename_and_deletion_is_found_upgraded_when_it_is_named_again(synthetic: Path) -> None:
    old = synthetic / COMPLETE
    done = upgrade_store(old, synthetic)
    old.parent.mkdir(parents=True, exist_ok=True)
    (half := old.with_name(f"{old.name}.old")).mkdir()
    (half / "zarr.json").write_text("{}")
    StoreLock(old).file.touch()
    assert upgrade_store(old, synthetic) == done
    assert not half.exists()
    assert not StoreLock(old).file.exists()


def refusing(number: int) -> Callable[..., None]:
    """An `os.link` that fails for chunk files; zarr makes its own files with it."""
    original = os.link

    def link(source: Any, target: Any) -> None:
        if Path(target).name.startswith(("c.", ".layerbank")):
            raise OSError(number, os.strerror(number), "a file")
        original(source, target)

    return link


@pytest.mark.parametrize(
    ("number", "key"),
    [
        (errno.ENOSPC, "cache.storage_full"),
        (errno.EROFS, "cache.upgrade_not_writable"),
        (errno.EACCES, "cache.upgrade_not_writable"),
    ],
)
def test_a_disk_that_refuses_leaves_the_old_store_as_it_was(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch, number: int, key: str
) -> None:
    before = tree(synthetic)
    with monkeypatch.context() as patch, raises(key):
        patch.setattr(os, "link", refusing(number))
        upgrade_store(synthetic / COMPLETE, synthetic)
    assert {path: data for path, data in tree(synthetic).items() if ".zarr.new/" not in path} == before
    upgrade_all(synthetic)
    assert find_garbage(synthetic) == []


def test_a_full_disk_halfway_through_a_copy_leaves_the_old_store_as_it_was(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, original = tree(synthetic / COMPLETE), os.write

    def write(fd: int, data: Any) -> int:
        if len(data) > 3000:
            original(fd, bytes(data)[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(fd, data)

    with monkeypatch.context() as patch, pytest.raises(StorageFullError):
        patch.setattr(os, "link", refusing(errno.ENOTSUP))
        patch.setattr(os, "write", write)
        upgrade_store(synthetic / COMPLETE, synthetic)
    assert tree(synthetic / COMPLETE) == before


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_store_that_is_being_written_is_not_upgraded(
    synthetic: Path, golden: Path, tmp_path: Path, which: str
) -> None:
    new = upgrade_store(shutil.copytree(golden / "synthetic", tmp_path / "x") / COMPLETE, tmp_path / "x").store
    place = synthetic / COMPLETE if which == "old" else synthetic / new.relative_to(tmp_path / "x")
    lock = StoreLock(place)
    lock.acquire()
    try:
        with raises("cache.store_locked", store=place):
            upgrade_store(synthetic / COMPLETE, synthetic)
        assert tree(synthetic / COMPLETE) == tree(golden / "synthetic" / COMPLETE)
    finally:
        lock.release()


def test_only_a_store_of_format_1_is_upgraded(synthetic: Path, tmp_path: Path) -> None:
    store = upgrade_store(synthetic / COMPLETE, synthetic).store
    with raises("cache.not_old_format", store=store, expected=1, got=2):
        upgrade_store(store, synthetic)
    with raises("cache.store_missing"):
        upgrade_store(tmp_path / "nothing.zarr", synthetic)
    (tmp_path / "folder.zarr").mkdir()
    with raises("cache.no_header"):
        upgrade_store(tmp_path / "folder.zarr", synthetic)


# Damage


def flip(file: Path, at: int = 5) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 64
    file.write_bytes(raw)


def cut_line(store: Path) -> None:
    """Alter the journal's third line."""
    file = store / JOURNAL_FOLDER / WORKER_FILE
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"0", b"1", 1)
    file.write_bytes(b"".join(lines))


def lose_line(store: Path) -> None:
    """Remove the journal's third line."""
    file = store / JOURNAL_FOLDER / WORKER_FILE
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2] + lines[3:]))


@pytest.mark.parametrize(
    ("harm", "named", "num_left", "num_complete"),
    [
        (lambda store: (store / "tokens/final/cls/c.2.0").unlink(), "tokens/final/cls/c.2.0", 0, 1),
        (lambda store: os.truncate(store / "tokens/final/cls/c.2.0", 100), "tokens/final/cls/c.2.0", 0, 1),
        (lambda store: flip(store / "tokens/final/cls/c.2.0", at=3842), "tokens/final/cls/c.2.0", 0, 1),
        (lambda store: flip(store / "content_hashes/c.2"), "content_hashes/c.2", 240, 0),
        (lambda store: (store / "content_hashes/c.2").unlink(), "content_hashes/c.2", 240, 0),
        (lambda store: flip(store / "labels/c.0"), "labels/c.0", 0, 2),
        (lambda store: flip(store / "sample_ids/bytes/c.0"), "sample_ids/bytes/c.0", 0, 2),
        (cut_line, "content_hashes/.journal/worker-0.jsonl", 240, 0),
        (lose_line, "content_hashes/c.2", 240, 0),
        (lambda store: (store / "my notes.txt").write_text("mine"), "my notes.txt", 0, 2),
    ],
)
def test_what_is_sound_in_a_damaged_store_is_taken_along_and_the_old_store_is_kept(
    synthetic: Path, harm: Callable[[Path], object], named: str, num_left: int, num_complete: int
) -> None:
    old = synthetic / COMPLETE
    harm(old)
    before = tree(old)
    done = upgrade_store(old, synthetic)
    assert any(damage.file == named for damage in done.damages), done.damages
    assert tree(old) == before
    assert verify_store(done.store) == []
    assert done.num_rows_left_behind == num_left
    assert len(read_header(done.store).complete_arrays) == num_complete
    assert (list_targets(done.store) == []) == (named == "labels/c.0")
    rows, values = committed_values(done.store)
    blocks = StoreFiles.read(done.store).committed(["tokens/final/cls"])
    assert blocks.tolist() == [True, True, num_complete == 2 or not named.startswith(("tok", "con")), True, True]
    here = np.flatnonzero(np.repeat(blocks, 240))
    model = make_model()
    view = TokenView.open(done.store.parents[1], model, WantedRows(rows=rows.select(here)), [("final", "cls")])
    usable = view.positions >= 0
    assert (view.tokens("final", "cls").take(view.positions[usable]) == values["", "final", "cls"][here[usable]]).all()
    assert upgrade_store(old, synthetic) == done  # repeated, nothing changes


def test_where_files_are_copied_they_are_read_first(synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    flip(synthetic / COMPLETE / "tokens/final/cls/c.2.0")
    done = upgrade_store(synthetic / COMPLETE, synthetic)
    assert [damage.file for damage in done.damages] == ["tokens/final/cls/c.2.0"]
    assert verify_store(done.store) == []


def test_a_damaged_header_is_named_and_nothing_is_touched(synthetic: Path) -> None:
    flip(synthetic / COMPLETE / "zarr.json", at=300)
    before = tree(synthetic)
    with raises("cache.header_damaged"):
        upgrade_store(synthetic / COMPLETE, synthetic)
    assert tree(synthetic) == before
    assert synthetic / COMPLETE in find_format1(synthetic)


def reseal(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a header of format 1 and give it the checksum that belongs to it."""
    document = json.loads((store / "zarr.json").read_bytes())
    attributes = document["attributes"]
    del attributes["header_crc32c"]
    change(attributes)
    rendered = json.dumps(attributes, indent=2).encode()
    attributes["header_crc32c"] = f"{google_crc32c.value(rendered):08x}"
    (store / "zarr.json").write_bytes(json.dumps(document, indent=2).encode())


def half_chunks(attributes: dict[str, Any]) -> None:
    for entry in attributes["arrays"].values():
        entry["chunk_rows"] //= 2


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        (lambda attributes: attributes["attributes"].update(class_names=5), {"merge": False, "upgrade": False}),
        (lambda attributes: attributes["attributes"].update(class_names=None), {"merge": False, "upgrade": False}),
        (lambda attributes: attributes["attributes"].update(num_views="x"), {"merge": False, "upgrade": False}),
        (lambda attributes: attributes["static"].pop("labels"), {"info": True, "merge": True, "upgrade": True}),
        (
            lambda attributes: attributes["static"]["labels"].update(shape=[7]),
            {"info": True, "merge": True, "upgrade": True},
        ),
        (half_chunks, {"upgrade": True}),
    ],
    ids=["class names a number", "class names null", "views a text", "no labels", "few labels", "other chunks"],
)
def test_a_hostile_header_of_format_1_is_one_of_our_errors(
    synthetic: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], fails: dict[str, bool]
) -> None:
    store = synthetic / COMPLETE
    reseal(store, lambda attributes: None)
    assert verify_store(store) == []
    reseal(store, change)
    before = tree(store)
    for command, fails_here in fails.items():
        target = ["--cache", tmp_path / command] if command != "info" else []
        result = run("cache", command, store, *target)
        if fails_here:
            refuses(result, "cache.header_damaged", exit_code=1)
            assert tree(store) == before
        else:
            assert result.exit_code == 0, result.output


def test_hashes_that_are_damaged_make_a_store_of_format_1_unreadable_by_row(synthetic: Path) -> None:
    os.truncate(synthetic / COMPLETE / "content_hashes/c.2", 1000)
    with raises("cache.store_damaged"):
        StoreFiles.read(synthetic / COMPLETE).rows  # noqa: B018
    with raises("cache.rows_missing"):
        TokenView.open(
            synthetic, make_model(), WantedRows(rows=RowSet(hashes=np.ones(1, np.uint64))), [("final", "cls")]
        )


# The command


def test_the_command_upgrades_every_store_of_a_cache(caches: Path) -> None:
    result = run("cache", "upgrade", "--cache", caches)
    assert result.exit_code == 0, result.output
    assert "photos-train-2-" in result.output
    assert (len(stores_under(caches, version=1)), len(stores_under(caches, version=2))) == (0, 5)
    assert {path.name for path in caches.iterdir()} == {path.parent.name for path in stores_under(caches)}
    again = run("cache", "upgrade", "--cache", caches)
    assert (again.exit_code, again.output.strip()) == (0, f"no stores of format 1 under {caches}")


def test_the_command_names_rows_left_behind_damage_and_stores_that_failed(synthetic: Path) -> None:
    (synthetic / COMPLETE / "tokens/final/cls/c.2.0").unlink()
    flip(synthetic / MODULE_TAP / "zarr.json", at=300)
    result = run("cache", "upgrade", "--cache", synthetic)
    assert result.exit_code == 1
    assert "720 of 1,200 rows" in result.output
    assert "tokens/final/cls/c.2.0 (rows 480 to 720): missing" in result.output
    assert shows(result.output, "cache.header_damaged")
    assert {path.relative_to(synthetic).as_posix() for path in synthetic.glob("*/*/*.zarr")} == {COMPLETE, MODULE_TAP}


def test_the_command_upgrades_the_stores_that_are_named_into_their_cache(synthetic: Path) -> None:
    result = run("cache", "upgrade", synthetic / COMPLETE)
    assert result.exit_code == 0, result.output
    (store,) = stores_under(synthetic, version=2)
    assert str(store) in result.output
    assert len(stores_under(synthetic, version=1)) == 3
    refuses(run("cache", "upgrade", store), "cache.not_old_format")
    refuses(run("cache", "upgrade", synthetic / "nothing.zarr"), "cache.store_missing")


def test_an_upgrade_deletes_no_folder_of_others_and_names_a_store_near_the_root_of_the_disk(synthetic: Path) -> None:
    """The folder of stores may be one that has other things in it."""
    foreign = [synthetic / name for name in (".git/branches", "notes", "results/2024")]
    for folder in foreign:
        folder.mkdir(parents=True)
    assert run("cache", "upgrade", "--cache", synthetic).exit_code == 0
    assert all(folder.is_dir() for folder in foreign)
    assert not (synthetic / "shapes").exists()
    for command in (["upgrade"], ["merge"], ["merge", "--delete"]):
        refuses(run("cache", *command, "/nothing.zarr"), "cache.store_missing")


def test_the_command_upgrades_into_another_cache(synthetic: Path, tmp_path: Path) -> None:
    result = run("cache", "upgrade", synthetic / COMPLETE, "--cache", tmp_path / "other")
    assert result.exit_code == 0, result.output
    assert len(stores_under(tmp_path / "other", version=2)) == 1
