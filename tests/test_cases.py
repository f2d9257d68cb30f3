"""Other targets and divisions of images whose tokens are there: no image is computed or read again."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from messages import raises
from photos import TINY_MODEL, write_photos

import layerbank as lb
from layerbank.data.image_source import ImageSource
from layerbank.data.splits.split_record import load_record
from layerbank.data.table import Table
from layerbank.data.tables.join import join_rows
from layerbank.jobs.cases import open_cases
from layerbank.probing.rows.results import case_of, results_table, summarize

PROBES = ("ridge-cls", "linear-cls")
PROTOCOL = "lrs = [0.01]\nweight_decays = [0.0]\nepochs = 1\nmin_steps = 5\n"


class Place:
    """Photos of three classes, their table, and a cache that has their tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.photos = folder, write_photos(folder / "photos", {"train": 12, "test": 4, "val": 3})
        (folder / "fast.toml").write_text(PROTOCOL)
        ids = sorted(str(path.relative_to(self.photos)) for path in self.photos.glob("*/*/*.png"))
        self.lines = [
            {
                "id": id,
                "parity": ("even", "odd")[int(Path(id).stem) % 2],
                "third": str(int(Path(id).stem) % 3),
                "patient": f"{Path(id).parts[0]}-{int(Path(id).stem) // 2}",
                "fold": ("learn", "learn", "exam")[int(Path(id).stem) % 3],
            }
            for id in ids
        ]
        self.table = self.write("table.csv", self.lines)

    def write(self, name: str, lines: Sequence[dict[str, Any]]) -> Path:
        file = self.folder / name
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, lines[0])
            writer.writeheader()
            writer.writerows(lines)
        return file

    def job(self, **more: Any) -> lb.ProbeJob:
        folders = {"cache_root": self.folder / "caches", "runs_root": self.folder / "runs"}
        data = {"data": f"folder:{self.photos}", "protocol": str(self.folder / "fast.toml"), "probes": PROBES}
        return lb.ProbeJob(
            model=TINY_MODEL, weights="random", image_size=32, device="cpu", **{**folders, **data, **more}
        )

    def rows(self, **more: Any) -> list[dict[str, Any]]:
        return list(lb.run(self.job(**more)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("cases"))
    time.sleep(2.1)  # younger files are not kept in the content index
    made.rows()
    lb.run(
        lb.ExtractJob(
            data=f"folder:{made.photos}", models=[(TINY_MODEL, "random")], splits=("val",), image_size=32, device="cpu",
            cache_root=made.folder / "caches", views_split="val",
        )
    )  # fmt: skip
    made.every = made.write("every.csv", [{**one, "image": f"photos/{one['id']}"} for one in made.lines])  # type: ignore[attr-defined]
    return made


OPTIONS: dict[str, dict[str, Any]] = {
    "target": {"labels": "table.csv", "targets": ("parity", "third"), "allow_missing": True},
    "group": {"labels": "table.csv", "group": "patient", "allow_missing": True},
    "split column": {"data": "csv:{folder}/every.csv?image=image&label=parity", "split_column": "fold",
                     "train_split": "learn", "test_split": "exam"},
    "validation split": {"val_split": "val"},
    "rows": {"train_rows": "train.txt", "test_rows": "test.txt"},
    "shots": {"shots": (1, 2), "draws": 2},
    "fractions": {"train_fractions": (0.25, 0.5)},
    "folds": {"folds": 3, "labels": "table.csv", "group": "patient", "allow_missing": True},
}  # fmt: skip
NUM_CASES = {"target": 2, "shots": 4, "fractions": 2, "folds": 3}


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_computes_or_reads_an_image_that_is_known(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "train.txt").write_text(
        "\n".join(one["id"] for one in place.lines if one["id"].startswith("train") and one["third"] != "2")
    )
    (place.folder / "test.txt").write_text("\n".join(one["id"] for one in place.lines if "test/" in one["id"]))
    options = {
        key: place.folder / value if key in ("labels", "train_rows", "test_rows") else value
        for key, value in OPTIONS[name].items()
    }
    if "data" in options:
        options["data"] = options["data"].format(folder=place.folder)
        lb.run(place.job(**options))  # hashes files that lie under other names

    def refuse(*_: Any) -> Any:
        raise AssertionError("an image is read")

    for source in (ImageSource, *ImageSource.__subclasses__()):
        for method in ("read", "load", "read_each"):
            if method in vars(source):
                monkeypatch.setattr(source, method, refuse)
    rows = place.rows(**options)
    assert len(rows) == len(PROBES) * NUM_CASES.get(name, 1)
    assert len({row["key"] for row in rows}) == len(rows)
    assert all(row["test"] is not None for row in rows)
    keys = {row["key"] for row in place.rows()}
    if name != "group":
        assert not keys & {row["key"] for row in rows}


def test_a_key_of_a_plain_job_has_no_field_of_these_options(place: Place) -> None:
    for row in place.rows():
        assert not {"target", "part"} & row["key_fields"].keys()
        assert row["key_fields"].get("split.rule") is None


def test_each_target_has_rows_of_its_name_and_a_table_says_so(place: Place) -> None:
    rows = place.rows(labels=place.table, targets=("parity", "third"), allow_missing=True)
    assert [case_of(row) for row in rows] == ["parity"] * 2 + ["third"] * 2
    assert results_table(rows)[0][0] == "ridge-cls (parity)"
    (place_of,) = {path.parent for path in (place.folder / "runs" / "photos").rglob("results.jsonl")}
    record = load_record(place_of / rows[0]["images"]["train"])
    assert list(record.class_names) == ["even", "odd"]
    assert record.labels.tolist() == [int(Path(id).stem) % 2 for id in record.ids]


def test_a_table_can_be_json_lines_or_parquet_and_name_paths(place: Place, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = [{"path": str(place.photos / one["id"]), "parity": one["parity"]} for one in place.lines]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        job = place.job(labels=tmp_path / name, targets=("parity",), allow_missing=True)
        train = open_cases(job, job.data).cases[0].train
        assert train.labels.tolist() == [int(Path(id).stem) % 2 for id in train.ids]


def test_folds_have_a_row_each_and_one_line_of_means(place: Place) -> None:
    rows = place.rows(folds=3)
    assert [row["key_fields"]["part"]["number"] for row in rows] == [0, 0, 1, 1, 2, 2]
    (first, second) = summarize(rows)
    assert (first.probe, first.case, len(first.rows)) == ("ridge-cls", "3 folds", 3)
    assert first.test is not None
    assert first.test.std is not None
    assert len(second.rows) == 3


def test_shots_are_nested_choose_on_other_images_and_leave_the_test_images_alone(place: Place) -> None:
    job = place.job(shots=(1, 2, 5), draws=2)
    cases = open_cases(job, job.data).cases
    assert [(one.subset.name, one.subset.number) for one in cases if one.subset] == [
        (name, draw) for draw in range(2) for name in ("1 shot", "2 shots", "5 shots")
    ]
    assert len({tuple(one.test.ids) for one in cases}) == 1
    for draw in range(2):
        before: set[str] = set()
        for shots, case in zip((1, 2, 5), cases[3 * draw :], strict=False):
            marks = case.train.is_validation
            assert marks is not None
            trained = {id for id, mark in zip(case.train.ids, marks, strict=True) if not mark}
            assert np.bincount(case.train.labels[~marks]).tolist() == [shots] * 3
            assert np.bincount(case.train.labels[marks]).tolist() == [min(shots, 4)] * 3
            assert before <= trained
            assert len(set(case.train.ids)) == len(case.train)
            before = trained


def test_few_shots_by_group_share_no_group_with_the_images_they_are_chosen_by(place: Place) -> None:
    job = place.job(shots=(2,), labels=place.table, group="patient", allow_missing=True)
    (case,) = open_cases(job, job.data).cases
    assert case.train.groups is not None
    assert case.train.is_validation is not None
    marks = case.train.is_validation
    assert not set(case.train.groups[marks].tolist()) & set(case.train.groups[~marks].tolist())


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("data.no_column", {"labels": "table.csv", "targets": ("paritty",), "allow_missing": True}),
    ("data.ids_do_not_match", {"labels": "table.csv", "targets": ("parity",)}),
    ("data.repeated_table_ids", {"labels": "twice.csv", "targets": ("parity",)}),
    ("data.no_id_column", {"labels": "unnamed.csv", "targets": ("parity",)}),
    ("data.missing_targets", {"labels": "empty.csv", "targets": ("parity",)}),
    ("data.no_table_of_data", {"targets": ("parity",)}),
    ("data.too_many_folds", {"folds": 40}),
    ("data.too_many_folds", {"folds": 7, "labels": "table.csv", "group": "patient", "allow_missing": True}),
    ("data.too_few_for_shots", {"shots": (13,)}),
    ("data.too_small_fraction", {"train_fractions": (0.01,)}),
    ("data.options_exclude_each_other", {"folds": 3, "shots": (1,)}),
    ("data.option_needs_another", {"draws": 2}),
    ("data.bad_fraction_list", {"train_fractions": (0.0,)}),
    ("data.no_images_left", {"shots": (12,)}),
    ("data.class_in_one_group", {"labels": "alone.csv", "group": "patient", "folds": 2, "allow_missing": True}),
    ("data.rows_on_both_sides", {"test_split": "train", "train_rows": "one.txt", "test_rows": "one.txt"}),
    ("data.same_split_twice", {"val_split": "test"}),
    ("data.bad_row_file", {"train_rows": "unknown.txt"}),
    ("data.no_such_split", {"data": "csv:{folder}/every.csv?image=image&label=parity", "split_column": "fold"}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "options"), REFUSED)
def test_what_cannot_be_divided_or_joined_is_refused_before_the_model_is_opened(
    place: Place, key: str, options: dict[str, Any]
) -> None:
    used = [one for one in place.lines if not one["id"].startswith("val")]
    place.write("twice.csv", [*used, used[0]])
    place.write("unnamed.csv", [{"number": 1, "parity": 2}])
    place.write("empty.csv", [{**one, "parity": "" if number == 3 else "x"} for number, one in enumerate(used)])
    place.write("alone.csv", [{**one, "patient": one["id"].split("/")[1]} for one in place.lines])
    (place.folder / "one.txt").write_text(used[-1]["id"] + "\n")
    (place.folder / "unknown.txt").write_text("nothing.png\n")
    given = {
        name: place.folder / value if name in ("labels", "train_rows", "test_rows") else value
        for name, value in options.items()
    }
    if "data" in given:
        given["data"] = given["data"].format(folder=place.folder)
    with raises(key, lb.RequestError):
        place.rows(**given)


def test_a_row_of_the_table_names_one_image_not_one_of_each_split(tmp_path: Path) -> None:
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    sources = [lb.images_from(pixels, [0, 1], ids=["a", "b"], split=split) for split in ("train", "test")]
    table = Table("table.csv", {"id": ["a", "b"]}, 2)
    with raises("data.ids_of_two_splits", lb.RequestError, first="a"):
        join_rows(table, sources)


def test_the_training_part_decides_the_task(place: Place) -> None:
    lines = [
        {**one, "size": "2" if "test/" in one["id"] else f"{number / 4}"} for number, one in enumerate(place.lines)
    ]
    table = place.write("sizes.csv", lines)
    (case,) = open_cases(place.job(labels=table, targets=("size",), allow_missing=True), f"folder:{place.photos}").cases
    assert (case.train.task, case.test.task) == ("regression", "regression")
    assert set(case.test.labels.tolist()) == {2.0}
