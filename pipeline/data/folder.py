"""`folder:DIR`: images in `DIR/<split>/<class>/**`, torchvision's ImageFolder with a folder a split above it.

Ids are paths relative to DIR. Classes are the folders of the split with an image in them, sorted; other folders of DIR, such as
`runs` and `caches`, do not matter. With `?split=0.2` images lie in `DIR/<class>/**`, and a fraction of each class is held out as
`test`. With `?classes=nested` the class of an image is the whole path of its folder (`birds/wren`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from layerbank.cache.index import read_whole

from ..errors import RequestError
from ..outputs import kind_of
from .image_files import LEADS_OUT, leads_out, not_followed, require_inside
from .image_source import ImageSource
from .patterns import no_such_split, parse_options, require_folder
from .pixels import parse_range
from .sources import DataSource
from .tables.split_column import parse_held_out, rows_held_out

OPTIONS = ("split", "seed", "classes", "range")
NESTED = "nested"
SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation")
EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))  # torchvision's


class FoundImage(NamedTuple):
    """A name of an image below a folder.

    Attributes:
        id: path relative to the folder of the data.
        size: bytes; 0 for one that is not read.
        problem: why it is not read; "" for one that is.
        is_folder: whether it is a whole folder, which is not followed.
    """

    id: str
    size: int
    problem: str = ""
    is_folder: bool = False


class FileSource(ImageSource):
    """Images in files of their own, sorted by id.

    Args:
        root: the folder that ids are relative to.
        split: name of the split.
        entries: each image with its label.
        class_names: C names.
        left_out: extension -> number of files that are no images.

    Raises:
        RequestError: a folder leads out of `root`.
    """

    has_whole_files = True
    is_encoded = True

    def __init__(
        self,
        root: Path,
        split: str,
        entries: Iterable[tuple[FoundImage, int]],
        class_names: list[str],
        left_out: Mapping[str, int],
    ) -> None:
        found, labels = zip(*sorted(entries), strict=True)
        if folders := {one.id: one.problem for one in found if one.is_folder}:
            raise not_followed(str(root), folders)
        self.root, self.left_out = root, left_out
        self._not_read = {row: one.problem for row, one in enumerate(found) if one.problem}
        self.has_whole_files = not self._not_read
        super().__init__(
            name=root.resolve().name,
            split=split,
            ids=[one.id for one in found],
            labels=np.array(labels, dtype=np.int64),
            class_names=class_names,
            sizes=np.array([one.size for one in found], dtype=np.int64),
        )

    def read(self, row: int) -> bytes:
        if problem := self._not_read.get(row):
            raise OSError(problem)
        return read_whole(self.root / self.ids[row])[0]

    def file_of(self, row: int) -> str:
        return str(self.root / self.ids[row])

    def files(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        root = os.path.abspath(self.root)
        is_read = np.ones(len(self), dtype=bool)
        is_read[list(self._not_read)] = False
        paths = [f"{root}/{self.ids[row]}" for row in np.flatnonzero(is_read).tolist()]
        return paths, np.where(is_read, np.cumsum(is_read) - 1, -1)


def open_folder(address: str, split: str) -> FileSource:
    """The images of one split.

    Raises:
        RequestError: no such folder or split, images that lie elsewhere than in class folders, a folder that leads out, or wrong
            options.
    """
    path, options = parse_options("folder", address, OPTIONS)
    root, data = require_folder("folder", path), f"folder:{address}"
    held_out = parse_held_out(options, data, has_splits=False, has_columns=False)
    if (classes := options.get("classes", NESTED)) != NESTED:
        raise RequestError("data.bad_folder_option", data=data, option=f"classes={classes}")
    prefix = f"{split}/" if held_out is None else ""
    left_out: Counter[str] = Counter()
    names = _classes_of(root, split) if prefix else _classes_without_splits(data, root)
    entries = [(found, name) for name in names for found in find_images(root, f"{prefix}{name}/", left_out)]
    if "classes" in options:
        entries = [(found, os.path.dirname(found.id.removeprefix(prefix))) for found, _ in entries]
    if held_out is not None:
        entries.sort()
        ids, of_images = [found.id for found, _ in entries], [name for _, name in entries]
        rows = rows_held_out(ids, of_images, split, held_out, data=data)
        entries = [entries[row] for row in rows.tolist()]
    class_names = sorted({name for _, name in entries})
    number_of = {name: number for number, name in enumerate(class_names)}
    source = FileSource(root, split, [(found, number_of[name]) for found, name in entries], class_names, left_out)
    source.value_range = parse_range(data, options)
    return source


def find_images(root: Path, prefix: str = "", left_out: Counter[str] | None = None) -> Iterator[FoundImage]:
    """Yield every image below `root/prefix`.

    Links are followed, but not out of `root` nor back to a folder above. What is not followed is named: a link to a file that leads
    out, a pipe or a device as an image that cannot be read, a link to a folder as a folder.

    Args:
        root: the folder of the data.
        prefix: empty, or the folder to look in, with a slash at its end.
        left_out: extension -> number of files that are no images, which is counted up.
    """
    if (root / prefix).is_dir():
        counted = Counter() if left_out is None else left_out
        yield from _images_below(root, os.path.realpath(root), prefix, counted, frozenset())


def _images_below(
    root: Path, real: str, prefix: str, left_out: Counter[str], above: frozenset[tuple[int, int]]
) -> Iterator[FoundImage]:
    folder = root / prefix
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            id = prefix + entry.name
            leaves = entry.is_symlink() and leads_out(entry.path, real)
            if _is_image(entry):
                yield FoundImage(id, 0, LEADS_OUT) if leaves else _found(id, entry)
            elif _is_of_the_system(entry.name):
                continue
            elif not entry.is_dir():
                left_out[os.path.splitext(entry.name)[1].lower() or "no extension"] += 1
            elif leaves:
                yield FoundImage(id, 0, LEADS_OUT, is_folder=True)
            else:
                yield from _images_below(root, real, f"{id}/", left_out, above | {here})


def _classes_of(root: Path, split: str) -> list[str]:
    """Sorted names of the class folders of a split with an image in them."""
    data, folder = f"folder:{root}", root / split
    if not folder.is_dir():
        folders = {name: _folders(root / name) for name in _folders(root)}
        splits = [name for name, found in folders.items() if any(_has_images(root, f"{name}/{one}/") for one in found)]
        raise no_such_split(data, split, f"{folder}/<class>/", splits)
    return _classes_in(data, root, split)


def _classes_without_splits(data: str, root: Path) -> list[str]:
    """Sorted names of the class folders with an image in them, where no folder of a split lies above."""
    classes = _classes_in(data, root, "")
    if splits := [name for name in classes if name.casefold() in SPLIT_NAMES]:
        raise RequestError("data.splits_as_classes", data=data, names=", ".join(splits))
    return classes


def _classes_in(data: str, root: Path, split: str) -> list[str]:
    """Sorted names of the folders of `root/split` with an image in them; `split` is empty where there are no splits."""
    folder, prefix = root / split, f"{split}/" if split else ""
    links = [one for one in (folder, *(folder / name for name in _folders(folder))) if one.is_symlink() and one != root]
    require_inside(data, root, links, are_folders=True)
    if loose := sorted(entry.name for entry in os.scandir(folder) if _is_image(entry)):
        raise RequestError("data.images_without_class", data=data, folder=folder, count=len(loose), first=loose[0])
    if classes := [name for name in _folders(folder) if _has_images(root, f"{prefix}{name}/")]:
        return classes
    names = [name for _, _, names in os.walk(folder) for name in names]
    endings = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in names)
    found = ", ".join(f"{ending} ({count})" for ending, count in endings.most_common(3)) or "no files"
    extensions = " ".join(sorted(EXTENSIONS))
    raise RequestError("data.split_without_images", data=data, folder=folder, extensions=extensions, found=found)


def _has_images(root: Path, prefix: str) -> bool:
    return next(find_images(root, prefix), None) is not None


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_of_the_system(entry.name))


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, by its extension."""
    extension = os.path.splitext(entry.name)[1].lower()
    return extension in EXTENSIONS and not _is_of_the_system(entry.name) and not entry.is_dir()


def _is_of_the_system(name: str) -> bool:
    """Whether systems leave files and folders of this name beside images: `._cat.jpg`, `.DS_Store`, Synology's `@eaDir`."""
    return name.startswith((".", "@")) or name in ("__MACOSX", "Thumbs.db", "desktop.ini", "lost+found")


def _found(id: str, entry: os.DirEntry[str]) -> FoundImage:
    """An image with its size; a link to nothing counts, so that it is named as a bad image and not left out silently."""
    try:
        status = entry.stat()
    except OSError:
        return FoundImage(id, 0)
    problem = kind_of(status.st_mode)
    return FoundImage(id, 0 if problem else status.st_size, problem)


FOLDER = DataSource(
    form="folder:DIR",
    meaning="images in DIR/<split>/<class>/; with ?split=0.2 in DIR/<class>/, a fifth of each class held out",
    example="folder:photos",
    open=open_folder,
)
