"""`parquet:` and `hf:`: images in Arrow columns, as paths or bytes, in files of any number of row groups."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_errors import refuses_data
from photos import write_photos

from layerbank.data.image_source import ImageSource
from layerbank.data.sources import BadImage, open_source

CLASSES = ["blue", "green", "red"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", {"train": 4, "test": 2})


def table_of(photos: Path, split: str, **columns: list[Any]) -> pa.Table:
    """The images of a split as Hugging Face keeps them."""
    paths = sorted((photos / split).rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": str(path.relative_to(photos))} for path in paths]
    labels = [CLASSES.index(path.parent.name) for path in paths]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CLASSES}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, kind), "label": labels, "age": [1.5] * len(paths), **columns})
    return table.replace_schema_metadata(metadata)


def save_to_disk(table: pa.Table, folder: Path, num_files: int = 1) -> None:
    """The files that `datasets.Dataset.save_to_disk` writes, in batches of four rows."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{num_files:05}.arrow" for number in range(num_files)]
    stops = np.linspace(0, len(table), num_files + 1).astype(int).tolist()
    for name, start, stop in zip(names, stops, stops[1:], strict=False):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.slice(start, stop - start), max_chunksize=4)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def is_of_folder(source: ImageSource, photos: Path, split: str = "train", *, ids: list[str] | None = None) -> None:
    """The images, labels and class names of a source are those of the folder, and the ids too, if no others are given."""
    folder = open_source(f"folder:{photos}", split)
    assert source.ids == (ids or folder.ids)
    assert source.labels.tolist() == folder.labels.tolist()
    assert source.class_names == folder.class_names
    images = [folder.read(row) for row in range(len(folder))]
    again = pickle.loads(pickle.dumps(source))
    for order in (range(len(images)), reversed(range(len(images))), [5, 2, 3, 0]):
        assert all(again.read(row) == images[row] for row in order)
    assert list(source.read_each(np.array([0, 3, 5]))) == [images[0], images[3], images[5]]


@pytest.mark.parametrize("group_rows", [1, 5, 100])
@pytest.mark.parametrize("batch_rows", [2, 32])
def test_row_groups_of_any_size_give_the_images(
    photos: Path, group_rows: int, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerbank.data.tables.parquet.BATCH_ROWS", batch_rows)
    for split in ("train", "test"):
        pq.write_table(table_of(photos, split), photos / f"{split}.parquet", row_group_size=group_rows)
    source = open_source(f"parquet:{photos}/{{split}}.parquet", "train")
    is_of_folder(source, photos)
    assert source.table is not None
    assert source.table.column("age") == [1.5] * 12
    assert abs(source.sizes.sum() - sum(len(source.read(row)) for row in range(12))) < 0.05 * source.sizes.sum()
    is_of_folder(open_source(f"hf:{photos}", "test"), photos, "test")
    refuses_data("data.no_such_split", f"parquet:{photos}/{{split}}.parquet", "val", splits="test, train")
    refuses_data("data.no_such_split", f"hf:{photos}", "val", splits="test, train")


def test_a_damaged_page_costs_its_own_rows_and_changes_no_other(tmp_path: Path) -> None:
    images = [bytes([row]) * 1000 for row in range(100)]
    table = pa.table({"image": images, "label": ["owl", "tit"] * 50})
    made = {"compression": "none", "use_dictionary": False, "data_page_size": 1, "write_batch_size": 10}
    pq.write_table(table, tmp_path / "a.parquet", **made)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    place = content.index(images[45])
    content[place - 4 : place] = b"\xff\xff\xff\x7f"  # the length of its value
    (tmp_path / "a.parquet").write_bytes(content)
    source = open_source(f"parquet:{tmp_path}/a.parquet", "all")
    for rows in (np.arange(100), np.arange(20, 100), np.arange(100)[::-1]):
        read = list(source.read_each(rows))
        assert all(one in (None, images[row]) for one, row in zip(read, rows.tolist(), strict=True))
        assert read[rows.tolist().index(31)] == images[31]
        assert None in read


def test_a_file_of_images_alone_has_its_rows(photos: Path) -> None:
    images = [path.read_bytes() for path in sorted((photos / "train").rglob("*.png"))]
    pq.write_table(pa.table({"image": images}), photos / "a.parquet")
    source = open_source(f"parquet:{photos}/a.parquet", "all")
    assert [source.read(row) for row in range(len(source))] == images
    assert len(open_source(f"parquet:{photos}/a.parquet?split=0.25", "test")) == 3


def test_paths_in_a_parquet_file_are_those_of_a_table(photos: Path) -> None:
    paths = [str(path.relative_to(photos)) for path in sorted((photos / "train").rglob("*.png"))]
    kinds = pa.array([path.split("/")[1] for path in paths]).dictionary_encode()
    pq.write_table(pa.table({"path": paths, "kind": kinds}), photos / "a.parquet")
    is_of_folder(open_source(f"parquet:{photos}/a.parquet?label=kind", "all"), photos)


def test_plain_bytes_are_known_by_file_and_row(photos: Path) -> None:
    table = table_of(photos, "train")
    images = [one["bytes"] for one in table.column("image").to_pylist()]
    pq.write_table(pa.table({"png": images, "label": table.column("label")}), photos / "a.parquet")
    source = open_source(f"parquet:{photos}/a.parquet?split=0.25", "test")
    assert source.ids[0].startswith("a.parquet[")
    assert np.bincount(source.labels).tolist() == [1, 1, 1]
    assert source.read(0) in images
    assert source.file_of(0) == f"{photos}/a.parquet, column png"
    (photos / "b").mkdir()
    pq.write_table(pa.table({"png": images[:2]}), photos / "b" / "a.parquet")
    pq.write_table(pa.table({"png": images[2:3]}), photos / "a.parquet")
    several = open_source(f"parquet:{photos}/{{.,b}}/a.parquet", "all")
    assert several.ids == ["a.parquet[0]", "b/a.parquet[0]", "b/a.parquet[1]"]


@pytest.mark.parametrize("num_files", [1, 3])
def test_a_saved_data_set_is_mapped(photos: Path, num_files: int) -> None:
    for split in ("train", "test"):
        save_to_disk(table_of(photos, split), photos / "saved" / split, num_files)
    source = open_source(f"hf:{photos}/saved", "train")
    is_of_folder(source, photos)
    assert source.sizes.tolist() == [len(source.read(row)) for row in range(12)]
    is_of_folder(open_source(f"hf:{photos}/saved/train", "all"), photos)
    refuses_data("data.no_such_split", f"hf:{photos}/saved", "val", splits="test, train")


def test_a_metadata_file_beside_images_is_a_table(photos: Path) -> None:
    paths = [path.relative_to(photos) for path in sorted((photos / "train").rglob("*.png"))]
    lines = [json.dumps({"file_name": str(path), "label": path.parent.name}) for path in paths]
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    is_of_folder(open_source(f"hf:{photos}", "all"), photos)


def test_what_the_datasets_library_writes_is_read(photos: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = table_of(photos, "train")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {name: table.column(name).to_pylist() for name in ("image", "label")}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=made).save_to_disk(photos / "saved")
    made.to_parquet(photos / "data" / "train-00000-of-00001.parquet")
    # of a path it saves the last part alone, and the class folders have files of one name
    rows = [f"data-00000-of-00001.arrow[{row}]" for row in range(12)]
    is_of_folder(open_source(f"hf:{photos}/saved", "train"), photos, ids=rows)
    is_of_folder(open_source(f"hf:{photos}", "train"), photos)


def test_a_data_set_of_the_hub_is_read_from_the_cache_of_its_library(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_to_disk(table_of(photos, "train"), photos / "cached")
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        return types.SimpleNamespace(cache_files=[{"filename": str(photos / "cached" / "data-00000-of-00001.arrow")}])

    library = types.ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    source = open_source("hf:birds/garden?config=small&label=label", "train")
    is_of_folder(source, photos)
    assert asked == [("birds/garden", "small", "train", None)]
    assert (source.name, source.origin) == ("birds-garden", "hf:birds/garden?config=small&label=label")
    refuses_data("data.bad_split_name", "hf:birds/garden", "train[:10%]")


def test_a_data_set_that_the_hub_does_not_give_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'birds/garden' on the Hub\nand more")

    library = types.ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    refuses_data("data.not_from_hub", "hf:birds/garden", reason="Couldn't reach 'birds/garden' on the Hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refuses_data("data.no_datasets", "hf:birds/garden", address="birds/garden")


def test_without_pyarrow_its_extra_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_to_disk(table_of(photos, "train"), photos / "saved")
    pq.write_table(table_of(photos, "train"), photos / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses_data("data.no_pyarrow", f"parquet:{photos}/a.parquet", file=f"{photos}/a.parquet")
    refuses_data("data.no_pyarrow", f"hf:{photos}/saved")


def test_an_empty_cell_is_an_image_that_cannot_be_read(photos: Path) -> None:
    pq.write_table(pa.table({"image": [b"no image", None], "label": ["a", "b"]}), photos / "a.parquet")
    source = open_source(f"parquet:{photos}/a.parquet", "all")
    with pytest.raises(BadImage, match="no bytes in this row"):
        source.load(1)
    with pytest.raises(BadImage, match="none of the formats"):
        source.load(0)


def test_labels_of_the_hub_that_are_missing_are_refused_or_no_labels(photos: Path) -> None:
    table = table_of(photos, "test")
    for labels in ([-1] * 6, [0, 1, -1, 0, 1, 2], [0, 1, 7, 0, 1, 2]):
        changed = table.set_column(1, "label", [labels])
        pq.write_table(changed, photos / f"{labels[2]}{labels[0]}.parquet")
    assert open_source(f"parquet:{photos}/-1-1.parquet", "all").class_names == []
    refuses_data("data.missing_labels", f"parquet:{photos}/-10.parquet", "all", missing=1, count=6)
    refuses_data("data.class_without_name", f"parquet:{photos}/70.parquet", "all", label=7, count=3)
    for labels in (["red", "blue"] * 3, ["red", "cat"] * 3, [True, False] * 3):
        pq.write_table(table.set_column(1, "label", [labels]), photos / f"{labels[1]}.parquet")
    assert open_source(f"parquet:{photos}/blue.parquet", "all").labels.tolist() == [2, 0] * 3
    refuses_data("data.class_without_name", f"parquet:{photos}/cat.parquet", "all", label="cat", count=3)
    refuses_data("data.class_without_name", f"parquet:{photos}/False.parquet", "all", label="False", count=3)


def test_files_that_cannot_be_used_are_refused(photos: Path) -> None:
    table = table_of(photos, "train")
    pq.write_table(table, photos / "a.parquet")
    pq.write_table(table.drop_columns("age"), photos / "b.parquet")
    refuses_data("data.other_columns", f"parquet:{photos}/{{a,b}}.parquet", "all", first=photos / "a.parquet")
    refuses_data("data.no_table", f"parquet:{photos}/c.parquet")
    whole = (photos / "a.parquet").read_bytes()
    (photos / "b.parquet").write_bytes(whole[:-100])
    refuses_data("data.bad_parquet", f"parquet:{photos}/b.parquet")
    os.mkfifo(photos / "c.parquet")
    refuses_data("data.bad_parquet", f"parquet:{photos}/c.parquet", reason="a pipe")
    refuses_data(
        "data.no_column", f"parquet:{photos}/a.parquet?image=imga", name="'imga'", advice="Did you mean 'image'?"
    )
    pq.write_table(pa.table({"image": [[1, 2]], "label": [0]}), photos / "d.parquet")
    refuses_data("data.no_images_in_column", f"parquet:{photos}/d.parquet?image=image", column="image")
    refuses_data("data.no_image_column", f"parquet:{photos}/d.parquet", names="image, label")
    pq.write_table(table.slice(0, 0), photos / "e.parquet")
    refuses_data("data.empty_table", f"parquet:{photos}/e.parquet", "all")


def test_columns_that_python_cannot_hold_are_left_out_and_two_of_one_name_are_refused(photos: Path) -> None:
    table = table_of(photos, "train")
    times = pa.array([2**62] * len(table), pa.timestamp("us"))
    texts = pa.array([b"\xff"] * len(table)).view(pa.string())
    pq.write_table(table.append_column("when", times).append_column("note", texts), photos / "a.parquet")
    source = open_source(f"parquet:{photos}/a.parquet", "all")
    assert len(source) == len(table)
    assert source.table is not None
    assert "when" not in source.table.columns
    assert source.table.columns["note"][0] == "\udcff"
    refuses_data("data.no_column", f"parquet:{photos}/a.parquet?label=when", "all", name="'when'")
    pq.write_table(table.append_column("label", times), photos / "b.parquet")
    refuses_data("data.bad_column_names", f"parquet:{photos}/b.parquet", "all", file=photos / "b.parquet")


def test_files_whose_class_names_differ_are_no_table(photos: Path) -> None:
    table = table_of(photos, "train")
    pq.write_table(table, photos / "a.parquet")
    features = table.schema.metadata[b"huggingface"].replace(b'"blue", "green"', b'"green", "blue"')
    assert features != table.schema.metadata[b"huggingface"]
    pq.write_table(table.replace_schema_metadata({b"huggingface": features}), photos / "b.parquet")
    refuses_data("data.other_columns", f"parquet:{photos}/{{a,b}}.parquet", "all", file=photos / "b.parquet")


def test_folders_that_are_no_data_set_are_refused(photos: Path) -> None:
    refuses_data("data.no_hf_files", f"hf:{photos}", folder=photos)
    refuses_data("data.no_such_folder", "hf:no/such/folder")
    save_to_disk(table_of(photos, "train"), photos / "saved" / "train", 2)
    save_to_disk(table_of(photos, "train").drop_columns("age"), photos / "other" / "train")
    second = photos / "saved" / "train" / "data-00001-of-00002.arrow"
    second.write_bytes((photos / "other" / "train" / "data-00000-of-00001.arrow").read_bytes())
    refuses_data("data.other_columns", f"hf:{photos}/saved", file=second)
    second.write_bytes(b"no stream")
    refuses_data("data.bad_arrow", f"hf:{photos}/saved")
    (photos / "saved" / "train" / "state.json").write_text('{"_data_files": [{"filename": "../../../secret"}]}')
    refuses_data("data.bad_arrow", f"hf:{photos}/saved")
    pq.write_table(table_of(photos, "train"), photos / "train-00001-of-00003.parquet")
    refuses_data("data.missing_shards", f"hf:{photos}", count=3, missing=2)
    for other in ("train.parquet", "train-00000-of-00002.parquet", "train-1-of-3.parquet"):
        pq.write_table(table_of(photos, "train"), photos / other)
        refuses_data("data.mixed_shards", f"hf:{photos}", split="train")
        (photos / other).unlink()
    (photos / "train-00001-of-00003.parquet").rename(photos / "train-00003-of-00003.parquet")
    refuses_data("data.mixed_shards", f"hf:{photos}", split="train")
