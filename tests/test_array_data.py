"""`npz:` and `torchvision:`: pixels and labels in arrays, and the data sets of torchvision that lie on the disk."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_errors import refuses_data
from photos import write_photos

from layerbank.data.sources import open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("images", [PIXELS, PIXELS[..., 0], PIXELS[..., :1], np.asfortranarray(PIXELS)])
def test_arrays_of_every_form_are_read(tmp_path: Path, save: Any, images: np.ndarray) -> None:
    save(tmp_path / "a_train.npz", images=images, labels=LABELS.reshape(-1, 1))
    source = pickle.loads(pickle.dumps(open_source(f"npz:{tmp_path}/a_{{split}}.npz", "train")))
    assert (source.name, len(source), source.class_names) == ("a", 12, ["0", "1", "2"])
    assert source.ids[3] == "a_train.npz[3]"
    wanted = images[..., 0] if images.shape[3:] == (1,) else images
    assert all(np.array_equal(source.read(row), wanted[row]) for row in range(12))


def test_arrays_that_are_stored_as_they_are_are_mapped(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    source = open_source(f"npz:{tmp_path}/a.npz", "all")
    assert isinstance(source._images(), np.memmap)


@pytest.mark.parametrize("form", ["{split}_images {split}_labels", "x_{split} y_{split}"])
def test_a_pair_of_arrays_a_split_is_found(tmp_path: Path, form: str) -> None:
    arrays: dict[str, Any] = {}
    for split, rows in (("train", slice(0, 8)), ("test", slice(8, 12))):
        for name, values in zip(form.format(split=split).split(), (PIXELS, LABELS), strict=True):
            arrays[name] = values[rows]
    np.savez(tmp_path / "a.npz", **arrays)
    train, test = (open_source(f"npz:{tmp_path}/a.npz", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 4)
    assert test.labels.tolist() == LABELS[8:].tolist()
    assert np.array_equal(test.read(1), PIXELS[9])
    assert not set(train.ids) & set(test.ids)
    refuses_data("data.fraction_of_a_split", f"npz:{tmp_path}/a.npz?split=0.2")


def test_an_array_may_name_the_splits_and_the_classes(tmp_path: Path) -> None:
    splits = np.array(["train", "test"] * 6)
    np.savez(tmp_path / "a.npz", data=PIXELS, y=LABELS, split=splits, class_names=["owl", "tit", "wren"])
    test = open_source(f"npz:{tmp_path}/a.npz", "test")
    assert test.ids[:2] == ["a.npz[1]", "a.npz[3]"]
    assert test.class_names == ["owl", "tit", "wren"]
    assert np.array_equal(test.read(1), PIXELS[3])
    assert len(open_source(f"npz:{tmp_path}/a.npz?split=0.25&seed=3", "test")) == 3


def test_labels_may_be_texts_or_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, kinds=np.array(["tit", "owl"] * 6))
    named = open_source(f"npz:{tmp_path}/a.npz?labels=kinds", "all")
    assert (named.class_names, named.labels[:3].tolist()) == (["owl", "tit"], [1, 0, 1])
    assert open_source(f"npz:{tmp_path}/a.npz", "all").class_names == []
    np.savez(tmp_path / "b.npz", images=PIXELS, class_names=["tit", "owl"], kinds=np.array(["tit", "owl"] * 6))
    assert open_source(f"npz:{tmp_path}/b.npz", "all").class_names == []
    by_name = open_source(f"npz:{tmp_path}/b.npz?labels=kinds", "all")
    assert (by_name.class_names, by_name.labels[:3].tolist()) == (["tit", "owl"], [0, 1, 0])


@pytest.mark.parametrize(
    ("arrays", "options", "key", "values"),
    [
        ({"images": PIXELS / 255}, "", "data.range_not_declared", {"dtype": "float64"}),
        ({"images": PIXELS[..., :2]}, "", "data.not_pixels", {"shape": [12, 6, 5, 2]}),
        ({"pictures": PIXELS}, "", "data.no_npz_array", {"present": "pictures"}),
        ({"images": PIXELS}, "?labels=y", "data.no_npz_array", {"names": "y"}),
        ({"images": PIXELS, "y": LABELS[1:]}, "", "data.npz_values", {"count": 12, "shape": [11]}),
        ({"images": PIXELS, "y": np.eye(11)}, "", "data.npz_values", {"shape": [11, 11]}),
        ({"images": PIXELS, "y": np.array([None] * 12)}, "", "data.bad_npz", {"reason": "an array of Python objects"}),
        ({"images": PIXELS}, "?image=x", "data.unknown_option", {"advice": "Did you mean 'images'?"}),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(
    tmp_path: Path, arrays: dict, options: str, key: str, values: dict
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refuses_data(key, f"npz:{tmp_path}/a.npz{options}", "all", **values)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no zip")
    refuses_data("data.bad_npz", f"npz:{tmp_path}/a.npz", "all")
    refuses_data("data.no_table", f"npz:{tmp_path}/b.npz", "all")
    os.mkfifo(tmp_path / "d.npz")
    refuses_data("data.bad_npz", f"npz:{tmp_path}/d.npz", "all", reason="a pipe")
    shape = str(PIXELS.shape).encode()
    for save, huge in ((np.savez, b"(9999999999,)"), (np.savez_compressed, b"(9999999999,)")):
        save(tmp_path / "e.npz", images=PIXELS)
        with zipfile.ZipFile(tmp_path / "e.npz") as archive:
            content, kind = archive.read("images.npy"), archive.getinfo("images.npy").compress_type
        with zipfile.ZipFile(tmp_path / "e.npz", "w", kind) as archive:
            archive.writestr("images.npy", content.replace(shape, huge.ljust(len(shape))).replace(b"|u1", b"<f8"))
        refuses_data("data.bad_npz", f"npz:{tmp_path}/e.npz", "all")
    np.savez(tmp_path / "c_train.npz", images=PIXELS)
    refuses_data("data.no_such_split", f"npz:{tmp_path}/c_{{split}}.npz", "test", splits="train")


# --- torchvision ---


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Twelve training and six test images in the files of MNIST."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 12), ("t10k", 6)):
        pixels = PIXELS[:count, ..., 0]
        header = struct.pack(">IIII", 0x803, count, *pixels.shape[1:])
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = LABELS[:count].astype(np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    return tmp_path


def test_a_data_set_of_torchvision_is_read_from_the_disk(mnist: Path) -> None:
    train, test = (open_source(f"torchvision:MNIST?root={mnist}", split) for split in ("train", "test"))
    assert (len(train), len(test), train.name) == (12, 6, "MNIST")
    assert train.class_names[:2] == ["0 - zero", "1 - one"]
    assert train.labels.tolist() == LABELS.tolist()
    image, _ = pickle.loads(pickle.dumps(test)).load(2)
    assert np.array_equal(np.asarray(image)[..., 0], PIXELS[2, ..., 0])
    refuses_data("data.no_such_split", f"torchvision:MNIST?root={mnist}", "val", splits="train, test")
    refuses_data("data.fraction_of_a_split", f"torchvision:MNIST?root={mnist}&split=0.2")
    refuses_data("data.bad_fraction", f"torchvision:MNIST?root={mnist}&split=fold", split="fold")
    refuses_data("data.seed_without_fraction", f"torchvision:MNIST?root={mnist}&seed=3")


def test_a_data_set_without_splits_has_a_fraction_held_out(tmp_path: Path) -> None:
    write_photos(tmp_path / "eurosat" / "2750", {".": 4})
    test = open_source(f"torchvision:EuroSAT?root={tmp_path}&split=0.25", "test")
    assert (test.class_names, test.labels.tolist()) == (["blue", "green", "red"], [0, 1, 2])
    assert len(open_source(f"torchvision:EuroSAT?root={tmp_path}", "all")) == 12
    refuses_data("data.no_torchvision_split", f"torchvision:EuroSAT?root={tmp_path}", "test")


def test_what_torchvision_does_not_have_is_refused(tmp_path: Path) -> None:
    refuses_data("data.unknown_torchvision_data", "torchvision:MNISt?root=x", advice="Did you mean 'MNIST'?")
    refuses_data("data.unknown_torchvision_data", "torchvision:FakeData?root=x", name="FakeData")
    refuses_data("data.torchvision_failed", f"torchvision:ImageFolder?root={tmp_path}&allow_empty=²&split=0.2")
    refuses_data("data.unknown_torchvision_data", "torchvision:LSUN?root=x", name="LSUN")  # unpickles ./_cache_...
    refuses_data("data.no_torchvision_root", "torchvision:MNIST")
    refuses_data("data.unknown_option", f"torchvision:MNIST?root={tmp_path}&rot=1", option="rot")
    refuses_data("data.torchvision_failed", f"torchvision:MNIST?root={tmp_path}", root=tmp_path)
    assert list(tmp_path.iterdir()) == []
