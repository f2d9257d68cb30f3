"""A reader trusts the journal: a store that is not whole is refused, with what to run next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from messages import raises
from token_stores import (
    NUM_ROWS,
    hashes_of,
    make_arrays,
    make_rows,
    make_spec,
    tokens_of,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import (
    DamagedStoreError,
    MissingArrayError,
    NewerStoreError,
    NotAStoreError,
    SpecMismatchError,
    StoreMissingError,
    TokenStore,
)
from layerbank.cache.journal import JOURNAL_FOLDER, WORKER_FILE

ROWS = np.arange(NUM_ROWS)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "a.zarr"
    write_store(path, arrays=make_arrays(levels=["block.0", "block.2", "block.10", "final"]))
    return path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


@pytest.mark.parametrize("mapped", [True, False])
def test_everything_that_was_written_is_read(sound: Path, mapped: bool) -> None:
    cache = TokenStore.open(sound, make_spec(), mapped=mapped)
    assert cache.path == sound
    assert cache.spec == make_spec()
    assert cache.num_rows == NUM_ROWS
    assert (cache.block_rows, cache.batch_size) == (240, 60)
    assert cache.levels == ["block.0", "block.2", "block.10", "final"]
    assert cache.kinds == ["cls", "grid2"]
    assert cache.attributes == {"request": "all levels"}
    assert set(cache.versions) == {"numpy", "python", "zarr"}
    assert cache.rows.digest == make_rows().digest == make_spec().rows_digest
    rows = np.random.default_rng(0).integers(0, NUM_ROWS, 300)
    for (level, kind), array in cache.arrays.items():
        tokens = cache.tokens(level, kind)
        assert (tokens.shape, tokens.dtype) == ((NUM_ROWS, *array.row_shape), np.float16)
        assert tokens.logical_dtype == "float16"
        np.testing.assert_array_equal(tokens.take(rows), tokens_of(array, hashes_of(rows)))
        np.testing.assert_array_equal(tokens.read(200, 500), tokens_of(array, hashes_of(ROWS[200:500])))


def test_hashes_may_be_changed_without_changing_the_store(store: Path) -> None:
    TokenStore.open(store).rows.hashes[:] = 7
    assert TokenStore.open(store).rows.digest == make_rows().digest


def test_sample_ids_are_a_sequence(sound: Path) -> None:
    ids = TokenStore.open(sound).sample_ids
    assert len(ids) == NUM_ROWS
    assert (ids[0], ids[-1], ids[3:5]) == ("image 0", f"image {NUM_ROWS - 1}", ["image 3", "image 4"])
    assert list(ids) == [f"image {row}" for row in range(NUM_ROWS)]
    with pytest.raises(IndexError):
        ids[NUM_ROWS]


def test_sample_ids_keep_every_name_a_file_can_have(tmp_path: Path) -> None:
    names = ["straße/ü.png", "画像.jpg", b"\xff\xfe.png".decode("utf-8", "surrogateescape"), "a b", " "]
    write_store(tmp_path / "a.zarr", make_spec(num_rows=5), sample_ids=names)
    assert list(TokenStore.open(tmp_path / "a.zarr").sample_ids) == names


def test_rows_without_usable_tokens_are_listed(sound: Path) -> None:
    cache = TokenStore.open(sound)
    assert list(cache.skipped) == [row for row in ROWS if row % 100 == 99]


def test_a_store_of_another_spec_is_refused_field_by_field(sound: Path) -> None:
    differences = "transform = 'resize 32' instead of 'resize 64'"
    with raises("cache.other_identity_to_read", SpecMismatchError, store=sound, differences=differences):
        TokenStore.open(sound, make_spec(transform="resize 64", name="test"))


def test_a_missing_store_says_how_to_make_it(tmp_path: Path) -> None:
    with raises("cache.store_missing", StoreMissingError, store=tmp_path / "a.zarr") as refused:
        TokenStore.open(tmp_path / "a.zarr")
    assert isinstance(refused.error, FileNotFoundError)


def test_a_missing_array_says_what_there_is_and_how_to_add_it(sound: Path) -> None:
    has = {"levels": "block.0, block.2, block.10, final", "kinds": "cls, grid2"}
    with raises("cache.array_missing", MissingArrayError, store=sound, level="block.5", **has) as refused:
        TokenStore.open(sound).tokens("block.5", "ap")
    assert "`layerbank extract --levels block.5 --kinds ap`" in refused.error.todo


def a_file(path: Path) -> None:
    path.write_text("text")


def an_empty_folder(path: Path) -> None:
    path.mkdir()


def another_group(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')


def another_format(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"attributes": {"format": "tokens", "format_version": 1}}')


@pytest.mark.parametrize(
    ("make", "key", "values"),
    [
        (a_file, "cache.store_is_a_file", {}),
        (an_empty_folder, "cache.no_header", {}),
        (another_group, "cache.other_group", {}),
        (another_format, "cache.other_format", {"expected": "layerbank token store", "got": "tokens"}),
    ],
)
def test_what_is_not_a_store_is_refused(
    tmp_path: Path, make: Callable[[Path], None], key: str, values: dict[str, str]
) -> None:
    make(tmp_path / "a.zarr")
    with raises(key, NotAStoreError, store=tmp_path / "a.zarr", **values):
        TokenStore.open(tmp_path / "a.zarr")


def test_a_newer_format_version_is_refused(store: Path) -> None:
    header = store / "zarr.json"
    header.write_text(header.read_text().replace('"format_version": 2', '"format_version": 3'))
    with raises("cache.newer_format", NewerStoreError, store=store, expected=2, got=3):
        TokenStore.open(store)


@pytest.mark.parametrize(
    "alter",
    [
        lambda text: text.replace('"resize 32"', '"resize 33"'),
        lambda text: text.replace("\n", " ", 1),
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"model"', '"modle"'),
    ],
    ids=["a value", "white space", "cut off", "a key"],
)
def test_a_header_that_was_altered_is_refused(store: Path, alter: Callable[[str], str]) -> None:
    header = store / "zarr.json"
    header.write_text(alter(header.read_text()))
    with raises("cache.header_damaged", DamagedStoreError, file=header):
        TokenStore.open(store)


def missing(file: Path) -> None:
    file.unlink()


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("file", "damage", "damages"),
    [
        ("tokens/final/cls/c.1.0", missing, "tokens/final/cls/c.1.0 (rows 240 to 480): missing"),
        ("tokens/final/cls/c.4.0", cut_off, "tokens/final/cls/c.4.0 (rows 960 to 1200): 3837 bytes instead of 3844"),
        ("content_hashes/c.0", missing, "content_hashes/c.0 (rows 0 to 1200): missing"),
        ("content_hashes/c.0", cut_off, "content_hashes/c.0 (rows 0 to 1200): 9597 bytes instead of 9604"),
        ("sample_ids/offsets/c.0", missing, "sample_ids/offsets/c.0 (rows 0 to 1201): missing"),
    ],
)
def test_a_damaged_store_is_refused_with_rows_and_what_to_run(
    store: Path, file: str, damage: Callable[[Path], None], damages: str
) -> None:
    damage(store / file)
    with raises("cache.store_damaged", DamagedStoreError, store=store, damages=damages) as refused:
        TokenStore.open(store)
    assert f"`layerbank cache repair {store}`" in refused.error.todo


def test_many_damages_are_counted_not_listed(store: Path) -> None:
    for chunk in (store / "tokens/final/cls").glob("c.*"):
        chunk.unlink()
    with raises("cache.store_damaged", DamagedStoreError) as refused:
        TokenStore.open(store)
    assert refused.error.values["damages"].endswith("(rows 480 to 720): missing and 2 more")


def test_altered_hashes_are_noticed_at_once(store: Path) -> None:
    raw = bytearray((store / "content_hashes/c.0").read_bytes())
    raw[800] ^= 1
    (store / "content_hashes/c.0").write_bytes(raw)
    with raises("cache.store_damaged", DamagedStoreError, damages="content_hashes/c.0 (rows 0 to 1200): altered"):
        TokenStore.open(store)


def test_a_row_block_that_is_not_in_the_journal_is_refused(store: Path) -> None:
    journal = store / JOURNAL_FOLDER / WORKER_FILE
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2] + lines[3:]))
    with raises("cache.store_damaged", DamagedStoreError) as refused:
        TokenStore.open(store)
    assert "(rows 480 to 720): not in the journal" in refused.error.values["damages"]


def test_a_chunk_of_another_store_is_noticed_when_its_array_is_opened(store: Path) -> None:
    shutil.copy(store / "tokens/norm2/block.0/cls/c.3.0", store / "tokens/final/cls/c.3.0")
    cache = TokenStore.open(store)
    cache.tokens("block.0", "cls")
    damages = "tokens/final/cls/c.3.0 (rows 720 to 960): altered"
    with raises("cache.store_damaged", DamagedStoreError, damages=damages):
        cache.tokens("final", "cls")


def test_the_journal_of_several_workers_is_one(store: Path) -> None:
    """Each worker has a journal file; a reader takes them together."""
    journal = store / JOURNAL_FOLDER / WORKER_FILE
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[1::2]))
    journal.with_name("worker-1.jsonl").write_bytes(b"".join(lines[0::2]))
    assert len(json.loads(lines[0])["entry"]["checksums"]) == 8
    assert TokenStore.open(store).skipped[99] == "image 99 is cut off"


def test_a_tokens_array_is_opened_once(sound: Path) -> None:
    cache = TokenStore.open(sound)
    assert cache.tokens("final", "cls") is cache.tokens("final", "cls")


def test_stores_of_one_block_and_of_one_row_work(tmp_path: Path) -> None:
    for num_rows in (1, 2, 300, 512):
        path = tmp_path / f"{num_rows}.zarr"
        write_store(path, make_spec(num_rows))
        cache = TokenStore.open(path)
        array = cache.arrays["final", "grid2"]
        np.testing.assert_array_equal(
            cache.tokens("final", "grid2").read(0, num_rows), tokens_of(array, hashes_of(range(num_rows)))
        )


def test_blocks_of_several_chunks_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbank.cache.geometry.MAX_CHUNK_BYTES", 2048)
    write_store(tmp_path / "a.zarr")
    cache = TokenStore.open(tmp_path / "a.zarr")
    assert len(list((tmp_path / "a.zarr/tokens/final/grid2").glob("c.*"))) > 30
    for (level, kind), array in cache.arrays.items():
        np.testing.assert_array_equal(cache.tokens(level, kind).read(0, NUM_ROWS), tokens_of(array, hashes_of(ROWS)))
    write_store(tmp_path / "b.zarr", num_batches=7)
    write_store(tmp_path / "b.zarr")
    assert tree(tmp_path / "b.zarr") == tree(tmp_path / "a.zarr")
