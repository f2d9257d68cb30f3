"""A store as one .npz or .parquet file: the usable rows, with ids and targets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import run
from messages import raises, refuses
from small_stores import small_labels, write_small_store

from layerbank.cache import SpecError, Target, TokenStore, write_features, write_target

NUM_ROWS = 1200


@pytest.fixture(params=["float16", "float32", "bfloat16"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of 1200 rows, of which every hundredth cannot be used, with two targets."""
    path = write_small_store(tmp_path / "caches", request.param, NUM_ROWS).stores[0]
    names = ["circle", "square", "star"]
    label = Target(values=small_labels(NUM_ROWS), type="multiclass", class_names=names)
    write_target(path, "label", label, num_rows=NUM_ROWS)
    write_target(path, "age", Target(values=np.arange(NUM_ROWS) / 2, type="regression"), num_rows=NUM_ROWS)
    return path


def tokens_of(store: TokenStore, level: str, kind: str) -> np.ndarray:
    """The usable rows as float32."""
    usable = np.array([row for row in range(store.num_rows) if row not in store.skipped])
    tokens = store.tokens(level, kind)
    values = tokens.take(usable)
    if tokens.logical_dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def test_npz_has_tokens_ids_and_targets(store: Path, tmp_path: Path) -> None:
    result = run("cache", "to", store, tmp_path / "a.npz")
    assert result.exit_code == 0
    assert "1,188 images" in result.output
    opened = TokenStore.open(store)
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == {
            *("ids", "content_hashes", "targets/label", "targets/age", "class_names/label"),
            *("target_types/label", "target_types/age"),
            *(f"{level}/{kind}" for level, kind in opened.arrays),
        }
        for level, kind in opened.arrays:
            assert np.array_equal(arrays[f"{level}/{kind}"].astype(np.float32), tokens_of(opened, level, kind))
        assert arrays["ids"][[0, 98, 99]].tolist() == ["image 0", "image 98", "image 100"]
        assert arrays["targets/age"][99] == 50.0
        assert arrays["class_names/label"][arrays["targets/label"][-1]] == "star"
        assert arrays["content_hashes"][99] == opened.rows.hashes[100]


def test_parquet_has_a_row_an_image(store: Path, tmp_path: Path) -> None:
    assert write_features(store, tmp_path / "a.parquet") == 1188
    table, opened = pq.read_table(tmp_path / "a.parquet"), TokenStore.open(store)
    assert table.column_names[:2] == ["id", "content_hash"]
    assert table.column("targets/label").to_pylist()[-1] == "star"
    assert table.column("targets/age").to_pylist()[99] == 50.0
    for level, kind in opened.arrays:
        wanted = tokens_of(opened, level, kind)
        column = table.column(f"{level}/{kind}")
        assert np.array_equal(np.array(column.to_pylist(), np.float32).reshape(wanted.shape), wanted)
        shape = table.schema.field(f"{level}/{kind}").metadata[b"shape"].decode()
        assert shape == " ".join(map(str, wanted.shape[1:]))


def test_files_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_small_store(tmp_path / "caches").stores[0]
    refuses(run("cache", "to", store, tmp_path / "a.csv"), "cache.unknown_features_file")
    refuses(run("cache", "to", store, tmp_path / "a.npz", "--tap", "nothing"), "cache.choose_tap", tap="nothing")
    (tmp_path / "a.npz.partial").write_bytes(b"mine")
    answer = json.loads(run("cache", "to", store, tmp_path / "a.npz", "--json").stdout)
    assert answer == {"file": str(tmp_path / "a.npz"), "num_images": 594}
    assert (tmp_path / "a.npz.partial").read_bytes() == b"mine"
    with raises("cache.path_taken", SpecError):
        write_features(store, tmp_path / "a.npz")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with raises("cache.no_pyarrow", SpecError, file="a.parquet"):
        write_features(store, tmp_path / "a.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"caches", "a.npz", "a.npz.partial"}
