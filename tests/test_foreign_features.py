"""Stores of features that other tools have computed."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run
from messages import raises, refuses
from small_stores import small_labels, write_small_store

from layerbank.cache import (
    SpecError,
    Target,
    TokenStore,
    list_targets,
    read_target,
    verify_store,
    write_features,
    write_target,
)
from layerbank.cache.maintenance.foreign_features import TRANSFORM, store_features

RANDOM = np.random.default_rng(0)
NUM = 150
FEATURES = RANDOM.normal(size=(NUM, 8)).astype(np.float32)
DEEP = RANDOM.normal(size=(NUM, 3, 8)).astype(np.float16)
IDS = np.array([f"a/{row}.png" for row in range(NUM)])
LABELS = np.arange(NUM) % 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("extension", ["npz", "parquet"])
def test_what_was_written_comes_back_with_equal_tokens_ids_and_targets(
    dtype: str, extension: str, tmp_path: Path
) -> None:
    path = write_small_store(tmp_path / "caches", dtype, 600).stores[0]
    targets = {
        "label": Target(values=small_labels(600), type="multiclass", class_names=["circle", "square", "star"]),
        "age": Target(values=np.arange(600) / 2, type="regression"),
        "grade": Target(values=np.arange(600) % 4, type="ordinal"),
        "signs": Target(values=RANDOM.integers(0, 2, (600, 5)).astype(float), type="multilabel"),
    }
    for name, target in targets.items():
        write_target(path, name, target, num_rows=600)
    first, second, again = (tmp_path / f"{name}.{extension}" for name in ("first", "second", "again"))
    write_features(path, first)
    store = store_features(first, tmp_path / "other")
    assert not verify_store(store)
    write_features(store, second)
    original, copy = TokenStore.open(path), TokenStore.open(store)
    usable = [row for row in range(600) if row not in original.skipped]
    assert copy.sample_ids[:] == [original.sample_ids[row] for row in usable]
    assert list(copy.arrays) == list(original.arrays)
    for level, kind in original.arrays:
        wanted, got = (one.tokens(level, kind) for one in (original, copy))
        values = wanted.take(np.array(usable))
        if wanted.logical_dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(got.take(np.arange(len(usable))), values)
    for name, target in targets.items():
        kept = read_target(store, name, num_rows=len(usable))
        assert np.array_equal(kept.values, target.values[usable])
        assert (kept.type, list(kept.class_names)) == (target.type, list(target.class_names))
    assert store_features(second, tmp_path / "third").name.rpartition("-")[2] == store.name.rpartition("-")[2]
    assert not again.exists()


def test_arrays_of_a_usual_name_are_found_with_ids_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=FEATURES, ids=IDS, labels=LABELS)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"], file["file_names"], file["y"] = FEATURES, IDS.tolist(), LABELS
    table = {"id": IDS.tolist(), "features": pa.array(FEATURES.tolist(), pa.list_(pa.float32())), "label": LABELS}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    stores = [store_features(tmp_path / f"a.{one}", tmp_path / one, model="clip") for one in ("npz", "h5", "parquet")]
    assert len({store.name for store in stores}) == len({store.parent.name for store in stores}) == 1
    for store in stores:
        opened = TokenStore.open(store)
        assert np.array_equal(opened.tokens("final", "cls").take(np.arange(NUM)), FEATURES)
        assert opened.sample_ids[:] == IDS.tolist()
        target = read_target(store, "label", num_rows=NUM)
        assert (target.values.tolist(), target.type) == (LABELS.tolist(), "multiclass")
        assert opened.spec.model.transform == TRANSFORM
        assert opened.attributes["features"]["rows"] == TRANSFORM


def test_other_features_are_other_rows_and_another_model_is_another_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=FEATURES)
    store = store_features(tmp_path / "a.npz", tmp_path)
    assert store_features(tmp_path / "a.npz", tmp_path) == store
    assert store_features(tmp_path / "a.npz", tmp_path, model="other").parent != store.parent
    np.savez(tmp_path / "a.npz", features=FEATURES + 1)
    assert store_features(tmp_path / "a.npz", tmp_path).parent == store.parent
    assert len(list(store.parent.glob("*.zarr"))) == 2
    assert list_targets(store) == []


def test_the_second_axis_is_levels_or_tokens_as_the_user_says(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=DEEP)
    refuses(run("cache", "from", tmp_path / "a.npz", "--cache", tmp_path / "c"), "cache.second_axis")
    result = run("cache", "from", tmp_path / "a.npz", "--cache", tmp_path / "c", "--second-axis", "levels")
    opened = TokenStore.open(result.stdout.strip())
    assert list(opened.arrays) == [("block.0", "cls"), ("block.1", "cls"), ("final", "cls")]
    assert np.array_equal(opened.tokens("block.1", "cls").take(np.arange(NUM)), DEEP[:, 1])
    tokens = TokenStore.open(store_features(tmp_path / "a.npz", tmp_path / "d", second_axis="tokens"))
    assert np.array_equal(tokens.tokens("final", "patch").take(np.arange(NUM)), DEEP)


def test_a_folder_of_thingsvision(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", FEATURES)
    (tmp_path / "file_names.txt").write_text("\n".join(IDS) + "\n")
    opened = TokenStore.open(store_features(tmp_path, tmp_path / "caches"))
    assert opened.sample_ids[:] == IDS.tolist()
    (tmp_path / "features.npy").unlink()
    with raises("cache.unreadable_features", SpecError):
        store_features(tmp_path, tmp_path / "caches")


def test_patches_and_slides_of_trident(tmp_path: Path) -> None:
    for slide in range(2):
        with h5py.File(tmp_path / f"slide{slide}.h5", "w") as file:
            file["features"], file["coords"] = FEATURES[slide::2], np.stack([np.arange(75), np.arange(75) * 256], 1)
            file["features"].attrs["encoder"] = "uni_v1"
    opened = TokenStore.open(store_features(tmp_path, tmp_path / "caches"))
    assert opened.spec.model.name == "uni_v1"
    assert [opened.sample_ids[row] for row in (0, 76)] == ["slide0[0,0]", "slide1[1,256]"]
    assert np.array_equal(opened.tokens("final", "cls").take(np.array([76])), FEATURES[3:4])
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["features"], file["coords"] = FEATURES[0], np.zeros((75, 2), int)
    assert TokenStore.open(store_features(tmp_path / "slide.h5", tmp_path / "slides")).sample_ids[:] == ["slide"]


@pytest.mark.parametrize(
    ("arrays", "key"),
    [
        ({"ids": IDS}, "cache.no_features"),
        ({"a": FEATURES, "b": FEATURES}, "cache.no_features"),
        ({"features": FEATURES, "ids": IDS[1:]}, "cache.unreadable_features"),
        ({"features": FEATURES, "ids": np.array(["same"] * NUM)}, "cache.unreadable_features"),
        ({"features": FEATURES, "labels": LABELS[:4]}, "cache.unreadable_features"),
        ({"features": np.full((4, 2), np.nan)}, "cache.unreadable_features"),
        ({"features": np.full((4, 2), 1e300)}, "cache.unreadable_features"),
        ({"features": FEATURES[:0]}, "cache.unreadable_features"),
    ],
)
def test_files_without_usable_features_are_refused(arrays: dict[str, np.ndarray], key: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]  # its stubs take no dict of arrays
    refuses(run("cache", "from", tmp_path / "a.npz", "--cache", tmp_path / "c"), key)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.h5", "a.parquet", "a.txt", "folder", "missing.npz"])
def test_damaged_and_foreign_files_are_refused(name: str, tmp_path: Path) -> None:
    if name == "folder":
        (tmp_path / name).mkdir()
    elif name != "missing.npz":
        (tmp_path / name).write_bytes(b"no such file" * 9)
    key = "cache.unknown_features" if name == "a.txt" else "cache.unreadable_features"
    refuses(run("cache", "from", tmp_path / name), key)


def test_pickled_arrays_and_links_out_of_a_file_are_not_followed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "b.npz", features=FEATURES)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = FEATURES
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(FEATURES.shape, FEATURES.dtype)
        layout[...] = h5py.VirtualSource(tmp_path / "other.h5", "features", FEATURES.shape)
        file.create_virtual_dataset("features", layout)
    for name in ("a.npz", "virtual.h5"):
        refuses(run("cache", "from", tmp_path / name), "cache.unreadable_features")
