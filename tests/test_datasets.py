"""Data URIs, the properties of every source (order, digest, pixels, bad images), and `folder:` and `images:`."""

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_errors import names_of, refuses_data
from messages import raises
from PIL import Image
from xxhash import xxh3_64_intdigest

from layerbank.api.data import images_from
from layerbank.data.pixels import LEGACY, USUAL, PixelRule
from layerbank.data.sources import SOURCES, BadImage, open_source


def write_image(path: Path, colour=(200, 30, 60), size=(9, 7), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits; `test` lacks the class owl; every format and depth once."""
    root = tmp_path / "birds"
    write_image(root / "train" / "wren" / "b.jpg")
    write_image(root / "train" / "wren" / "a.JPEG")
    write_image(root / "train" / "owl" / "deep" / "er" / "c.webp")
    write_image(root / "train" / "Zaunkönig 鳥" / "übér.png")
    write_image(root / "test" / "wren" / "d.png")
    write_image(root / "test" / "Zaunkönig 鳥" / "e.png")
    (root / "train" / "wren" / "notes.txt").write_text("no image")
    (root / "train" / "wren" / "._b.jpg").write_bytes(b"what a Mac leaves behind")
    (root / "README.md").write_text("no split")
    return root


# --- URIs ---


@pytest.mark.parametrize(
    ("uri", "key", "values"),
    [
        ("flder:/data", "layerbank.unknown_part", {"name": "flder", "advice": "Did you mean 'folder'?"}),
        ("webdataset:/data", "layerbank.unknown_part", {"name": "webdataset", "advice": "Choose one of them."}),
        ("folder:", "data.no_address", {"form": "folder:DIR"}),
        (
            "/data/cats",
            "data.no_scheme",
            {
                "schemes": "folder, csv, parquet, hf, wds, hdf5, npz, torchvision, images, demo",
                "nearest": "folder:/data/cats",
            },
        ),
        ("", "data.no_scheme", {"nearest": "folder:"}),
    ],
)
def test_a_uri_that_names_no_data_is_refused_with_the_nearest_form(uri, key, values):
    refuses_data(key, uri, **values)


def test_a_path_to_tars_without_a_scheme_is_taken_for_wds(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").touch()
    refuses_data("data.no_scheme", str(tmp_path), nearest=f"wds:{tmp_path}")


@pytest.mark.parametrize("split", ["", "a/b", "..", ".hidden"])
def test_a_split_that_is_no_plain_name_is_refused(folder, split):
    refuses_data("data.bad_split_name", f"folder:{folder}", split, uri=f"folder:{folder}", split=split)
    with raises("data.bad_split_name" if split else "jobs.wrong_job_value"):
        images_from([b"x"], name="mine", split=split)


def test_each_source_says_what_it_is_in_a_line():
    assert list(SOURCES) == ["folder", "csv", "parquet", "hf", "wds", "hdf5", "npz", "torchvision", "images", "demo"]
    for name, source in SOURCES.items():
        assert source.form.startswith(f"{name}:")
        assert "\n" not in source.meaning


# --- folder: order and classes ---


def test_ids_are_sorted_paths_relative_to_the_folder(folder):
    source = open_source(f"folder:{folder}", "train")
    assert source.ids == [
        "train/Zaunkönig 鳥/übér.png",
        "train/owl/deep/er/c.webp",
        "train/wren/a.JPEG",
        "train/wren/b.jpg",
    ]
    assert (source.name, source.split, len(source)) == ("birds", "train", 4)
    assert source.labels.dtype == np.int64


def test_classes_are_those_of_the_split(folder):
    train, test = open_source(f"folder:{folder}", "train"), open_source(f"folder:{folder}", "test")
    assert (train.class_names, train.labels.tolist()) == (["Zaunkönig 鳥", "owl", "wren"], [0, 1, 2, 2])
    assert (test.class_names, test.labels.tolist()) == (["Zaunkönig 鳥", "wren"], [0, 1])
    assert test.num_classes == 2


def test_an_empty_class_folder_is_no_class(folder):
    (folder / "train" / "dodo").mkdir()
    assert "dodo" not in open_source(f"folder:{folder}", "train").class_names


def test_a_linked_class_folder_is_followed_and_a_link_back_up_is_not(folder):
    write_image(folder / "elsewhere" / "birds" / "f.png")
    (folder / "train" / "emu").symlink_to(folder / "elsewhere" / "birds")
    (folder / "train" / "owl" / "loop").symlink_to(folder / "train" / "owl")
    ids = open_source(f"folder:{folder}", "train").ids
    assert "train/emu/f.png" in ids
    assert len(ids) == 5


def test_the_home_folder_may_be_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(open_source("folder:~/birds", "train")) == 4


def test_the_name_is_fit_for_a_folder(folder):
    odd = folder.rename(folder.parent / "my birds: (v2)")
    assert open_source(f"folder:{odd}", "train").name == "my-birds-v2"


# --- folder: requests that cannot be met ---


@pytest.mark.parametrize("scheme", ["folder", "images", "wds"])
def test_no_such_folder(tmp_path, scheme):
    refuses_data("data.no_such_folder", f"{scheme}:{tmp_path}/none", data=f"{scheme}:{tmp_path}/none")


@pytest.mark.parametrize("scheme", ["folder", "images", "wds"])
def test_a_file_in_place_of_the_folder(tmp_path, scheme):
    (tmp_path / "file").touch()
    refuses_data("data.not_a_folder", f"{scheme}:{tmp_path}/file", data=f"{scheme}:{tmp_path}/file")


def test_no_such_split_lists_those_there_are(folder):
    uri, place = f"folder:{folder}", f"{folder}/val/<class>/"
    refuses_data("data.no_such_split", uri, "val", data=uri, split="val", place=place, splits="test, train")


def test_class_folders_without_a_split_above_them(folder):
    place = f"{folder}/train/train/<class>/"
    refuses_data("data.no_such_split", f"folder:{folder}/train", place=place, splits="owl")


def test_a_split_without_images_says_which_files_it_has(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for name in ("a.heic", "b.heic", "c"):
        (tmp_path / "train" / "cat" / name).touch()
    extensions = ".bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp"
    found = ".heic (2), no extension (1)"
    refuses_data("data.split_without_images", f"folder:{tmp_path}", extensions=extensions, found=found)


def test_an_empty_split(tmp_path):
    (tmp_path / "train").mkdir()
    refuses_data("data.split_without_images", f"folder:{tmp_path}", found="no files")


@pytest.mark.parametrize("with_classes", [True, False])
def test_images_directly_in_the_split_folder(folder, with_classes):
    if not with_classes:
        for name in ("owl", "wren", "Zaunkönig 鳥"):
            shutil.rmtree(folder / "train" / name)
    write_image(folder / "train" / "loose.png")
    write_image(folder / "train" / "stray.png")
    refuses_data("data.images_without_class", f"folder:{folder}", count=2, first="loose.png", folder=folder / "train")


def test_a_file_name_that_is_not_utf8(folder):
    foreign = os.fsencode(folder / "train" / "wren") + b"/\xff.png"
    shutil.copy(folder / "test" / "wren" / "d.png", foreign)
    values = {"data": "birds, split train", "name": r"'train/wren/\udcff.png'", "count": 1}
    refuses_data("data.not_utf8", f"folder:{folder}", **values)


# --- pixels ---


def load_only(path: Path, rule: PixelRule = USUAL) -> Image.Image:
    image, _ = open_source(f"folder:{path.parents[2]}", path.parents[1].name, pixels=rule).load(0)
    return image


def test_the_content_hash_is_that_of_the_encoded_bytes(folder):
    source = open_source(f"folder:{folder}", "train")
    for row, id in enumerate(source.ids):
        image, content_hash = source.load(row)
        assert content_hash == xxh3_64_intdigest((folder / id).read_bytes())
        assert (image.mode, image.size) == ("RGB", (9, 7))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 10), (77, 77, 77)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("I;16", 0xC833, (0xC8, 0xC8, 0xC8)),
    ],
)
def test_every_png_mode_becomes_rgb_without_its_alpha_if_it_is_dropped(tmp_path, mode, colour, expected):
    path = write_image(tmp_path / "train" / "a" / "1.png", colour, mode=mode)
    assert load_only(path, LEGACY).getpixel((3, 3)) == expected


def test_a_palette_with_alpha_becomes_rgb_without_a_warning(tmp_path):
    path = tmp_path / "train" / "a" / "1.png"
    path.parent.mkdir(parents=True)
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 99, 199])
    image.save(path, transparency=b"\xff\x10")
    assert load_only(path, LEGACY).getpixel((1, 1)) == (9, 99, 199)
    assert load_only(path).getpixel((1, 1)) == (240, 245, 251)


def test_cmyk_jpeg_is_what_pillow_converts_it_to(tmp_path):
    path = write_image(tmp_path / "train" / "a" / "1.jpg", (0, 255, 255, 0), mode="CMYK")
    red, green, blue = load_only(path).getpixel((3, 3))
    assert red > 250
    assert max(green, blue) < 5


def test_the_exif_orientation_is_not_applied_as_in_torchvision(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    path = write_image(tmp_path / "train" / "a" / "1.jpg", exif=exif)
    assert load_only(path).size == (9, 7)


# --- bad images ---


def noise_as(format: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no bytes"),
        (b"hello", "bytes in none of the formats JPEG, PNG, PPM, BMP, TIFF, WEBP"),
        (noise_as("jpeg")[:2000], "image file is truncated"),
        (noise_as("png")[:500] + b"\0" * 500 + noise_as("png")[1000:], "the PNG chunk at byte 33 fails its checksum"),
    ],
    ids=["empty", "text", "truncated", "broken"],
)
def test_a_corrupt_image_is_named_with_id_file_and_reason(folder, content, reason):
    path = folder / "train" / "wren" / "b.jpg"
    path.write_bytes(content)
    source = open_source(f"folder:{folder}", "train")
    reasons = set()
    for _ in range(2):  # the reason is stored, so it may not hold an address
        with raises("data.bad_image", BadImage, id="train/wren/b.jpg", file=path) as refused:
            source.load(3)
        reasons.add(refused.error.values["reason"])
    assert len(reasons) == 1
    assert reason in reasons.pop()


def test_a_file_that_vanished_after_opening_is_a_bad_image(folder):
    source = open_source(f"folder:{folder}", "train")
    (folder / "train" / "wren" / "b.jpg").unlink()
    with raises("data.bad_image", BadImage, reason="No such file or directory"):
        source.load(3)


def test_a_link_to_nothing_is_a_bad_image_and_not_left_out(folder):
    (folder / "train" / "wren" / "b.jpg").unlink()
    (folder / "train" / "wren" / "b.jpg").symlink_to(folder / "not-fetched-yet.jpg")
    source = open_source(f"folder:{folder}", "train")
    assert source.ids[3] == "train/wren/b.jpg"
    with raises("data.bad_image", BadImage, reason="No such file or directory"):
        source.load(3)


def test_running_out_of_memory_is_not_blamed_on_the_image(folder, monkeypatch):
    def read(self: object, row: int) -> bytes:
        raise MemoryError

    monkeypatch.setattr("layerbank.data.folder.FileSource.read", read)
    with pytest.raises(MemoryError):
        open_source(f"folder:{folder}", "train").load(0)


def test_a_bad_image_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImage("a/b", "/x/b.jpg", "truncated", 7)))
    assert (error.id, error.file, error.reason, error.content_hash) == ("a/b", "/x/b.jpg", "truncated", 7)
    assert str(error) == str(BadImage("a/b", "/x/b.jpg", "truncated"))


def test_a_source_survives_pickling(folder):
    source = open_source(f"folder:{folder}", "train")
    copy = pickle.loads(pickle.dumps(source))
    assert names_of(copy) == names_of(source)
    assert [copy.load(row)[1] for row in range(4)] == [source.load(row)[1] for row in range(4)]


# --- images without labels ---


def test_images_at_any_depth_are_a_source_without_labels(folder: Path) -> None:
    source = open_source(f"images:{folder / 'train'}", "any")
    assert source.ids == ["Zaunkönig 鳥/übér.png", "owl/deep/er/c.webp", "wren/a.JPEG", "wren/b.jpg"]
    assert source.class_names == []
    assert set(source.labels.tolist()) == {-1}
    assert source.load(0)[0].mode == "RGB"


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    refuses_data("data.no_images", f"images:{tmp_path}", folder=tmp_path)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_what_is_no_image_is_named_when_it_is_read(image):
    with raises("data.not_an_image", place="mine[0]", dtype=image.dtype, shape=list(image.shape)):
        images_from([image], name="mine").read(0)
