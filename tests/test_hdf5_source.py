"""`hdf5:`: datasets of pixels and labels, named or found, in one file or two, as PatchCamelyon ships them."""

import io
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_errors import refuses_data
from messages import raises
from PIL import Image

from layerbank.data.image_source import row_hash
from layerbank.data.sources import BadImage, open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0, 2, 1], dtype=np.uint8)


def write(path: Path, /, attributes: dict | None = None, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        file.attrs.update(attributes or {})
    return path


@pytest.fixture
def pcam(tmp_path: Path) -> str:
    """Two splits, pixels and labels in files of their own, labels of shape [N, 1, 1, 1]."""
    for split, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        write(tmp_path / f"pcam_{split}_x.h5", x=PIXELS[rows])
        write(tmp_path / f"pcam_{split}_y.h5", y=LABELS[rows].reshape(-1, 1, 1, 1))
    return f"hdf5:{tmp_path}/pcam_{{split}}_x.h5?labels=pcam_{{split}}_y.h5::y"


def test_pixels_and_labels_lie_in_two_files_as_patchcamelyon_ships_them(pcam):
    train, test = open_source(pcam, "train"), open_source(pcam, "test")
    assert train.ids == [f"pcam_train_x.h5[{row}]" for row in range(4)]
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1, 0], [1, 0])
    assert (train.class_names, test.class_names) == (["0", "1"], ["1", "2"])
    assert train.labels.dtype == np.int64
    assert (train.name, train.split) == ("pcam_x", "train")
    image, content_hash = test.load(1)
    assert np.array_equal(np.asarray(image), PIXELS[5])
    assert content_hash == row_hash(PIXELS[5])


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "label"), ("data", "y")])
def test_the_usual_dataset_names_are_found(tmp_path, names):
    write(tmp_path / "a_train.h5", **{names[0]: PIXELS, names[1]: LABELS})
    assert open_source(f"hdf5:{tmp_path}/a_{{split}}.h5", "train").labels.tolist() == LABELS.tolist()


def test_splits_may_be_groups_of_one_file(tmp_path):
    write(tmp_path / "all.h5", **{"train/pix": PIXELS, "train/target": LABELS})
    source = open_source(f"hdf5:{tmp_path}/all.h5?images={{split}}/pix&labels={{split}}/target", "train")
    assert (len(source), source.name) == (6, "all")


@pytest.mark.parametrize("shape", [(6, 5, 12), (6, 5, 12, 1)])
def test_grey_images_become_rgb(tmp_path, shape):
    grey = PIXELS.reshape(shape)
    write(tmp_path / "a_train.h5", x=grey, y=LABELS)
    image, content_hash = open_source(f"hdf5:{tmp_path}/a_{{split}}.h5", "train").load(3)
    assert (image.mode, image.size) == ("RGB", (12, 5))
    assert np.array_equal(np.asarray(image)[:, :, 2], grey[3].reshape(5, 12))
    assert content_hash == row_hash(grey[3].reshape(5, 12))


@pytest.mark.parametrize("holder", ["file", "dataset", "labels file"])
def test_class_names_are_read_from_an_attribute(pcam, holder, tmp_path):
    letter = "y" if holder == "labels file" else "x"
    with h5py.File(tmp_path / f"pcam_train_{letter}.h5", "a") as file:
        file.attrs["class_names"] = ["normal", "Tumór", b"other".decode()]
    if holder == "dataset":
        with h5py.File(tmp_path / "pcam_train_y.h5", "a") as file:
            file["y"].attrs["classes"] = np.array([b"a", b"b", b"c"])
    expected = ["a", "b", "c"] if holder == "dataset" else ["normal", "Tumór", "other"]
    assert open_source(pcam, "train").class_names == expected


def test_a_source_survives_pickling_after_its_file_was_opened(pcam):
    source = open_source(pcam, "train")
    before = source.load(2)[1]
    assert pickle.loads(pickle.dumps(source)).load(2)[1] == before


def test_a_compressed_chunk_larger_than_hdf5s_cache_is_unpacked_once(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 100, 100, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a_train.h5", "w") as file:
        file.create_dataset("x", data=pixels, chunks=(64, 100, 50, 3), compression="gzip")
        file["y"] = np.zeros(64, dtype=np.int64)
    source = open_source(f"hdf5:{tmp_path}/a_{{split}}.h5", "train")
    source.load(0)
    cache = source._open_in[1].file.id.get_access_plist().get_cache()
    assert cache[2] >= 64 * 100 * 100 * 3


def test_a_file_that_vanished_is_a_bad_image(pcam, tmp_path):
    source = open_source(pcam, "train")
    (tmp_path / "pcam_train_x.h5").unlink()
    with raises("data.bad_image", BadImage, id="pcam_train_x.h5[1]", file=f"{tmp_path}/pcam_train_x.h5::/x"):
        source.load(1)


# --- requests that cannot be met ---


def test_an_address_without_a_split_is_refused(tmp_path):
    refuses_data("data.pattern_without_split", f"hdf5:{tmp_path}/a.h5")


def test_no_such_split_lists_those_there_are(pcam, tmp_path):
    values = {"data": pcam, "place": f"{tmp_path}/pcam_valid_x.h5", "splits": "test, train"}
    refuses_data("data.no_such_split", pcam, "valid", **values)


def test_a_missing_labels_file(pcam, tmp_path):
    (tmp_path / "pcam_train_y.h5").unlink()
    refuses_data("data.no_hdf5_file", pcam, path=tmp_path / "pcam_train_y.h5")


def test_a_file_that_is_not_hdf5(pcam, tmp_path):
    (tmp_path / "pcam_train_x.h5").write_bytes(b"no")
    refuses_data("data.not_hdf5", pcam, path=tmp_path / "pcam_train_x.h5")


def test_an_unknown_option_is_refused_with_the_nearest(pcam):
    refuses_data("data.unknown_option", pcam + "&image=x", option="image", advice="Did you mean 'images'?")


def test_a_dataset_that_is_not_there_lists_those_that_are(pcam, tmp_path):
    values = {"file": tmp_path / "pcam_train_x.h5", "names": "pictures", "present": "x", "option": "images"}
    refuses_data("data.no_hdf5_dataset", pcam + "&images=pictures", **values)


def test_a_file_without_labels_says_how_to_name_another(pcam, tmp_path):
    values = {"names": "labels or label or y", "present": "x", "option": "labels"}
    refuses_data("data.no_hdf5_dataset", pcam.partition("?")[0], **values)


@pytest.mark.parametrize(
    ("pixels", "dtype", "shape"),
    [
        (PIXELS[..., :2], "uint8", [6, 5, 4, 2]),
        (PIXELS[:0], "uint8", [0, 5, 4, 3]),
        (PIXELS.reshape(6, -1), "uint8", [6, 60]),
    ],
)
def test_pixels_of_another_layout_are_refused(tmp_path, pixels, dtype, shape):
    path = write(tmp_path / "a_train.h5", x=pixels, y=LABELS)
    uri = f"hdf5:{tmp_path}/a_{{split}}.h5"
    refuses_data("data.not_pixels", uri, dataset=f"{path}::/x", dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("labels", "key", "values"),
    [
        (np.zeros((6, 2, 2), dtype=np.int64), "data.not_labels", {"dtype": "int64", "shape": [6, 2, 2]}),
        (np.array([0, 1, -1, 0, 2, 1]), "data.negative_label", {"label": -1}),
        (np.int64(3), "data.not_labels", {"dtype": "int64", "shape": []}),
    ],
)
def test_labels_that_are_no_class_indices_are_refused(tmp_path, labels, key, values):
    path = write(tmp_path / "a_train.h5", x=PIXELS, y=labels)
    refuses_data(key, f"hdf5:{tmp_path}/a_{{split}}.h5", dataset=f"{path}::/y", **values)


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., :1]])
def test_colours_may_come_before_height_and_width(tmp_path, pixels):
    write(tmp_path / "last_train.h5", x=pixels, y=LABELS)
    write(tmp_path / "first_train.h5", x=np.moveaxis(pixels, 3, 1), y=LABELS)
    last, first = (open_source(f"hdf5:{tmp_path}/{name}_{{split}}.h5", "train") for name in ("last", "first"))
    rows = np.array([1, 4])
    for one, other in zip(last.read_each(rows), first.read_each(rows), strict=True):
        assert np.array_equal(one, other)
    assert last.load(2)[1] == first.load(2)[1]


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        (PIXELS / 255, "0,1"),
        (PIXELS.astype(np.float32) / 127.5 - 1, "-1,1"),
        (PIXELS.astype(np.uint16) * 16, "0,4080"),
        (np.moveaxis(PIXELS, 3, 1) / 255, "0,1"),
    ],
)
def test_numbers_of_a_declared_range_become_pixels(tmp_path, values, limits):
    write(tmp_path / "a_train.h5", x=values, y=LABELS)
    source = open_source(f"hdf5:{tmp_path}/a_{{split}}.h5?range={limits}", "train")
    assert all(np.array_equal(source.read(row), PIXELS[row]) for row in range(6))


def test_other_numbers_need_a_declared_range(tmp_path):
    path = write(tmp_path / "a_train.h5", x=PIXELS / 255, y=LABELS)
    refuses_data("data.range_not_declared", f"hdf5:{tmp_path}/a_{{split}}.h5", dataset=f"{path}::/x", dtype="float64")
    for limits in ("1,0", "0", "0,inf", "low,high"):
        refuses_data("data.bad_range", f"hdf5:{tmp_path}/a_{{split}}.h5?range={limits}", range=repr(limits))


def test_a_value_that_is_no_number_is_a_bad_image(tmp_path):
    values = PIXELS / 255
    values[2, 0, 0, 0] = np.nan
    write(tmp_path / "a_train.h5", x=values, y=LABELS)
    source = open_source(f"hdf5:{tmp_path}/a_{{split}}.h5?range=0,1", "train")
    with raises("data.bad_image", BadImage, id="a_train.h5[2]"):
        source.load(2)
    assert [one is None for one in source.read_each(np.arange(4))] == [False, False, True, False]


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("form", ["bytes of any length", "opaque"])
def test_images_may_be_encoded_bytes(tmp_path, form):
    images = [encoded(one) for one in PIXELS]
    with h5py.File(tmp_path / "a_train.h5", "w") as file:
        file["y"] = LABELS
        if form == "opaque":
            file["x"] = np.array(images, dtype=f"V{max(map(len, images))}")
        else:
            file.create_dataset("x", (6,), dtype=h5py.vlen_dtype(np.uint8))
            for row, image in enumerate(images):
                file["x"][row] = np.frombuffer(image, dtype=np.uint8)
    source = open_source(f"hdf5:{tmp_path}/a_{{split}}.h5", "train")
    assert all(np.array_equal(np.asarray(source.load(row)[0]), PIXELS[row]) for row in range(6))
    assert [row_hash(one) for one in source.read_each(np.arange(6))] == [source.load(row)[1] for row in range(6)]


def test_labels_may_be_texts_or_one_hot(tmp_path):
    names = np.array(["tit", "owl", "tit", "owl", "wren", "owl"], dtype=h5py.string_dtype())
    write(tmp_path / "a_train.h5", x=PIXELS, y=names)
    named = open_source(f"hdf5:{tmp_path}/a_{{split}}.h5", "train")
    assert (named.class_names, named.labels.tolist()) == (["owl", "tit", "wren"], [1, 0, 1, 0, 2, 0])
    for dtype in (bool, np.uint8, np.float32):
        write(tmp_path / "b_train.h5", x=PIXELS, y=np.eye(4, dtype=dtype)[LABELS])
        one_hot = open_source(f"hdf5:{tmp_path}/b_{{split}}.h5", "train")
        assert (one_hot.class_names, one_hot.labels.tolist()) == (["0", "1", "2", "3"], LABELS.tolist())


def test_as_many_labels_as_images(tmp_path):
    write(tmp_path / "a_train.h5", x=PIXELS, y=LABELS[:5])
    refuses_data("data.label_count", f"hdf5:{tmp_path}/a_{{split}}.h5", images=6, labels=5, split="train")


def test_a_class_beyond_the_names(tmp_path):
    write(tmp_path / "a_train.h5", attributes={"classes": ["a", "b"]}, x=PIXELS, y=LABELS)
    uri = f"hdf5:{tmp_path}/a_{{split}}.h5"
    refuses_data("data.class_without_name", uri, place=f"{uri}, split train", count=2, label=2)
