"""`folder:DIR`: images in `DIR/<split>/<class>/**`, torchvision's ImageFolder with a folder a split above it.

Ids are paths relative to DIR. Classes are the folder names of all splits, sorted, so that a class keeps its
index where a split lacks it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import RequestError
from .image_source import ImageSource
from .patterns import no_such_split

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))  # torchvision's


class FolderSource(ImageSource):
    """Images of one split of DIR, sorted by id."""

    def __init__(self, folder: str, split: str) -> None:
        self.root = Path(folder).expanduser()
        if not self.root.is_dir():
            raise RequestError(
                where=f"folder:{folder}",
                expected="a folder",
                got="a file" if self.root.exists() else "nothing there",
                todo="Give the folder that holds the splits: folder:DIR with DIR/<split>/<class>/image.",
            )
        class_names = self._classes_of_all_splits(split)
        index_of = {name: index for index, name in enumerate(class_names)}
        entries = sorted(
            (entry_id, index_of[name], size)
            for name in class_names
            for entry_id, size in image_files(self.root / split / name, f"{split}/{name}/", set())
        )
        ids = [entry_id for entry_id, _, _ in entries]
        super().__init__(
            name=self.root.resolve().name,
            split=split,
            ids=ids,
            labels=np.array([label for _, label, _ in entries], dtype=np.int64),
            class_names=class_names,
            locations=ids,
            sizes=np.array([size for _, _, size in entries], dtype=np.int64),
        )

    def read(self, row: int) -> bytes:
        return (self.root / self.ids[row]).read_bytes()

    def file_of(self, row: int) -> str:
        return str(self.root / self.ids[row])

    def _classes_of_all_splits(self, split: str) -> list[str]:
        """Sorted names of the class folders that hold an image in some split; refuses a `split` without."""
        where = f"folder:{self.root}, split {split}"
        folder = self.root / split
        classes = {name: _class_folders(self.root / name) for name in _folders(self.root)}
        if split not in classes:
            splits = [name for name, found in classes.items() if found]
            raise no_such_split(where, f"the folder {folder} with images in {split}/<class>/", splits)
        if loose := sorted(entry.name for entry in os.scandir(folder) if _is_image(entry)):
            raise RequestError(
                where=where,
                expected=f"images in a folder a class, such as {split}/<class>/{loose[0]}",
                got=f"{len(loose)} images directly in {folder}, {loose[0]} first",
                todo="Move them into folders named after their classes.",
            )
        if not classes[split]:
            names = [name for _, _, names in os.walk(folder) for name in names]
            endings = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in names)
            raise RequestError(
                where=where,
                expected=f"images in class folders, with an extension of {' '.join(sorted(EXTENSIONS))}",
                got=", ".join(f"{ending} ({count})" for ending, count in endings.most_common(3)) or "no files",
                todo="Put images there, or convert them to one of these formats.",
            )
        return sorted(set().union(*classes.values()))


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(split_folder: Path) -> set[str]:
    """Folders with at least one image at any depth; reading stops at the first."""
    return {name for name in _folders(split_folder) if next(image_files(split_folder / name, "", set()), None)}


def image_files(folder: Path, prefix: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """(id, bytes) of every image below a folder. Links are followed, but not back to a folder `above`."""
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
            elif entry.is_dir() and not entry.name.startswith("."):
                yield from image_files(folder / entry.name, f"{prefix}{entry.name}/", above | {here})


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By extension. Names that start with a dot are what systems leave behind (`._cat.jpg`), not images."""
    name = entry.name
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS and not entry.is_dir()


def _size_bytes(entry: os.DirEntry[str]) -> int:
    """0 for a link to nothing: it counts, so that it is named as a bad image and not left out in silence."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0
