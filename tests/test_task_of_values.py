"""Labels that are no classes: every source hands them on, and probes of each task train, are tested, saved and used."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import run
from messages import raises, refuses
from photos import TINY_MODEL, write_photos
from tars import with_labels

import layerbank as lb
from layerbank import RequestError
from layerbank.data.classes import match_classes
from layerbank.data.sources import open_source
from layerbank.data.task_of_values import set_task, targets_for

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
NUMBERS = [0.5, 1.25, -3.0, 7.0, 2.0, 4.5]
MATRIX = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, -1], [0, 1]])
MODEL = ("--model", TINY_MODEL, "--weights", "random", "--image-size", "32")


def test_every_source_hands_on_decimal_numbers(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2})
    files = sorted(path.relative_to(tmp_path).as_posix() for path in photos.rglob("*.png"))
    lines = [f"{file},{number}" for file, number in zip(files, NUMBERS, strict=True)]
    (tmp_path / "a.csv").write_text("path,label\n" + "\n".join(lines))
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array(NUMBERS))
    with h5py.File(tmp_path / "a_train.h5", "w") as file:
        file["x"], file["y"] = PIXELS, np.array(NUMBERS, dtype=np.float32)
    in_tars = with_labels(tmp_path / "tars", cls=[b"0.5", b"1", b"-3"])
    sources = [
        open_source(f"csv:{tmp_path}/a.csv", "all"),
        open_source(f"npz:{tmp_path}/a.npz", "all"),
        open_source(f"hdf5:{tmp_path}/a_{{split}}.h5", "train"),
        lb.images_from(list(PIXELS), NUMBERS),
    ]
    assert [source.labels.tolist() for source in sources] == [NUMBERS] * 4
    tars = open_source(f"wds:{in_tars}", "train")
    assert tars.labels.tolist() == [0.5, 1, -3]
    assert {(source.task, *source.class_names) for source in (*sources, tars)} == {("regression",)}


def test_sources_of_arrays_hand_on_several_labels_and_several_numbers_an_image(tmp_path: Path) -> None:
    for values, task in ((MATRIX, "multilabel"), (np.eye(6)[:, :3] + 0.5, "regression")):
        np.savez(tmp_path / "a.npz", images=PIXELS, labels=values)
        with h5py.File(tmp_path / "a_train.h5", "w") as file:
            file["x"], file["y"] = PIXELS, values
        for source in (
            open_source(f"npz:{tmp_path}/a.npz", "all"),
            open_source(f"hdf5:{tmp_path}/a_{{split}}.h5", "train"),
            lb.images_from(list(PIXELS), values),
        ):
            assert (source.task, source.labels.tolist()) == (task, values.tolist())
            assert source.class_names == (["0", "1"] if task == "multilabel" else [])
    assert lb.images_from(list(PIXELS), np.eye(6)).labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_labels_become_those_of_another_task_where_that_has_a_meaning() -> None:
    def asked(labels: Any, task: str, **more: Any) -> tuple[list[Any], list[str], str]:
        source = lb.images_from(list(PIXELS), labels, **more)
        set_task(source, task)
        return source.labels.tolist(), list(source.class_names), source.task

    ages = [30, 4, 100, 30, 4, 4]
    assert asked(ages, "regression") == ([30, 4, 100, 30, 4, 4], [], "regression")
    assert asked(ages, "ordinal") == ([1, 0, 2, 1, 0, 0], ["4", "30", "100"], "ordinal")
    shares = [0.5, 0.0, 1.0, 0.5, 0.0, 0.0]
    assert asked(shares, "ordinal") == ([1, 0, 2, 1, 0, 0], ["0", "0.5", "1"], "ordinal")
    assert asked([2.0, 0.0, 2.0, 2.0, 0.0, 0.0], "multiclass")[1:] == (["0", "2"], "multiclass")
    assert asked(["a", "b", "a", "b", "a", "b"], "multilabel")[0][:2] == [[1, 0], [0, 1]]
    for task in ("regression", "ordinal"):
        with raises("data.classes_are_no_numbers", RequestError, task=task, names="a, b"):
            asked(["a", "b", "a", "b", "a", "b"], task)
    for labels, task in ((shares, "multiclass"), (shares, "multilabel"), (MATRIX, "ordinal")):
        with raises("data.labels_not_for_task", RequestError, task=task):
            asked(labels, task)


def test_columns_of_the_test_split_are_put_in_the_order_of_those_that_were_trained() -> None:
    train = lb.images_from(list(PIXELS), MATRIX, class_names=["cat", "dog"])
    test = lb.images_from(list(PIXELS), MATRIX, class_names=["dog", "cat"], split="test")
    match_classes(train, test)
    assert (test.labels.tolist(), test.class_names) == (MATRIX[:, ::-1].tolist(), ["cat", "dog"])
    other = lb.images_from(list(PIXELS), MATRIX, class_names=["cat", "owl"], split="test")
    for wrong in (other, lb.images_from(list(PIXELS), NUMBERS, split="test")):
        with raises("data.other_targets", RequestError):
            match_classes(train, wrong)


TABLES = {  # column -> a value of each class of photos, whose colours the tiny model tells apart
    "age": {"blue": "20.5", "green": "50", "red": "71.5"},
    "grade": {"blue": "0", "green": "1", "red": "2"},
    "kind": {"blue": "blue", "green": "green", "red": "red"},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    photos = write_photos(folder / "photos", {"train": 12, "test": 6})
    lines = [["path", "split", *TABLES]]
    for file in sorted(photos.rglob("*.png")):
        colour, split = file.parent.name, file.parent.parent.name
        lines.append([file.relative_to(folder).as_posix(), split, *(values[colour] for values in TABLES.values())])
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    (folder / "table.csv").write_text(text.getvalue())
    return folder


def probe(table: Path, column: str, *options: str) -> Any:
    folders = ["--cache", str(table / "caches"), "--runs", str(table / "runs"), "--protocol", "quick"]
    data = f"csv:{table}/table.csv?label={column}"
    return run("probe", *MODEL, "--data", data, "--probe", "ridge-cls", *folders, *options)


@pytest.mark.parametrize(
    ("column", "options", "task", "metric"),
    [
        ("age", (), "regression", "r2"),
        ("age", ("--metric", "mae"), "regression", "mae"),
        ("grade", ("--task", "ordinal"), "ordinal", "quadratic_kappa"),
        ("grade", ("--task", "regression", "--metric", "spearman"), "regression", "spearman"),
        ("kind", ("--task", "multilabel", "--metric", "macro_f1"), "multilabel", "macro_f1"),
        ("kind", ("--metric", "log_loss", "--class-weights", "red=3"), None, "log_loss"),
    ],
)
def test_the_command_trains_tests_and_predicts_each_task(
    table: Path, column: str, options: tuple[str, ...], task: str | None, metric: str
) -> None:
    result = probe(table, column, *options, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert (row.get("task"), row["metric"]) == (task, metric)
    assert row["key_fields"]["metric"] == metric
    assert ("class_weights" in row["key_fields"]) == ("--class-weights" in options)
    is_error = metric in ("mae", "log_loss")
    assert row["test"][metric] < 15 if is_error else row["test"][metric] > 0.6
    assert (row["validation"] < 0) == is_error
    again = probe(table, column, *options, "--json")
    assert json.loads(again.stdout)["rows"][0]["key"] == row["key"]
    shown = probe(table, column, *options).stdout
    assert metric.replace("_", " ") in shown
    place = next((table / "runs").rglob(f"ridge-cls-{row['key'][:8]}"))
    result = run("predict", "--probe", place, "--data", f"csv:{table}/table.csv?label={column}")
    assert result.exit_code == 0, result.output
    lines = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(lines) == 18
    names = {"id", "predicted", "probability", "target"}
    assert set(lines[0]) == names | (set(TABLES["kind"]) if task == "multilabel" else set())
    if task == "regression":
        errors = [abs(float(one["predicted"]) - float(TABLES[column][one["id"].split("/")[2]])) for one in lines]
        assert np.mean(errors) < 15
    else:
        assert np.mean([one["predicted"] == one["target"] for one in lines]) > 0.7


def test_wrong_tasks_metrics_and_weights_are_refused_by_name(table: Path) -> None:
    refuses(probe(table, "age", "--task", "regresion"), "probing.unknown_task", task="regresion")
    refuses(probe(table, "age", "--metric", "r3"), "probing.unknown_metric", metric="r3")
    refuses(probe(table, "age", "--metric", "auroc"), "probing.metric_not_of_task", metric="auroc", task="regression")
    refuses(probe(table, "age", "--class-weights", "none"), "probing.no_class_weights", task="regression")
    refuses(probe(table, "kind", "--task", "ordinal"), "data.classes_are_no_numbers", task="ordinal")
    for weights in ("blu=2", "blue=-1", "blue", "blue=1,blue=2", "blue=0,green=0,red=0"):
        refuses(probe(table, "kind", "--class-weights", weights), "probing.bad_class_weights")


SPLITS = (("train", slice(40)), ("test", slice(40, 60)))


def test_the_python_interface_takes_every_task(tmp_path: Path) -> None:
    model = lb.open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")
    generator = np.random.default_rng(0)
    brightness = generator.integers(0, 4, 60)
    pixels = [
        np.full((16, 16, 3), 60 * level, np.uint8) + generator.integers(0, 9, (16, 16, 3), np.uint8)
        for level in brightness
    ]
    labels = {
        "regression": brightness + 0.5,
        "ordinal": brightness,
        "multilabel": np.stack([brightness > 0, brightness > 1, brightness == 3], 1).astype(int),
    }
    for task, values in labels.items():
        images = [lb.images_from(pixels[rows], values[rows], split=split) for split, rows in SPLITS]
        train, test = (
            lb.extract(model, one, levels="last", cache=tmp_path / "caches", progress=False) for one in images
        )
        results = lb.probe(train, test, probes=["ridge-cls"], task=task, runs=tmp_path / "runs", progress=False)
        assert results[0].score > 0.7
        assert np.isnan(results[0].balanced_accuracy) == (task != "ordinal")
        assert results.records()[0]["test"] == results[0].score
        classifier = results[0].classifier()
        assert classifier.task == task
        found = classifier.predict(pixels[40:])
        assert len(found) == 20
        if task == "regression":
            assert np.abs(found - values[40:]).mean() < 1
            with raises("api.no_probabilities", RequestError, task=task):
                classifier.predict_proba(pixels[40:])
        else:
            assert classifier.predict_proba(pixels[40:]).shape == (20, 4 if task == "ordinal" else 3)


def test_images_without_a_label_are_unknown_and_numbers_keep_their_digits() -> None:
    images = lb.images_from(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 1, 0], class_names=["1234567", "1234568"])
    images.labels[2] = -1
    labels, names, _ = targets_for(images, "multilabel")
    assert labels.tolist() == [[1, 0], [0, 1], [-1, -1], [1, 0]]
    labels, names, _ = targets_for(images, "ordinal")
    assert (labels.tolist(), names) == ([0, 1, -1, 0], ["1234567", "1234568"])
    one_class = lb.images_from(np.zeros((2, 8, 8, 3), np.uint8), [2, 0], class_names=["0", "1", "4"])
    labels, names, _ = targets_for(one_class, "ordinal")
    assert (labels.tolist(), names) == ([2, 0], ["0", "1", "4"])
