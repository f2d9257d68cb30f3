"""`csv:`: images listed by a table, with labels, splits and groups in columns; what is wrong with a table is counted and named."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_errors import refuses_data
from hypothesis import given
from hypothesis import strategies as st
from messages import raises
from photos import write_photos

from layerbank.data.classes import match_classes
from layerbank.data.image_source import NO_LABEL
from layerbank.data.sources import open_source
from layerbank.data.tables.holdout import hold_out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", {"train": 4, "test": 2})


def rows_of(photos: Path) -> list[dict[str, str]]:
    """A row for each photo: path, kind, split and patient; two photos a patient."""
    paths = sorted(path.relative_to(photos) for path in photos.rglob("*.png"))
    return [
        {"path": str(path), "kind": path.parts[1], "split": path.parts[0], "patient": f"p{number // 2}"}
        for number, path in enumerate(paths)
    ]


def write_table(file: Path, rows: list[dict[str, str]], separator: str = ",") -> Path:
    lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def table(photos: Path) -> Path:
    return write_table(photos / "labels.csv", rows_of(photos))


def test_a_table_gives_the_images_of_its_folder(photos: Path, table: Path) -> None:
    listed, folder = open_source(f"csv:{table}?label=kind", "train"), open_source(f"folder:{photos}", "train")
    assert listed.ids == folder.ids
    assert listed.class_names == folder.class_names
    assert listed.labels.tolist() == folder.labels.tolist()
    assert listed.sizes.tolist() == folder.sizes.tolist()
    assert [listed.read(row) for row in range(3)] == [folder.read(row) for row in range(3)]
    assert list(listed.files()[0]) == list(folder.files()[0])


@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.CSV", ",")])
def test_other_separators_give_the_same(photos: Path, table: Path, name: str, separator: str) -> None:
    other = write_table(photos / name, rows_of(photos), separator)
    one, two = (open_source(f"csv:{file}?label=kind", "test") for file in (table, other))
    assert (one.ids, one.labels.tolist()) == (two.ids, two.labels.tolist())


def test_json_lines_give_the_same(photos: Path, table: Path) -> None:
    file = photos / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows_of(photos))) + "\n\n")
    one, two = (open_source(f"csv:{path}?label=kind", "test") for path in (table, file))
    assert (one.ids, one.labels.tolist()) == (two.ids, two.labels.tolist())


def test_every_column_of_a_split_is_kept(table: Path) -> None:
    source = open_source(f"csv:{table}?label=kind", "test")
    assert source.table is not None
    assert list(source.table.columns) == ["path", "kind", "split", "patient"]
    assert source.table.column("patient") == ["p0", "p0", "p1", "p1", "p2", "p2"]
    again = pickle.loads(pickle.dumps(source))
    assert again.read(0) == source.read(0)


@pytest.mark.parametrize("spelling", ["Train", "train ", "TRAIN"])
def test_rows_of_a_split_in_another_spelling_are_not_lost(photos: Path, spelling: str) -> None:
    rows = rows_of(photos)
    rows[-1]["split"] = spelling
    table = write_table(photos / "a.csv", rows)
    refuses_data("data.split_look_alikes", f"csv:{table}?label=kind", "train", count=1, names=repr(spelling))
    assert len(open_source(f"csv:{table}?label=kind", "test")) == 6


def test_rows_keep_the_order_of_the_table(photos: Path) -> None:
    rows = rows_of(photos)[::-1]
    source = open_source(f"csv:{write_table(photos / 'a.csv', rows)}?label=kind", "train")
    assert source.ids == [row["path"] for row in rows if row["split"] == "train"]


def test_a_file_for_each_split_needs_no_column(photos: Path) -> None:
    for split in ("train", "test"):
        rows = [{"path": row["path"], "label": row["kind"]} for row in rows_of(photos) if row["split"] == split]
        write_table(photos / f"{split}.csv", rows)
    assert len(open_source(f"csv:{photos}/{{split}}.csv", "test")) == 6
    refuses_data("data.no_such_split", f"csv:{photos}/{{split}}.csv", "val", splits="test, train")
    refuses_data("data.fraction_of_a_split", f"csv:{photos}/{{split}}.csv?split=0.2", split="0.2")


def test_a_table_without_labels_lists_images_to_predict(photos: Path) -> None:
    rows = [{"path": row["path"]} for row in rows_of(photos)]
    source = open_source(f"csv:{write_table(photos / 'a.csv', rows)}", "all")
    assert len(source) == 18
    assert set(source.labels.tolist()) == {NO_LABEL}
    refuses_data("data.no_split_column", f"csv:{photos}/a.csv", columns="path")
    write_table(photos / "b.csv", [row | {"label": ""} for row in rows])
    assert set(open_source(f"csv:{photos}/b.csv", "all").labels.tolist()) == {NO_LABEL}


def test_labels_that_are_whole_numbers_are_classes_in_rising_order(photos: Path) -> None:
    rows = [{"path": row["path"], "label": str(9 + number % 3)} for number, row in enumerate(rows_of(photos))]
    source = open_source(f"csv:{write_table(photos / 'a.csv', rows)}", "all")
    assert source.class_names == ["9", "10", "11"]
    assert source.labels[:4].tolist() == [0, 1, 2, 0]


def test_a_fraction_of_each_class_is_held_out(table: Path) -> None:
    train, test = (open_source(f"csv:{table}?label=kind&split=0.34", split) for split in ("train", "test"))
    assert not set(train.ids) & set(test.ids)
    assert np.bincount(train.labels).tolist() == [4, 4, 4]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert open_source(f"csv:{table}?label=kind&split=0.34", "test").ids == test.ids
    assert open_source(f"csv:{table}?label=kind&split=0.34&seed=1", "test").ids != test.ids


def test_no_group_is_in_both_parts(table: Path) -> None:
    for seed in range(5):
        uri = f"csv:{table}?label=kind&split=0.34&group=patient&seed={seed}"
        parts = [open_source(uri, split).table for split in ("train", "test")]
        groups = [set(part.column("patient")) for part in parts if part is not None]
        assert groups[0]
        assert groups[1]
        assert not groups[0] & groups[1]


def test_a_group_in_the_files_of_two_splits_is_refused(photos: Path) -> None:
    rows = {split: [row for row in rows_of(photos) if row["split"] == split] for split in ("train", "test")}
    uri = f"csv:{photos}/{{split}}.csv?label=kind&group=patient"
    for number in range(2):
        for split, of_split in rows.items():
            patients = [row | {"patient": f"{split} {row['patient']}"} for row in of_split]
            patients[0]["patient"] = split if number == 0 else "p0"
            write_table(photos / f"{split}.csv", patients)
        train, test = (open_source(uri, split) for split in ("train", "test"))
        assert train.groups is not None
        assert train.groups[2] == train.groups[3] != train.groups[4]
        if number == 0:
            match_classes(train, test)
    with raises("data.groups_in_both_splits", count=1, trained=train.ids[0], tested=test.ids[0]):
        match_classes(train, test)
    refuses_data("data.no_column", uri.replace("patient", "patent"), name="'patent'")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=60),
    st.floats(0.05, 0.95),
    st.integers(0, 3),
)
def test_holding_out_cuts_no_group_and_leaves_no_class_out(
    rows: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    ids, classes, groups = [f"{number}.png" for number in range(len(rows))], *map(list, zip(*rows, strict=True))
    whole = hold_out(ids, classes, fraction, seed=seed, groups=groups)
    assert not {group for group, test in zip(groups, whole, strict=True) if test} & {
        group for group, test in zip(groups, whole, strict=True) if not test
    }
    is_test = hold_out(ids, classes, fraction, seed=seed)
    for of_class, count in Counter(classes).items():
        held_out = int(is_test[np.array(classes) == of_class].sum())
        assert held_out == (0 if count == 1 else min(max(round(fraction * count), 1), count - 1))


def test_values_of_options_are_taken_as_they_are_written(photos: Path) -> None:
    for name in ("C++", "%41", "a+b", "a=b"):
        rows = [{"path": row["path"], name: row["kind"]} for row in rows_of(photos)]
        source = open_source(f"csv:{write_table(photos / 'a.csv', rows)}?label={name}", "all")
        assert source.class_names == ["blue", "green", "red"]


# --- tables that are refused ---


@pytest.mark.parametrize(
    ("options", "key", "values"),
    [
        ("?lable=kind", "data.unknown_option", {"option": "lable", "advice": "Did you mean 'label'?"}),
        ("?label=knid", "data.no_column", {"name": "'knid'", "advice": "Did you mean 'kind'?"}),
        ("?label=kind&label=split", "data.repeated_option", {"option": "label"}),
        ("?image=kind", "data.missing_files", {"missing": 3, "count": 12}),
        ("?split=kind", "data.no_such_split", {"splits": "blue, green, red"}),
        ("?label=kind&seed=1", "data.seed_without_fraction", {}),
        ("?split=0.5&seed=one", "data.bad_seed", {"seed": "'one'"}),
        ("?split=0.001&label=kind&group=split", "data.cannot_hold_out", {"count": 2, "kind": "groups"}),
        ("?group=kind", "data.group_in_two_splits", {"count": 3, "names": "blue, green, red"}),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused(table: Path, options: str, key: str, values: dict) -> None:
    refuses_data(key, f"csv:{table}{options}", "train", **values)


@pytest.mark.parametrize(
    ("content", "key", "values"),
    [
        ("path,label\n", "data.empty_table", {}),
        ("", "data.bad_column_names", {}),
        ("path,label,label\na.png,x,y\n", "data.bad_column_names", {}),
        ("name,label\na.png,x\n", "data.no_image_column", {"names": "name, label"}),
        ("path,label\na.png,x,y\na.png,x\n", "data.ragged_lines", {"ragged": 1, "count": 2, "cells": 3}),
        ('path,label\n"a.png,x\n', "data.bad_line", {"line": 2}),
        ("path,label\n,x\na.png,x\n", "data.empty_cells", {"empty": 1, "count": 2, "first": 1}),
        ("path,label\na.png,x\nb.png,y\nc.png,z\n", "data.missing_files", {"missing": 2, "count": 3}),
        ("path,label\na.png,x\na.png,y\n", "data.repeated_ids", {"id": "a.png", "count": 1}),
        ("path,label\na.png,x\n./a.png,\n", "data.missing_labels", {"missing": 1, "count": 2, "first": "./a.png"}),
        ("path,label\na.png,-1\n./a.png,1\n", "data.label_below_zero", {"label": -1}),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path: Path, content: str, key: str, values: dict) -> None:
    write_photos(tmp_path, {"train": 1})
    (tmp_path / "train" / "red" / "000.png").rename(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text(content)
    refuses_data(key, f"csv:{tmp_path}/a.csv", "all", **values)


@pytest.mark.parametrize(
    ("labels", "key", "values"),
    [
        ([1, "cat"], "data.mixed_labels", {"found": "1 whole numbers, 1 texts"}),
        ([float("nan"), 1.0], "data.missing_labels", {"missing": 1}),
        ([["cat"], ["dog"]], "data.labels_of_type", {"type": "list"}),
    ],
)
def test_labels_of_other_types_are_refused(tmp_path: Path, labels: list, key: str, values: dict) -> None:
    write_photos(tmp_path, {"train": 2}, ("red",))
    rows = [{"path": f"train/red/{number:03}.png", "label": label} for number, label in enumerate(labels)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refuses_data(key, f"csv:{tmp_path}/a.jsonl", "all", **values)


def test_a_list_may_be_a_group(tmp_path: Path) -> None:
    write_photos(tmp_path, {"train": 4}, ("red",))
    rows = [{"path": f"train/red/{n:03}.png", "label": "red", "site": [n // 2], "split": str(n % 2)} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(open_source(f"csv:{tmp_path}/a.jsonl?group=site&split=0.5", "test")) == 2
    refuses_data("data.group_in_two_splits", f"csv:{tmp_path}/a.jsonl?group=site", "0", names="[0], [1]")


def test_lines_that_are_no_json_objects_are_named(tmp_path: Path) -> None:
    for line in ("[1]", "{", "[" * 100_000):
        (tmp_path / "a.jsonl").write_text(f'{{"path": "a.png"}}\n{line}\n')
        refuses_data("data.bad_line", f"csv:{tmp_path}/a.jsonl", line=2)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    refuses_data("data.no_table", f"csv:{tmp_path}/none.csv")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    refuses_data("data.unknown_table", f"csv:{tmp_path}/a.xlsx", got=".xlsx")
    os.mkfifo(tmp_path / "pipe.csv")
    refuses_data("data.unreadable_text", f"csv:{tmp_path}/pipe.csv", reason="a pipe")
    (tmp_path / "latin.csv").write_bytes("path\nZaunkönig.png\n".encode("latin1"))
    refuses_data("data.not_utf8_text", f"csv:{tmp_path}/latin.csv", line=2)


def test_a_pipe_in_a_table_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("path\na.png\n")
    refuses_data("data.missing_files", f"csv:{tmp_path}/a.csv", "all", names="a.png (a pipe)")
