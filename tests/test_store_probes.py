"""Probes on stores alone: no images, no model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import MODEL, run
from messages import refuses
from photos import write_photos

from layerbank.cache import Target, TokenStore, read_target, write_target
from layerbank.cache.maintenance.foreign_features import store_features

QUICK = ("--protocol", "quick", "--json")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs and their stores; the store of block 2 alone has few levels."""
    root = tmp_path_factory.mktemp("extracted")
    write_photos(root / "photos", {"train": 12, "test": 6})
    for name, levels in (("caches", "every"), ("sparse", "block.2,final")):
        given = ("--data", f"folder:{root / 'photos'}", "--cache", root / name, "--levels", levels)
        assert run("extract", *MODEL, *given).exit_code == 0
    return root


def stores_of(root: Path) -> tuple[Path, Path]:
    return next(root.glob("*/*-train-*.zarr")), next(root.glob("*/*-test-*.zarr"))


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    result = run("probe", *arguments, *QUICK)
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
    return rows


def test_stores_are_enough_to_train_and_the_second_time_nothing_is_trained(extracted: Path, tmp_path: Path) -> None:
    shutil.copytree(extracted / "caches", tmp_path / "moved")  # without the photographs
    train, test = stores_of(tmp_path / "moved")
    given = ("--store", train, "--test-store", test, "--probe", "ridge-all,linear-mid,linear@3", "--runs", tmp_path)
    rows = rows_of(*given)
    assert [one["probe"] for one in rows] == ["ridge-all", "linear-mid", "linear@3"]
    assert min(one["test"]["balanced_accuracy"] for one in rows) > 0.9
    assert rows_of(*given) == rows


def test_a_saved_probe_of_stores_predicts_images(extracted: Path, tmp_path: Path) -> None:
    train, test = stores_of(extracted / "caches")
    rows_of("--store", train, "--test-store", test, "--probe", "ridge-last", "--runs", tmp_path)
    (folder,) = (file.parent for file in tmp_path.rglob("probe.json"))
    result = run("predict", "--probe", folder, "--data", f"folder:{extracted / 'photos'}", "--json")
    assert len(json.loads(result.stdout)) == 18


def test_features_of_another_tool_are_probed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 90), ("test", 30)):
        labels = np.arange(count) % 3
        features = random.normal(size=(count, 4, 8)) + 3 * np.eye(8)[labels][:, None]
        np.savez(tmp_path / f"{split}.npz", features=features, labels=np.array(["cat", "dog", "eel"])[labels])
        store_features(tmp_path / f"{split}.npz", tmp_path / "caches", second_axis="levels")
    train, test = (next((tmp_path / "caches").glob(f"*/{split}-*.zarr")) for split in ("train", "test"))
    (row,) = rows_of("--store", train, "--test-store", test, "--probe", "linear-all-cls", "--runs", tmp_path / "runs")
    assert row["test"]["balanced_accuracy"] > 0.8
    held_out = rows_of("--store", f"{train}?split=0.2&seed=1", "--probe", "ridge-cls", "--runs", tmp_path / "held")
    assert held_out[0]["test"]["balanced_accuracy"] > 0.6


def test_another_target_is_asked_for_by_name(extracted: Path, tmp_path: Path) -> None:
    shutil.copytree(extracted / "caches", tmp_path / "caches")
    train, test = stores_of(tmp_path / "caches")
    for store in (train, test):
        num_rows = TokenStore.open(store).num_rows
        labels = read_target(store, "label", num_rows=num_rows).values
        bright = Target(values=(labels == 1).astype(np.int64), type="multiclass", class_names=["other", "green"])
        write_target(store, "green", bright, num_rows=num_rows)
    first, second = f"{train}?target=green", f"{test}?target=green"
    rows = rows_of("--store", first, "--test-store", second, "--probe", "ridge-last", "--runs", tmp_path / "runs")
    (config,) = (json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("probe.json"))
    assert rows[0]["key_fields"]["train_targets"]
    assert config["config"]["class_names"] == ["other", "green"]
    refuses(run("probe", "--store", f"{train}?target=age", "--test-store", test), "jobs.store_without_target")
    both = Target(values=np.ones((TokenStore.open(train).num_rows, 2)), type="multilabel")
    write_target(train, "both", both, num_rows=len(both.values))
    refuses(run("probe", "--store", f"{train}?target=both", "--test-store", test), "jobs.target_of_columns", count=2)


def test_probes_whose_levels_depend_on_the_depth_need_a_store_that_records_it(extracted: Path, tmp_path: Path) -> None:
    train, test = stores_of(extracted / "sparse")
    given = ("--store", train, "--test-store", test, "--runs", tmp_path)
    rows_of(*given, "--probe", "ridge@2,ridge-last")
    refuses(run("probe", *given, "--probe", "ridge-mid"), "jobs.store_lacks_array", level="block.3")
    values = TokenStore.open(train).tokens("block.2", "cls").take(np.arange(36))
    names = ["block.2/cls", "block.2/ap", "final/cls", "final/ap"]
    np.savez(tmp_path / "a.npz", labels=np.arange(36) % 3, **dict.fromkeys(names, values))
    store = store_features(tmp_path / "a.npz", tmp_path / "caches")
    alone = ("--store", f"{store}?split=0.3", "--runs", tmp_path)
    refuses(run("probe", *alone, "--probe", "linear-cls,linear-quarterly-cls"), "jobs.unknown_depth")
    rows_of(*alone, "--probe", "ridge@2,linear-cls")


def test_wrong_requests_are_refused(extracted: Path, tmp_path: Path) -> None:
    train, test = stores_of(extracted / "caches")
    runs = ("--runs", tmp_path)
    refuses(run("probe", "--store", train, *runs), "jobs.no_test_rows")
    refuses(run("probe", "--store", train, "--data", "demo:digits", *runs), "jobs.store_or_data", option="--data")
    for option, value in (("--shots", "1"), ("--target", "age"), ("--folds", "3"), ("--group", "patient")):
        refuses(run("probe", "--store", train, option, value, *runs), "jobs.store_or_data", option=option)
    refuses(run("probe", *MODEL, "--data", "demo:digits", "--test-store", test, *runs), "jobs.test_store_alone")
    refuses(run("probe", "--store", tmp_path / "none.zarr", "--test-store", test, *runs), "cache.store_missing")
    refuses(run("probe", "--store", f"{train}?colour=red", *runs), "data.unknown_option")
    refuses(run("probe", "--store", train, "--test-store", test, "--probe", "no", *runs), "probing.unknown_probe")
    np.savez(tmp_path / "a.npz", features=np.eye(12), labels=np.arange(12) % 3)
    other = store_features(tmp_path / "a.npz", tmp_path / "caches")
    refuses(run("probe", "--store", train, "--test-store", other, *runs), "jobs.stores_of_two_models")
    assert "Missing option '--data'" in run("probe", *MODEL).output
