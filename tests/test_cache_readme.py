"""The format specification says what the code does: each of its tables, its example and its test vector."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from token_stores import (
    VIEW_RULE,
    make_arrays,
    make_parity,
    make_rows,
    make_spec,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank import cache
from layerbank.cache import HASH_RULE, ModelSpec, RowSet, Target, TokenStore, TokenView, geometry, write_target
from layerbank.cache.header import FORMAT, FORMAT_VERSION, MAX_HEADER_BYTES
from layerbank.cache.header_values import ARRAY_FIELDS, OPTIONAL, REQUIRED, ROWS_FIELDS, STATIC_FIELDS
from layerbank.cache.journal import CHECKED_FILE, JOURNAL_FOLDER, WORKER_FILE
from layerbank.cache.maintenance.hdf5 import HEADER_ATTRIBUTE, JOURNAL_DATASET
from layerbank.cache.maintenance.verify import FOREIGN
from layerbank.cache.spec import (
    COMPUTE_DTYPES,
    MODEL_FIELDS,
    MODULE_TAP,
    STORAGE_DTYPES,
    storage_dtypes_text,
    tap_folder,
)
from layerbank.cache.targets import POINTERS, TARGET_TYPES, TARGETS

README = (Path(cache.__file__).parent / "README.md").read_text()


def table(first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column is called so, without back-quotes."""
    lines = README.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme") / "a.zarr"
    arrays = [*make_arrays(["final"], ["cls"]), *make_arrays(["block.0"], ["grid2"])]
    parity = {array.name: make_parity() for array in arrays}
    rows = make_rows(np.arange(1200), np.arange(1200) % 2)
    write_store(path, make_spec(rows=rows), arrays, rows=rows, parity=parity, sizes=np.arange(1200))
    write_target(
        path, "label", Target(values=np.zeros(1200, np.int64), type="multiclass", class_names=["a"]), num_rows=1200
    )
    return path


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    scope: dict[str, object] = {}
    exec(example[1], scope)
    model, rows, view = scope["model"], scope["rows"], scope["view"]
    assert isinstance(model, ModelSpec)
    assert isinstance(rows, RowSet)
    assert isinstance(view, TokenView)
    assert view.num_rows == 500
    assert f"`{model.digest}`" in README
    assert f"`{rows.digest}`" in README


def test_the_digest_of_rows_can_be_computed_from_the_text() -> None:
    line = re.search(r"`(layerbank rows, .*?)`", README)
    assert line is not None
    rows = make_rows([5, 6, 7], [0, 0, 3])
    head = line[1].replace("<N>", "3").replace("<view rule, or none>", VIEW_RULE) + "\n"
    data = head.encode() + rows.hashes.astype("<u8").tobytes() + np.array([0, 0, 3], "<u2").tobytes()
    assert hashlib.sha256(data).hexdigest() == rows.digest
    assert f"hash rule {HASH_RULE}" in line[1]


def test_every_file_of_a_store_is_one_of_the_paths(store: Path) -> None:
    paths = [path for path, _ in table("path")]
    in_journal = [path.removeprefix(f"{JOURNAL_FOLDER}/") for path in paths[-3:]]
    assert in_journal == ["worker-<w>.jsonl", CHECKED_FILE, "aside~*"]
    assert [path.split("/<")[0] for path in paths if "<target>" in path] == [TARGETS, POINTERS]
    patterns = [re.sub(r"<\w+>", "[^/]+", path) for path in paths if not path.endswith("*")]
    for name in tree(store):
        array = re.sub(r"/(zarr\.json|c\.[0-9.]+)$", "", name)
        assert any(re.fullmatch(pattern, array) for pattern in patterns) or name.endswith("zarr.json"), name
    assert f"{JOURNAL_FOLDER}/{WORKER_FILE}" in tree(store)
    tap = re.search(r"`(module:[^`]*norm2)` is `([^`]*)`", README)
    assert tap is not None
    assert tap_folder(tap[1]) == tap[2]
    assert tap[1].startswith(MODULE_TAP)


def test_the_arrays_are_as_the_table_says(store: Path) -> None:
    spec = make_spec()
    for name, shape, dtype, dimensions, chunk in table("array"):
        array = zarr.open_array(store / name, mode="r")
        sizes = {
            "N": spec.num_rows,
            "N + 1": spec.num_rows + 1,
            "D": 8,
            "T": 4,
            "bytes": array.shape[0],
            "R": 240,
            "r": 240,
        }
        assert [sizes[size] for size in shape.strip("[]").split(", ")] == list(array.shape), name
        assert [sizes[size] for size in chunk.strip("[]").split(", ")] == list(array.chunks), name
        assert array.dtype == {"storage": "float16"}.get(dtype, dtype), name
        assert dimensions.split(", ") == list(array.metadata.dimension_names), name  # type: ignore[union-attr, arg-type]
        meta = json.loads((store / name / "zarr.json").read_bytes())
        assert meta["codecs"] == [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}] or (
            dtype == "uint8" and [codec["name"] for codec in meta["codecs"]] == ["bytes", "crc32c"]
        ), name
        assert meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
        assert meta["fill_value"] == 0
        assert ("logical_dtype" in meta["attributes"]) == name.startswith("tokens/")
    assert {name for name, *_ in table("array")} == {
        Path(name).parent.as_posix()
        for name in tree(store)
        if Path(name).name.startswith("c.") and not name.startswith(TARGETS)
    }


def test_storage_dtypes_are_as_the_table_says() -> None:
    assert {storage: on_disk for storage, on_disk, _ in table("storage dtype")} == STORAGE_DTYPES
    assert all(logical == storage for storage, _, logical in table("storage dtype"))


def test_constants_and_geometry_are_as_the_tables_say() -> None:
    for name, value in table("constant"):
        numbers = tuple(int(number) for number in value.split(", "))
        assert getattr(geometry, name) == (numbers if len(numbers) > 1 else numbers[0]), name
    constants = {name for name in vars(geometry) if name.isupper()}
    assert constants == {name for name, _ in table("constant")}
    for cells in table("N"):
        rows, block, narrow, wide = (int(cell) for cell in cells)
        assert geometry.rows_per_block(rows) == block
        assert geometry.rows_per_chunk(rows, 768) == narrow
        assert geometry.rows_per_chunk(rows, 197_376) == wide


def test_the_header_has_these_attributes_in_this_order(store: Path) -> None:
    raw = (store / "zarr.json").read_bytes()
    attributes = json.loads(raw)["attributes"]
    assert list(attributes) == [name for name, _ in table("attribute")]
    said = dict(table("attribute"))
    assert (said["format"], said["format_version"]) == (FORMAT, str(FORMAT_VERSION))
    assert list(attributes["required"]) == [name for name, _ in table("required attribute")] == list(REQUIRED)
    assert list(attributes["optional"]) == [name for name, _ in table("optional attribute")] == list(OPTIONAL)
    said = dict(table("required attribute"))
    for name, fields in (("rows", ROWS_FIELDS), ("arrays", ARRAY_FIELDS), ("static", STATIC_FIELDS)):
        entry = attributes["required"][name]
        assert list(entry if name == "rows" else next(iter(entry.values()))) == list(fields), name
        assert all(field in said[name] for field in fields), name
    assert all(key in dict(table("optional attribute"))["notes"] for key in attributes["optional"]["notes"])
    blank = raw.replace(attributes["header_crc32c"].encode(), b"00000000")
    assert f"{google_crc32c.value(blank):08x}" == attributes["header_crc32c"]
    assert f"at most {MAX_HEADER_BYTES >> 20} MiB" in README


def test_the_model_has_these_fields(store: Path) -> None:
    rows = table("model field")
    assert [name for name, role, _ in rows if role == "identity"] == list(MODEL_FIELDS)
    assert [name for name, _, _ in rows] == list(make_spec().model.to_dict())
    values = {name: allowed for name, _, allowed in rows}
    assert values["compute_dtype"] == ", ".join(COMPUTE_DTYPES)
    *plain, example = values["storage_dtype"].split(", ")
    assert plain == list(STORAGE_DTYPES)
    assert storage_dtypes_text(example.split(": ")[1]) == example.split(": ")[1]
    assert list(json.loads((store / "zarr.json").read_bytes())["attributes"]["required"]["model"]) == list(MODEL_FIELDS)


def test_a_target_has_these_attributes(store: Path) -> None:
    (folder,) = (path for path in (store / TARGETS).iterdir() if path.is_dir())
    attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]
    assert list(attributes) == [name for name, _ in table("target attribute")]
    assert dict(table("target attribute"))["type"] == ", ".join(TARGET_TYPES)
    pointer = json.loads((store / POINTERS / "label.json").read_bytes())
    assert all(f"`{key}`" in README for key in pointer)
    assert folder.name == f"label.{pointer['digest'][:8]}"


def test_a_journal_entry_has_these_keys(store: Path) -> None:
    line = json.loads((store / JOURNAL_FOLDER / WORKER_FILE).read_bytes().splitlines()[0])
    assert set(line) == {"crc32c", "entry"}
    assert set(line["entry"]) == {name for name, _ in table("key of an entry")}


def test_the_problems_are_those_that_the_code_tells() -> None:
    folder = Path(cache.__file__).parent
    source = "".join((folder / name).read_text() for name in ("maintenance/verify.py", "format.py", "journal.py"))
    for problem, _ in table("problem"):
        assert f'"{problem}"' in source, problem
    assert FOREIGN in [problem for problem, _ in table("problem")]


def test_the_names_in_the_hdf5_section_are_those_of_the_code() -> None:
    assert f"attribute `{HEADER_ATTRIBUTE}`" in README.replace("\n", " ")
    assert f"dataset `{JOURNAL_DATASET}`" in README.replace("\n", " ")


def test_an_independent_reader_can_follow_the_text(store: Path) -> None:
    """The chunk of a [N, D] array, read with nothing but this text."""
    raw = (store / "tokens/final/cls/c.3.0").read_bytes()
    values = np.frombuffer(raw[:-4], "<f2").reshape(240, 8)
    np.testing.assert_array_equal(values, TokenStore.open(store).tokens("final", "cls").read(720, 960))
