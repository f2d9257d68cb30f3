"""The format specification says what the code does: each of its tables, its example and its test vector."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from token_stores import (
    make_arrays,
    make_spec,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank import cache
from layerbank.cache import CacheSpec, TokenCache, geometry
from layerbank.cache.header import FORMAT, FORMAT_VERSION
from layerbank.cache.journal import JOURNAL_FOLDER, WORKER_FILE
from layerbank.cache.maintenance.hdf5 import HEADER_ATTRIBUTE, JOURNAL_DATASET
from layerbank.cache.maintenance.verify import FOREIGN
from layerbank.cache.spec import (
    COMPUTE_DTYPES,
    IDENTITY_FIELDS,
    LABEL_FIELDS,
    MODULE_TAP,
    STORAGE_DTYPES,
    TAPS,
    storage_dtypes_text,
)

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
    arrays = make_arrays(levels=["final"])
    write_store(path, arrays=arrays, parity={array.name: {"cosine_min": 0.9999} for array in arrays})
    return path


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    scope: dict[str, object] = {}
    exec(example[1], scope)
    spec, opened = scope["spec"], scope["cache"]
    assert isinstance(spec, CacheSpec)
    assert isinstance(opened, TokenCache)
    assert opened.num_rows == 1000
    assert f"`{spec.fingerprint}`" in README


def test_every_file_of_a_store_is_one_of_the_paths(store: Path) -> None:
    paths = [path for path, _ in table("path")]
    assert paths == [
        "zarr.json",
        "tokens/<level>/<kind>",
        *("labels", "sample_ids/bytes", "sample_ids/offsets", "content_hashes"),
        *(f"{JOURNAL_FOLDER}/worker-<w>.jsonl", f"{JOURNAL_FOLDER}/aside~*"),
    ]
    patterns = [re.sub(r"<\w+>", "[^/]+", path) for path in paths if not path.endswith("*")]
    for name in tree(store):
        array = re.sub(r"/(zarr\.json|c\.[0-9.]+)$", "", name)
        assert any(re.fullmatch(pattern, array) for pattern in patterns) or name.endswith("zarr.json"), name
    assert f"{JOURNAL_FOLDER}/{WORKER_FILE}" in tree(store)


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
        Path(name).parent.as_posix() for name in tree(store) if Path(name).name.startswith("c.")
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
    attributes = json.loads((store / "zarr.json").read_bytes())["attributes"]
    assert list(attributes) == [name for name, _ in table("attribute")]
    said = dict(table("attribute"))
    assert (said["format"], said["format_version"]) == (FORMAT, str(FORMAT_VERSION))
    for name in ("arrays", "notes", "static"):
        values = attributes[name] if name == "notes" else next(iter(attributes[name].values()))
        assert all(key in said[name] for key in values), name


def test_the_spec_has_these_fields() -> None:
    rows = table("spec field")
    assert [name for name, role, _ in rows if role == "identity"] == list(IDENTITY_FIELDS)
    assert [name for name, role, _ in rows if role == "label"] == list(LABEL_FIELDS)
    values = {name: allowed for name, _, allowed in rows}
    assert values["tap"].startswith(", ".join(TAPS) + f", or {MODULE_TAP} and a pattern")
    assert values["compute_dtype"] == ", ".join(COMPUTE_DTYPES)
    *plain, example = values["storage_dtype"].split(", ")
    assert plain == list(STORAGE_DTYPES)
    assert storage_dtypes_text(example.split(": ")[1]) == example.split(": ")[1]


def test_a_journal_entry_has_these_keys(store: Path) -> None:
    line = json.loads((store / JOURNAL_FOLDER / WORKER_FILE).read_bytes().splitlines()[0])
    assert set(line) == {"crc32c", "entry"}
    assert set(line["entry"]) == {name for name, _ in table("key of an entry")}


def test_the_problems_are_those_that_the_code_tells() -> None:
    folder = Path(cache.__file__).parent
    source = (folder / "verify.py").read_text() + (folder / "format.py").read_text()
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
    np.testing.assert_array_equal(values, TokenCache.open(store).tokens("final", "cls").read(720, 960))
