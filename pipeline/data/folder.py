"""`folder:DIR`: images in `DIR/<split>/<class>/**`, torchvision's ImageFolder with a folder a split above it.

Ids are paths relative to DIR. Classes are the folders of the split with an image in them, sorted; other folders of DIR, such as
`runs` and `caches`, do not matter.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .image_source import ImageSource
from .patterns import no_such_split, require_folder
from .sources import DataSource

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))  # torchvision's


class FileSource(ImageSource):
    """Images in files of their own, sorted by id.

    Args:
        root: the folder that ids are relative to.
        split: name of the split.
        entries: (id, label, bytes) of each image.
        class_names: C names.
        left_out: extension -> number of files that are no images.
    """

    has_whole_files = True
    is_encoded = True

    def __init__(
        self,
        root: Path,
        split: str,
        entries: list[tuple[str, int, int]],
        class_names: list[str],
        left_out: Mapping[str, int],
    ) -> None:
        self.root = root
        self.left_out = left_out
        ids, labels, sizes = zip(*sorted(entries), strict=True)
        super().__init__(
            name=root.resolve().name,
            split=split,
            ids=ids,
            labels=np.array(labels, dtype=np.int64),
            class_names=class_names,
            sizes=np.array(sizes, dtype=np.int64),
        )

    def read(self, row: int) -> bytes:
        return (self.root / self.ids[row]).read_bytes()

    def file_of(self, row: int) -> str:
        return str(self.root / self.ids[row])

    def files(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        root = os.path.abspath(self.root)
        return [f"{root}/{id}" for id in self.ids], np.arange(len(self))


def open_folder(address: str, split: str) -> FileSource:
    """The images of one split.

    Raises:
        RequestError: no such folder or split, or images that lie elsewhere than in class folders.
    """
    root = require_folder("folder", address)
    class_names = _classes_of(root, split)
    left_out: Counter[str] = Counter()
    entries = [
        (id, label, size)
        for label, name in enumerate(class_names)
        for id, size in find_images(root / split / name, f"{split}/{name}/", left_out)
    ]
    return FileSource(root, split, entries, class_names, left_out)


def find_images(
    folder: Path,
    prefix: str = "",
    left_out: Counter[str] | None = None,
    above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[tuple[str, int]]:
    """Yield (id, bytes) of every image below a folder. Links are followed, but not back to a folder `above`.

    Args:
        folder: where to look.
        prefix: put before each id.
        left_out: extension -> number of files that are no images, which is counted up.
        above: (device, inode) of the folders above.
    """
    if not folder.is_dir():
        return
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_image(entry):
                yield prefix + entry.name, _size_bytes(entry)
            elif _is_of_the_system(entry.name):
                continue
            elif entry.is_dir():
                yield from find_images(folder / entry.name, f"{prefix}{entry.name}/", left_out, above | {here})
            elif left_out is not None:
                left_out[os.path.splitext(entry.name)[1].lower() or "no extension"] += 1


def _classes_of(root: Path, split: str) -> list[str]:
    """Sorted names of the class folders of a split with an image in them."""
    data, folder = f"folder:{root}", root / split
    if not folder.is_dir():
        splits = [
            name for name in _folders(root) if any(_has_images(root / name / one) for one in _folders(root / name))
        ]
        raise no_such_split(data, split, f"{folder}/<class>/", splits)
    if loose := sorted(entry.name for entry in os.scandir(folder) if _is_image(entry)):
        raise RequestError("data.images_without_class", data=data, split=split, count=len(loose), first=loose[0])
    if classes := [name for name in _folders(folder) if _has_images(folder / name)]:
        return classes
    names = [name for _, _, names in os.walk(folder) for name in names]
    endings = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in names)
    found = ", ".join(f"{ending} ({count})" for ending, count in endings.most_common(3)) or "no files"
    extensions = " ".join(sorted(EXTENSIONS))
    raise RequestError("data.split_without_images", data=data, split=split, extensions=extensions, found=found)


def _has_images(folder: Path) -> bool:
    return next(find_images(folder), None) is not None


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_of_the_system(entry.name))


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, by its extension."""
    extension = os.path.splitext(entry.name)[1].lower()
    return extension in EXTENSIONS and not _is_of_the_system(entry.name) and not entry.is_dir()


def _is_of_the_system(name: str) -> bool:
    """Whether systems leave files and folders of this name beside images: `._cat.jpg`, `.DS_Store`, Synology's `@eaDir`."""
    return name.startswith((".", "@")) or name in ("__MACOSX", "Thumbs.db", "desktop.ini", "lost+found")


def _size_bytes(entry: os.DirEntry[str]) -> int:
    """0 for a link to nothing: it counts, so that it is named as a bad image and not left out silently."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


FOLDER = DataSource(
    form="folder:DIR", meaning="images in DIR/<split>/<class>/", example="folder:photos", open=open_folder
)
