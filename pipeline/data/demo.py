"""`demo:`: small labelled images that come inside Python packages, so that a first run needs no download.

Which sets there are, and how each is read, is in `demo_sets`; here is what they share: a split that is the same everywhere.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from ..errors import RequestError
from .demo_sets import DEMOS, Demo, DemoImages
from .image_source import ImageSource


class DemoSource(ImageSource):
    """Rows of a demo data set: `demo:digits`, or `demo:digits?train=4000&test=1000`.

    The split is random but fixed: images are sorted by a hash of their number, `test` takes the first and
    `train` the last ones. So the two are disjoint, and a larger split contains a smaller one. A set that says itself
    which images are held out (`climate`) has `test` taken from those and `train` from the others.
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
        demo = DEMOS[name]
        sizes = _sizes(address, query, demo)
        if split not in sizes:
            raise RequestError(
                where=f"demo:{address}, split {split}",
                expected=" or ".join(sizes),
                got=split,
                todo="Choose one of them with --split.",
            )
        images = demo.read()
        rows = _rows_of_splits(address, name, images, sizes)[split]
        ids = [f"{demo.prefix}/{number:04d}" for number in images.numbers[rows]]
        self._images = [images.images[row] for row in rows]
        self._package = demo.package
        super().__init__(
            name=name,
            split=split,
            ids=ids,
            labels=images.labels[rows],
            class_names=demo.class_names,
            locations=ids,
            sizes=np.array([_size_bytes(image) for image in self._images]),
        )

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        image = self._images[row]
        return image.read_bytes() if isinstance(image, Path) else image

    def file_of(self, row: int) -> str:
        image = self._images[row]
        return str(image) if isinstance(image, Path) else f"the package {self._package}"


def _rows_of_splits(address: str, name: str, images: DemoImages, sizes: dict[str, int]) -> dict[str, NDArray[np.int64]]:
    order = np.argsort([xxh3_64_intdigest(f"{name}/{number}".encode()) for number in images.numbers])
    if images.held_out is None:
        pools, most = {"test": order, "train": order}, {"train + test": len(order)}
        asked = {"train + test": sum(sizes.values())}
    else:
        held_out = images.held_out[order]
        pools, asked = {"test": order[held_out], "train": order[~held_out]}, sizes
        most = {split: len(pools[split]) for split in sizes}
    if any(asked[part] > most[part] for part in most):
        raise RequestError(
            where=f"demo:{address}",
            expected=", ".join(f"{part} of at most {count}" for part, count in most.items()),
            got=" + ".join(map(str, sizes.values())),
            todo="Ask for fewer images.",
        )
    return {"test": pools["test"][: sizes["test"]], "train": pools["train"][len(pools["train"]) - sizes["train"] :]}


def _size_bytes(image: Path | NDArray[np.uint8]) -> int:
    return image.stat().st_size if isinstance(image, Path) else image.nbytes


def _sizes(address: str, query: str, demo: Demo) -> dict[str, int]:
    sizes = dict(demo.sizes)
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
