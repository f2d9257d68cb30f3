"""The classes of two splits: found by value or by folder, matched by name, and named where they do not go together."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import MODEL, run
from messages import raises, refuses
from photos import TINY_MODEL, write_photos

import layerbank as lb
from layerbank.data.classes import look_alikes, match_classes
from layerbank.data.image_source import ImageSource
from layerbank.data.sources import open_source
from layerbank.errors import RequestError
from layerbank.events import Event, FilesLeftOut, UnevenClasses

CLASSES = ("blue", "green", "red")


def in_folders(root: Path, **counts: dict[str, int]) -> str:
    """Folders of empty files, which are images by their names: split -> class -> number."""
    for split, classes in counts.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                (root / split / name / f"{number}.png").touch()
    return f"folder:{root}"


def in_hdf5(root: Path, **labels: list[int]) -> str:
    for split, values in labels.items():
        with h5py.File(root / f"x_{split}.h5", "w") as file:
            file["images"] = np.zeros((len(values), 8, 8, 3), np.uint8)
            file["labels"] = np.array(values)
    return f"hdf5:{root}/x_{{split}}.h5"


def in_tars(root: Path, **labels: list[int]) -> str:
    for split, values in labels.items():
        (root / split).mkdir()
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for number, value in enumerate(values):
                for name, data in ((f"{number}.png", b"x"), (f"{number}.cls", str(value).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"wds:{root}"


def match(uri: str) -> tuple[ImageSource, ImageSource, list[Event]]:
    train, test = (open_source(uri, split) for split in ("train", "test"))
    events: list[Event] = []
    match_classes(train, test, events.append)
    return train, test, events


@pytest.mark.parametrize("write", [in_hdf5, in_tars])
@pytest.mark.parametrize("last", [2, 47_222, 1_700_000_000, 10**17])
def test_class_numbers_are_classes_by_value(write, last: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    train, test, events = match(write(tmp_path, train=[last, 0, 1, 0, 1, last], test=[1, last, 1]))
    assert train.class_names == ["0", "1", str(last)]
    assert train.labels.tolist() == [2, 0, 1, 0, 1, 2]
    assert test.class_names == train.class_names
    assert test.labels.tolist() == [1, 2, 1]
    names = {"train": f"{train.name}/train", "test": f"{test.name}/test"}
    assert events == [UnevenClasses(**names, untested=("0",), untrained=(), single=())]


def test_what_lies_beside_the_splits_is_no_class(tmp_path: Path) -> None:
    uri = in_folders(
        tmp_path,
        train={"cat": 3, "dog": 3},
        test={"cat": 2, "dog": 2},
        raw={"canon": 4, "cat": 1},
        runs={"photos": 1},
        caches={"timm-vit": 1},
        thumbnails={"cat": 3, "eel": 1},
    )
    train, test, events = match(uri)
    assert train.class_names == test.class_names == ["cat", "dog"]
    assert not events


def test_working_inside_the_folder_of_the_images_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2, "test": 2})
    monkeypatch.chdir(photos)
    before = open_source("folder:.", "train")
    in_folders(photos, runs={"photos": 3}, caches={"model": 2}, report={"figures": 2})
    after = open_source("folder:.", "train")
    assert (before.ids, before.class_names) == (after.ids, after.class_names)


def test_a_class_without_test_images_keeps_the_numbers_of_the_others(tmp_path: Path) -> None:
    _, test, (event,) = match(in_folders(tmp_path, train={"a": 2, "b": 3, "c": 1}, test={"b": 1, "c": 2}))
    assert test.labels.tolist() == [1, 2, 2]
    assert isinstance(event, UnevenClasses)
    assert (event.untested, event.untrained, event.single) == (("a",), (), ("c",))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("food", "Food"), ("caf\u00e9", "cafe\u0301"), ("STRASSE", "stra\u00dfe"), ("food", "food ")),
        *(("fast food", "fast\u00a0food"), ("food", "food\u200b"), ("food", "\uff46ood"), ("7", "007")),
    ],
)
def test_names_that_look_alike_are_named(one: str, other: str, tmp_path: Path) -> None:
    uri = in_folders(tmp_path, train={one: 2, "drink": 2}, test={other: 2, "drink": 2})
    with raises("data.look_alike_classes", RequestError, trained=ascii(one), tested=ascii(other)):
        match(uri)


def test_names_that_look_alike_are_two_classes_where_both_splits_have_them(tmp_path: Path) -> None:
    counts = {"a": 2, "A": 2, "b": 2, "007": 1, "7": 1}
    train, test, events = match(in_folders(tmp_path, train=counts, test={**counts, "007": 0, "7": 0}))
    assert train.class_names == test.class_names == ["007", "7", "A", "a", "b"]
    assert [type(event) for event in events] == [UnevenClasses]
    assert look_alikes(train) == ("007", "7", "A", "a")
    assert look_alikes(test) == ("A", "a")


def test_classes_of_a_split_that_look_alike_are_reported_once(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2})
    (photos / "train" / "blue").rename(photos / "train" / "Red")
    how = ["--split", "train", "--levels", "last", "--cache", tmp_path / "caches"]
    result = run("extract", *MODEL, "--data", f"folder:{photos}", *how)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("2 classes of photos/train differ in case") == 1
    assert "'Red', 'red'" in result.stderr


LATIN = [b"caf\xe9", b"caf\xe8", b"tea", b"tea"]


def npz_labels(root: Path) -> str:
    np.savez(root / "a.npz", images=np.zeros((4, 8, 8), np.uint8), labels=LATIN)
    return f"npz:{root}/a.npz?split=0.5"


def npz_class_names(root: Path) -> str:
    np.savez(root / "a.npz", images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 2, 2], classes=LATIN[:3])
    return f"npz:{root}/a.npz?split=0.5"


def hdf5_labels(root: Path) -> str:
    with h5py.File(root / "x_train.h5", "w") as file:
        file["images"], file["labels"] = np.zeros((4, 8, 8), np.uint8), np.array(LATIN)
    return f"hdf5:{root}/x_{{split}}.h5"


def hdf5_class_names(root: Path) -> str:
    uri = in_hdf5(root, train=[0, 1, 2, 2])
    with h5py.File(root / "x_train.h5", "a") as file:
        file.attrs["classes"] = np.array(LATIN[:3])
    return uri


def parquet_labels(root: Path) -> str:
    import pyarrow
    from pyarrow import parquet

    labels = pyarrow.array(LATIN).view(pyarrow.string())  # nobody checks that it is UTF-8
    parquet.write_table(pyarrow.table({"image": [b"x"] * 4, "label": labels}), root / "a.parquet")
    return f"parquet:{root}/a.parquet?split=0.5"


def folders(root: Path) -> str:
    for name in LATIN[:3]:
        (root / "train" / os.fsdecode(name)).mkdir(parents=True)
        (root / "train" / os.fsdecode(name) / "0.png").touch()
    return f"folder:{root}"


@pytest.mark.parametrize("write", [npz_labels, npz_class_names, hdf5_labels, hdf5_class_names, parquet_labels, folders])
def test_names_of_classes_that_are_not_utf_8_are_refused(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    uri = write(tmp_path)
    with raises("data.not_utf8", RequestError) as refused:
        open_source(uri, "train")
    assert "caf\\udce" in refused.error.values["name"]


def test_test_images_of_a_class_without_training_images_are_refused(tmp_path: Path) -> None:
    uri = in_folders(tmp_path, train={"a": 2, "b": 2}, test={"a": 1, "c": 1, "d": 2})
    with raises("data.untrained_classes", RequestError, names="c, d", trained="a, b"):
        match(uri)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    with raises("data.one_class", RequestError, names="a"):
        match(in_folders(tmp_path, train={"a": 2}, test={"a": 1}))


def test_probe_names_the_classes_before_it_opens_the_model(tmp_path: Path) -> None:
    uri = in_folders(tmp_path, train={"Food": 2, "drink": 2}, test={"food": 2, "drink": 2})
    result = run("probe", "--model", "no/such-model", "--data", uri, "--probe", "linear-cls")
    refuses(result, "data.look_alike_classes")


@pytest.mark.parametrize(("content", "line"), [("cat\nfrösche".encode("latin-1"), 2), (b"\xff\xfec\0", 1)])
def test_class_names_in_another_encoding_are_refused(content: bytes, line: int, tmp_path: Path) -> None:
    uri = in_tars(tmp_path, train=[0, 1], test=[0, 1])
    (tmp_path / "classnames.txt").write_bytes(content)
    with raises("data.not_utf8_text", RequestError, line=line):
        open_source(uri, "train")


def test_a_byte_order_mark_is_no_part_of_a_class_name(tmp_path: Path) -> None:
    uri = in_tars(tmp_path, train=[0, 1], test=[0, 1])
    (tmp_path / "classnames.txt").write_bytes("\ufeffcat\ndog\n".encode())
    assert open_source(uri, "train").class_names == ["cat", "dog"]


def test_one_number_in_two_spellings_is_no_class(tmp_path: Path) -> None:
    uri = in_tars(tmp_path, train=["7", "007", "1"])  # type: ignore[list-item]
    with raises("data.labels_look_alike", RequestError, number=7, names="007, 7"):
        open_source(uri, "train")


@pytest.mark.parametrize(
    ("label", "key"),
    [
        (b"9" * 5000, "bad_class"),
        (b"9" * 1000, "mixed_labels"),
        (b"-1", "label_below_zero"),
        ("\u0663".encode(), "mixed_labels"),
        (b"", "bad_class"),
    ],
)
def test_a_class_beside_numbers_that_is_no_number_of_64_bits_is_refused(label: bytes, key: str, tmp_path: Path) -> None:
    in_tars(tmp_path, train=[0])
    with tarfile.open(tmp_path / "train" / "0.tar", "a") as tar:
        for name, data in (("x.png", b"x"), ("x.cls", label)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with raises(f"data.{key}", RequestError):
        open_source(f"wds:{tmp_path}", "train")


def test_images_in_two_splits_and_under_two_labels_are_counted(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 8, "test": 4})
    for name, place in (("000", "test/red/same.png"), ("001", "test/blue/moved.png"), ("002", "train/blue/twice.png")):
        (photos / place).write_bytes((photos / "train" / "red" / f"{name}.png").read_bytes())
    folders = ["--cache", tmp_path / "caches", "--runs", tmp_path / "runs"]
    result = run("probe", *MODEL, "--data", f"folder:{photos}", "--probe", "ridge-cls", *folders)
    assert result.exit_code == 0
    assert "2 of 14 images of photos/test are also in photos/train, 1 of them with another label" in result.stderr
    assert "2 images of photos/train with the bytes of another image and another label" in result.stderr


def test_class_names_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = in_tars(tmp_path, train=[0, 1])
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")

    def fail(self: Path, **_: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_text", fail)
    with raises("data.unreadable_text", RequestError, file=tmp_path / "classnames.txt", reason="Input/output error"):
        open_source(uri, "train")


@pytest.mark.parametrize("uri", ["folder:{}", "images:{}/train"])
def test_files_that_are_no_images_are_counted_by_extension(uri: str, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2})
    for name in (
        "a.GIF",
        "b.gif",
        "notes.txt",
        "LICENSE",
        ".DS_Store",
        "Thumbs.db",
        "._x.png",
        ".git/c.gif",
        "@eaDir/d.png",
    ):
        (photos / "train" / "red" / name).parent.mkdir(exist_ok=True)
        (photos / "train" / "red" / name).touch()
    source = open_source(uri.format(photos), "train")
    assert len(source) == 6
    assert source.left_out == {".gif": 2, ".txt": 1, "no extension": 1}


def test_what_is_left_out_is_said_once(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2})
    (photos / "train" / "red" / "a.gif").touch()
    result = run(
        "extract", *MODEL, "--data", f"folder:{photos}", "--split", "train", "--levels", "last", "--cache", tmp_path
    )
    assert result.exit_code == 0
    assert result.stderr.count("left out of photos/train: .gif (1)") == 1


def test_labels_beyond_63_bits_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x_train.h5", "w") as file:
        file["images"] = np.zeros((2, 8, 8, 3), np.uint8)
        file["labels"] = np.array([0, 2**64 - 1], np.uint64)
    with raises("data.negative_label", RequestError, label=2**64 - 1):
        open_source(f"hdf5:{tmp_path}/x_{{split}}.h5", "train")


def test_a_test_split_without_a_readable_image_is_failed_work(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 8, "test": 2})
    for number, file in enumerate(photos.glob("test/*/*.png")):
        file.write_bytes(b"%d" % number)
    folders = ["--cache", tmp_path / "caches", "--runs", tmp_path / "runs"]
    how = ["--probe", "ridge-cls", "--on-bad-image", "skip"]
    result = run("probe", *MODEL, "--data", f"folder:{photos}", *how, *folders)
    refuses(result, "probing.no_test_images", exit_code=1, num_images=6)
    assert list(tmp_path.rglob("results.jsonl")) == []


@pytest.mark.parametrize("labels", [[0, 1, 2, 2], [2, 0, 1, 1]])
def test_classes_of_one_name_keep_their_numbers_where_both_splits_name_the_same(
    labels: list[int], tmp_path: Path
) -> None:
    uri = in_tars(tmp_path, train=[0, 1, 2, 0], test=labels)
    (tmp_path / "classnames.txt").write_text("crane\nowl\ncrane\n")  # the bird and the machine
    train, test, events = match(uri)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 0], labels)
    assert test.class_names == ["crane", "owl", "crane"]
    (event,) = events
    assert isinstance(event, UnevenClasses)
    assert event.single == ("owl", "crane")


def test_classes_of_one_name_are_refused_where_the_splits_name_others(tmp_path: Path) -> None:
    for split, names in (("train", ["crane", "owl", "crane"]), ("test", ["owl", "crane"])):
        with h5py.File(tmp_path / f"x_{split}.h5", "w") as file:
            file["images"] = np.zeros((4, 8, 8, 3), np.uint8)
            file["labels"] = np.array([0, 1, 0, 1])
            file["labels"].attrs["class_names"] = names
    with raises("data.ambiguous_classes", RequestError, names="crane"):
        match(f"hdf5:{tmp_path}/x_{{split}}.h5")


def test_what_is_said_of_the_data_is_said_once_by_several_processes(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 70, "test": 3})
    (photos / "train" / "red" / "a.gif").touch()
    (photos / "train" / "blue" / "twice.png").write_bytes((photos / "train" / "red" / "000.png").read_bytes())
    shutil.rmtree(photos / "test" / "red")
    options = ("--data", f"folder:{photos}", "--levels", "last", "--processes", "2", "--cache", tmp_path / "caches")
    result = run("extract", *MODEL, *options)
    assert result.exit_code == 0, result.output
    for text in (
        "left out of photos/train: .gif (1)",
        "2 images of photos/train with the bytes",
        "1 class in photos/train without images",
    ):
        assert result.stderr.count(text) == 1


def test_python_reports_the_same(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 8, "test": 3})
    (photos / "train" / "red" / "a.gif").touch()
    shutil.rmtree(photos / "test" / "red")
    model = lb.open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")
    events: list[Event] = []
    train, test = (
        lb.extract(
            model, lb.open_images(f"folder:{photos}", split), levels="last", cache=tmp_path, progress=events.append
        )
        for split in ("train", "test")
    )
    lb.probe(train, test, probes=["ridge-cls"], runs=tmp_path / "runs", progress=events.append)
    assert [type(event) for event in events if isinstance(event, FilesLeftOut | UnevenClasses)] == [
        FilesLeftOut,
        UnevenClasses,
    ]
