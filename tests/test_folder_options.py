"""`folder:` without folders of splits, and with nested class folders; folders of splits mean what they always meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_errors import refuses_data
from photos import write_photos

from layerbank.data.sources import open_source


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """DIR/<class>/<n>.png: ten images of each of three classes."""
    return write_photos(tmp_path / "photos", {".": 10})


def test_a_share_of_each_class_is_held_out(photos: Path) -> None:
    train, test = (open_source(f"folder:{photos}?split=0.2", split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [8, 8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert train.class_names == test.class_names == ["blue", "green", "red"]
    assert sorted(train.ids + test.ids) == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert all(id.startswith(f"{test.class_names[label]}/") for id, label in zip(test.ids, test.labels, strict=True))


def test_the_seed_decides_which(photos: Path) -> None:
    def ids(options: str) -> list[str]:
        return open_source(f"folder:{photos}?split=0.2{options}", "test").ids

    assert ids("") == ids("&seed=0") != ids("&seed=1")


def test_an_image_that_is_added_moves_few_others(photos: Path) -> None:
    before = set(open_source(f"folder:{photos}?split=0.2", "test").ids)
    (photos / "red" / "new.png").write_bytes((photos / "red" / "000.png").read_bytes())
    assert len(before - set(open_source(f"folder:{photos}?split=0.2", "test").ids)) <= 1


def test_nested_classes_are_paths(tmp_path: Path) -> None:
    root = tmp_path / "birds"
    for split in ("train", "test"):
        write_photos(root / split, {"small": 2}, ("wren", "tit"))
        write_photos(root / split, {"big": 2}, ("owl",), seed=1)
    assert open_source(f"folder:{root}", "train").class_names == ["big", "small"]
    nested = open_source(f"folder:{root}?classes=nested", "train")
    assert nested.class_names == ["big/owl", "small/tit", "small/wren"]
    assert nested.labels.tolist() == [0, 0, 1, 1, 2, 2]
    both = open_source(f"folder:{root / 'train'}?classes=nested&split=0.5", "test")
    assert both.class_names == nested.class_names
    assert len(both) == 3


def test_a_folder_with_a_question_mark_in_its_name_is_that_folder(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos?split=0.5", {"train": 2})
    assert len(open_source(f"folder:{folder}", "train")) == 6


@pytest.mark.parametrize(
    ("options", "split", "key", "values"),
    [
        ("?split=2", "train", "data.bad_fraction", {"split": "2"}),
        ("?classes=flat", "train", "data.bad_folder_option", {"option": "classes=flat"}),
        ("?seed=1", "train", "data.seed_without_fraction", {}),
        ("?splits=0.2", "train", "data.unknown_option", {"option": "splits", "advice": "Did you mean 'split'?"}),
        ("?split=0.2", "val", "data.no_such_split", {"splits": "train, test"}),
    ],
)
def test_wrong_options_are_refused(photos: Path, options: str, split: str, key: str, values: dict[str, str]) -> None:
    refuses_data(key, f"folder:{photos}{options}", split, **values)


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2, "test": 2})
    refuses_data("data.splits_as_classes", f"folder:{photos}?split=0.2", names="test, train")


def test_a_flat_folder_names_the_way_out(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {".": 1})
    (photos / "red" / "000.png").rename(photos / "loose.png")
    refuses_data("data.images_without_class", f"folder:{photos}?split=0.2", folder=photos, count=1, first="loose.png")
