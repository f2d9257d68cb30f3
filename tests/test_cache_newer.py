"""What a newer layerbank wrote is named and left as it is; what anyone else wrote is one of our errors, quickly."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from commands import run
from messages import raises
from token_stores import (
    make_arrays,
    make_model,
    make_parity,
    make_rows,
    make_spec,
    tree,
    wanted,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import (
    CacheError,
    CacheWriter,
    DamagedStoreError,
    ModelStores,
    NewerStoreError,
    TokenStore,
    TokenView,
    array_key,
    check_request,
    export_hdf5,
    find_garbage,
    find_unfinished,
    forecast_store,
    import_hdf5,
    list_stores,
    merge_stores,
    repair_store,
    verify_store,
)
from layerbank.cache.header import MAX_HEADER_BYTES
from layerbank.cache.journal import JOURNAL_FOLDER, WORKER_FILE, parse_line
from layerbank.cache.writing.locking import worker_file

KEY = array_key("norm2", "block.0", "cls")
JOURNAL = f"{JOURNAL_FOLDER}/{WORKER_FILE}"
ARRAY = "tokens/norm2/block.0/cls"


def rewrite(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the attributes of a header, and give it the checksum that belongs to it, as another program could."""
    document = json.loads((store / "zarr.json").read_bytes())
    attributes = document["attributes"]
    del attributes["header_crc32c"]
    change(attributes)
    attributes["header_crc32c"] = "0" * 8
    raw = json.dumps(document, indent=2).encode()
    (store / "zarr.json").write_bytes(
        raw.replace(b"0" * 8 + b'"\n  }\n}', f"{google_crc32c.value(raw):08x}".encode() + b'"\n  }\n}')
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "a.zarr"
    write_store(path)
    return path


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A cache folder with one store, at its place."""
    shutil.copytree(sound, make_spec().path(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.fixture
def store(root: Path) -> Path:
    return make_spec().path(root)


def test_a_header_that_another_program_writes_with_the_right_checksum_is_read(store: Path, sound: Path) -> None:
    rewrite(store, lambda attributes: None)
    assert tree(store) == tree(sound)


# An optional attribute that is not known


def later(attributes: dict[str, Any]) -> None:
    attributes["optional"]["licence"] = {"name": "CC0", "years": [2027, None]}


def licence_of(store: Path) -> Any:
    return json.loads((store / "zarr.json").read_bytes())["attributes"]["optional"].get("licence")


def test_an_unknown_optional_attribute_is_kept_through_every_rewrite(store: Path, tmp_path: Path) -> None:
    shutil.rmtree(store)
    write_store(store, num_batches=7)
    rewrite(store, later)
    write_store(store, num_batches=9)  # resumed
    write_store(store)  # completed
    assert TokenStore.open(store).num_rows == 1200
    write_store(store, arrays=make_arrays(["block.1"]))  # arrays added
    chunk = store / ARRAY / "c.1.0"
    chunk.write_bytes(b"short")
    repair_store(store)  # the header is no longer complete
    write_store(store)
    (store / "sample_ids/bytes/c.0").unlink()
    write_store(store)  # restored
    assert licence_of(store) == {"name": "CC0", "years": [2027, None]}
    assert verify_store(store) == []
    export_hdf5(store, tmp_path / "a.h5")
    import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    assert tree(tmp_path / "b.zarr") == tree(store)
    (info,) = list_stores(store.parent)
    assert info.problem is None


def test_a_store_may_lack_every_optional_attribute(store: Path, root: Path) -> None:
    rewrite(store, lambda attributes: attributes["optional"].clear())
    opened = TokenStore.open(store)
    assert (opened.spec.name, opened.spec.model.name, opened.attributes, opened.parity) == (
        "unnamed",
        "unnamed",
        {},
        {},
    )
    assert ModelStores(root, make_model()).find(wanted(1200), [KEY]).store.tolist() == [0] * 1200


# What means a newer version


def newer_version(attributes: dict[str, Any]) -> None:
    attributes["format_version"] = 3


def required(attributes: dict[str, Any]) -> None:
    attributes["required"]["encryption"] = "aes"


def at_the_top(attributes: dict[str, Any]) -> None:
    attributes["signature"] = "f00"


def of_an_array(attributes: dict[str, Any]) -> None:
    attributes["required"]["arrays"][ARRAY]["scale"] = 0.1


def of_a_static_array(attributes: dict[str, Any]) -> None:
    attributes["required"]["static"]["content_hashes"]["chunks"] = 2


def of_the_model(attributes: dict[str, Any]) -> None:
    attributes["required"]["model"]["adapter"] = "lora"


def of_the_rows(attributes: dict[str, Any]) -> None:
    attributes["required"]["rows"]["crop_rule"] = "2"


def hash_rule(attributes: dict[str, Any]) -> None:
    attributes["required"]["rows"]["hash_rule"] = 3


def storage_dtype(attributes: dict[str, Any]) -> None:
    attributes["required"]["model"]["storage_dtype"] = "float16,cls=float8"


NEWER = {
    newer_version: ("cache.newer_format", {"expected": 2, "got": 3}),
    required: ("cache.newer_attributes", {"unknown": "encryption"}),
    at_the_top: ("cache.newer_attributes", {"unknown": "signature"}),
    of_an_array: ("cache.newer_attributes", {"unknown": "arrays.scale"}),
    of_a_static_array: ("cache.newer_attributes", {"unknown": "static.chunks"}),
    of_the_model: ("cache.newer_attributes", {"unknown": "model.adapter"}),
    of_the_rows: ("cache.newer_attributes", {"unknown": "rows.crop_rule"}),
    hash_rule: ("cache.newer_attributes", {"unknown": "hash rule 3"}),
    storage_dtype: ("cache.newer_attributes", {"unknown": "dtype float8"}),
}


@pytest.mark.parametrize("change", NEWER)
def test_a_store_of_a_newer_version_is_named_and_not_touched(root: Path, change: Any, tmp_path: Path) -> None:
    key, values = NEWER[change]
    spec = make_spec()
    store = spec.path(root)
    export_hdf5(store, tmp_path / "a.h5")
    rewrite(store, change)
    (store / JOURNAL_FOLDER / "aside~of a newer kind").write_text("half")
    (store / JOURNAL).write_bytes((store / JOURNAL).read_bytes()[:-9])
    worker_file(store, 3).write_text("{}")
    store.with_name(f"{store.name}.old").mkdir()
    before = tree(root)
    refused: list[Callable[[], object]] = [
        lambda: TokenStore.open(store),
        lambda: verify_store(store),
        lambda: repair_store(store, remove_foreign=True),
        lambda: export_hdf5(store, tmp_path / "b.h5"),
        lambda: forecast_store(
            store,
            check_request(spec.model, make_rows(), make_arrays(), name="a", sample_ids=["a"] * 1200, batch_size=9),
        ),
    ]
    for call in refused:
        with raises(key, NewerStoreError, store=store, **values):
            call()
    (info,) = list_stores(root)
    assert (info.path, info.state, getattr(info.problem, "key", None)) == (store, "unreadable", key)
    assert find_garbage(root, unfinished_for_s=0.0) == find_unfinished(root) == []
    assert ModelStores(root, spec.model).stores == []
    assert tree(root) == before
    for overwrite in (False, True):
        with raises(key, NewerStoreError, store=store):
            write_store(store, overwrite=overwrite)
    assert tree(store) == {name.split(".zarr/", 1)[1]: raw for name, raw in before.items() if ".zarr/" in name}


# Headers and journals of hostile content


def rows(value: object) -> Callable[[dict[str, Any]], None]:
    return lambda attributes: attributes["required"]["rows"].update(num_rows=value)


def many_rows(attributes: dict[str, Any]) -> None:
    """Every size of the header fits, only the files do not."""
    attributes["required"]["rows"]["num_rows"] = 10**15
    static = attributes["required"]["static"]
    static["content_hashes"]["shape"], static["sample_ids/offsets"]["shape"] = [10**15], [10**15 + 1]


def many_blocks(attributes: dict[str, Any]) -> None:
    many_rows(attributes)
    attributes["required"]["block_rows"] = 1
    for entry in attributes["required"]["arrays"].values():
        entry["chunk_rows"] = 1


def entry(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda attributes: attributes["required"]["arrays"][ARRAY].update(values)


def value(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(attributes: dict[str, Any]) -> None:
        place = attributes
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


HOSTILE = [
    *(rows(number) for number in (10**15, 0, -1, 1200.0, True, "1200", None, [1200], 1201)),
    many_rows,
    many_blocks,
    *(entry(row_shape=shape) for shape in ([], [0], [-8], [8.0], ["8"], [8, 8, 8], 8, [10**15], [1] * 10**4)),
    *(entry(chunk_rows=number) for number in (0, -1, 7, 2.4, 10**15, None)),
    *(entry(state=state) for state in ("done", None, ["complete"])),
    *(entry(level=level) for level in ("block.1", "../../x", 5, "")),
    entry(tap="../.."),
    *(value("required", "block_rows", to=number) for number in (0, -240, 10**15, 240.0, "240")),
    *(value("required", "batch_size", to=number) for number in (0, "60", 10**400)),
    value("required", "arrays", to={}),
    value("required", "arrays", to=[]),
    value("required", "state", to="writing"),
    value("required", "model", to=None),
    value("required", "model", "weights", to=["0" * 16]),
    value("required", "model", "storage_dtype", to=3),
    value("required", "rows", "digest", to="no digest"),
    value("required", "rows", "view_rule", to=nested(100)),
    value("required", "static", "content_hashes", "dtype", to="object"),
    value("required", "static", "content_hashes", "shape", to=[1200, 1]),
    value("required", "static", "../x", to={"shape": [1], "dtype": "uint8", "crc32c": "0" * 8}),
    value("required", "static", to={}),
    value("required", "metadata", to={"../../../etc/passwd": "0" * 8}),
    value("required", "metadata", to={"tokens/zarr.json": 7}),
    value("required", to=[]),
    value("optional", to=None),
    value("optional", "names", to="a"),
    value("optional", "names", "data", to=["a"]),
    value("optional", "notes", to=nested(900)),
    *(
        value("optional", "parity", to={ARRAY: one})
        for one in (
            7,
            {},
            {"cosine_min": 0.9},
            make_parity() | {"cosine_min": None},
            make_parity() | {"cosine_mean": "x"},
            make_parity(cosine_min=float("nan")),
            make_parity(max_relative_error=float("inf")),
            make_parity() | {"saturated": [1]},
            make_parity(cosine_mean=10**400),
            make_parity(num_images=-1),
            make_parity(nonfinite=0.5),
        )
    ),
    value("optional", "attributes", to=list(range(100_000))),
    value("format_version", to="2"),
    value("format_version", to=0),
    value("format_version", to=[2]),
]


@pytest.mark.parametrize("change", HOSTILE)
def test_a_hostile_header_is_one_of_our_errors_quickly(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    store = make_spec().path(root)
    rewrite(store, change)
    before, started = tree(root), time.process_time()
    (info,) = list_stores(root)
    assert info.missing_rows is not None
    assert info.num_blocks_done <= 5
    find_garbage(root, unfinished_for_s=1.0)
    find_unfinished(root)
    ModelStores(root, make_model()).find(wanted(5), [KEY])
    with pytest.raises(CacheError):
        TokenStore.open(store).tokens("block.0", "cls")
    with pytest.raises(CacheError):
        TokenView.open(root, make_model(), wanted(5), [("block.0", "cls")])
    assert verify_store(store) != []
    assert time.process_time() - started < 5
    assert tree(root) == before
    with suppress(CacheError):  # refused, or made again from what agrees
        write_store(store)
        assert verify_store(store) == []


def test_a_header_of_any_size_is_read_no_further_than_its_limit(store: Path) -> None:
    for raw in (b"[" * 100_000, b'{"a":' * 100_000, b"layerbank token store" * 10, b"\xff" * 1000, b"1" * 10_000):
        (store / "zarr.json").write_bytes(raw)
        with pytest.raises(CacheError):
            TokenStore.open(store)
    with open(store / "zarr.json", "r+b") as file:
        file.truncate(10**12)  # takes no disk space
    with raises("cache.header_damaged", DamagedStoreError):
        TokenStore.open(store)
    assert 10**6 < MAX_HEADER_BYTES < 10**8


def test_a_header_that_is_no_file_is_not_read(store: Path) -> None:
    (store / "zarr.json").unlink()
    (store / "zarr.json").mkdir()
    with raises("cache.store_unreadable", store=store, reason="zarr.json is not a file"):
        TokenStore.open(store)
    (info,) = list_stores(store.parent)
    assert info.problem is not None


def line(**values: object) -> bytes:
    record = {"block": 0, "checksums": {ARRAY: ["00000000"]}, "skipped": [], "saturated": {}, "nonfinite": {}} | values
    text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return b'{"crc32c":"%08x","entry":%s}\n' % (google_crc32c.value(text), text)


BAD_LINES = [
    *(line(block=block) for block in ("0", None, 1.0, -1, True, [0], {})),
    *(line(checksums=sums) for sums in ([], None, {ARRAY: 7}, {ARRAY: [7]}, {ARRAY: None})),
    *(line(skipped=rows) for rows in ([[1]], [["1", "a"]], [[-1, "a"]], [[1, 2]], [[[1], "a"]], 7)),
    *(line(saturated=counts) for counts in ({ARRAY: "1"}, {ARRAY: -1}, {ARRAY: None}, {ARRAY: 10**4000}, [])),
    line(extra=1),
    b"[" * 100_000 + b"\n",
    b'{"entry":' * 100_000 + b"\n",
    b"1" * 10_000 + b"\n",
    b"\xff\x00\n",
]


@pytest.mark.parametrize("raw", BAD_LINES)
def test_a_line_of_the_journal_with_wrong_types_is_damage(store: Path, raw: bytes, sound: Path) -> None:
    assert parse_line(raw) is None
    (store / JOURNAL).write_bytes((sound / JOURNAL).read_bytes() + raw)
    assert [damage.file for damage in verify_store(store)] == [JOURNAL] * len(raw.splitlines())
    assert TokenStore.open(store).num_rows == 1200
    repair_store(store)
    assert tree(store) == tree(sound)


STRAY_LINES = [
    line(block=10**15),
    line(block=5),
    line(skipped=[[10**15, "far away"]]),
    line(skipped=[[1199, "of another row block"]]),
    line(checksums={"tokens/x": ["00000000"]}),
]


@pytest.mark.parametrize("raw", STRAY_LINES)
def test_a_line_about_what_does_not_exist_costs_nothing_and_is_named(root: Path, raw: bytes, sound: Path) -> None:
    store = make_spec().path(root)
    (store / JOURNAL).write_bytes(raw + (sound / JOURNAL).read_bytes())
    started = time.process_time()
    (info,) = list_stores(root)
    assert (info.num_blocks_done, info.missing_rows) == (5, [])
    view = TokenView.open(root, make_model(), wanted(1200), [("block.0", "cls")])
    assert np.flatnonzero(view.positions < 0).tolist() == list(range(99, 1200, 100))
    assert {damage.file for damage in verify_store(store)} == {JOURNAL_FOLDER, JOURNAL}
    assert TokenStore.open(store).skipped == TokenStore.open(sound).skipped
    assert run("cache", "info", store).exit_code == 0
    assert merge_stores([store], root, name="merged").num_rows == 1200
    assert write_store(store) == []
    assert time.process_time() - started < 5
    repair_store(store)
    assert tree(store) == tree(sound)


def test_a_journal_of_many_row_blocks_is_read_in_linear_time(store: Path) -> None:
    seconds = []
    for num in (2_000, 8_000):
        (store / JOURNAL).write_bytes(b"".join(line(block=block) for block in range(num)))
        started = time.process_time()
        (info,) = list_stores(store.parent)
        assert len(info.journal.entries) == num
        seconds.append(time.process_time() - started)
    assert seconds[1] < 12 * seconds[0]


def test_a_writer_with_other_rows_does_not_believe_a_hostile_store(store: Path) -> None:
    rewrite(store, many_rows)
    with pytest.raises(CacheError):
        CacheWriter.open(
            store,
            make_model(),
            make_rows(),
            make_arrays(),
            name="a",
            sample_ids=["a"] * 1200,
            batch_size=9,
        )
