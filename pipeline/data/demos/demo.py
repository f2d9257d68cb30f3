"""`demo:`: small labelled images that come inside Python packages, so that a first run needs no download.

`demo_sets` knows the sets and how to read each; this module splits them, in the same way on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from ...errors import RequestError
from ...quantities import whole_number
from ..image_source import ImageSource
from ..patterns import no_such_split
from ..sources import DataSource
from .demo_sets import DEMOS, DemoImages


class DemoSource(ImageSource):
    """Rows of a demo data set: `demo:digits`, or `demo:digits?train=4000&test=1000`.

    The split is random but fixed: images are sorted by a hash of their number, `test` takes the first and
    `train` the last ones. So the two are disjoint, and a larger split contains a smaller one. A set that says itself
    which images are held out (`climate`) has `test` taken from those and `train` from the others.
    """

    def __init__(self, address: str, split: str) -> None:
        name, _, query = address.partition("?")
        if name not in DEMOS:
            raise RequestError("data.unknown_demo", address=address, name=name, names=", ".join(DEMOS))
        demo = DEMOS[name]
        sizes = _parse_sizes(address, query, demo.sizes)
        if split not in sizes:
            raise no_such_split(f"demo:{address}", split, f"the package {demo.package}", list(sizes))
        images = demo.read()
        rows = _rows_of_splits(address, name, images, sizes)[split]
        ids = [f"{demo.prefix}/{number:04d}" for number in images.numbers[rows]]
        self._images = [images.images[row] for row in rows]
        self._package = demo.package
        self.origin = f"demo:{name}"
        self.has_whole_files = all(isinstance(image, Path) for image in self._images)
        super().__init__(
            name=name,
            split=split,
            ids=ids,
            labels=images.labels[rows],
            class_names=demo.class_names,
            sizes=np.array([one.stat().st_size if isinstance(one, Path) else one.nbytes for one in self._images]),
        )

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        image = self._images[row]
        return image.read_bytes() if isinstance(image, Path) else image

    def files(self) -> tuple[Sequence[str | Path], NDArray[np.int64]]:
        if not self.has_whole_files:  # arrays in memory
            return super().files()
        return [str(image) for image in self._images], np.arange(len(self))

    def file_of(self, row: int) -> str:
        image = self._images[row]
        return str(image) if isinstance(image, Path) else f"the package {self._package}"


def _rows_of_splits(address: str, name: str, images: DemoImages, sizes: dict[str, int]) -> dict[str, NDArray[np.int64]]:
    order = np.argsort([xxh3_64_intdigest(f"{name}/{number}".encode()) for number in images.numbers])
    train, test = sizes["train"], sizes["test"]
    if images.held_out is None:
        pools, wanted = {"train": order, "test": order}, {"train + test": (train + test, len(order))}
    else:
        held_out = images.held_out[order]
        pools = {"train": order[~held_out], "test": order[held_out]}
        wanted = {split: (sizes[split], len(pool)) for split, pool in pools.items()}
    for splits, (count, most) in wanted.items():
        if count > most:
            raise RequestError("data.demo_too_small", address=address, splits=splits, most=most, count=count)
    return {"test": pools["test"][:test], "train": pools["train"][len(pools["train"]) - train :]}


def _parse_sizes(address: str, query: str, defaults: dict[str, int]) -> dict[str, int]:
    sizes = dict(defaults)
    for key, value in parse_qsl(query, keep_blank_values=True):
        number = whole_number(value)
        if key not in sizes or not number:
            raise RequestError("data.bad_demo_size", address=address, option=f"{key}={value}")
        sizes[key] = number
    return sizes


DEMO = DataSource(
    form="demo:digits | animals | solar | climate",
    meaning="images that come inside a Python package",
    example="demo:digits?train=4000&test=1000",
    open=DemoSource,
)
