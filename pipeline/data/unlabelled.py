"""`images:DIR`: every image below a folder, without labels and without splits. What `predict` is mostly given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import RequestError
from .folder import EXTENSIONS, image_files
from .image_source import ImageSource

NO_LABEL = -1


class UnlabelledSource(ImageSource):
    """All images below DIR, sorted by path; ids are paths relative to DIR, labels are -1 and there are no classes."""

    def __init__(self, folder: str, split: str) -> None:
        self.root = Path(folder).expanduser()
        entries = sorted(image_files(self.root, "", set()))
        if not entries:
            raise RequestError(
                where=f"images:{folder}",
                expected=f"a folder with images ({' '.join(sorted(EXTENSIONS))}) at any depth",
                got="none in it" if self.root.is_dir() else "no such folder",
                todo="Give the folder that holds the images.",
            )
        ids = [sample_id for sample_id, _ in entries]
        super().__init__(
            name=self.root.resolve().name,
            split=split,
            ids=ids,
            labels=np.full(len(ids), NO_LABEL),
            class_names=[],
            locations=ids,
            sizes=np.array([size for _, size in entries]),
        )

    def read(self, row: int) -> bytes:
        return (self.root / self.ids[row]).read_bytes()

    def file_of(self, row: int) -> str:
        return str(self.root / self.ids[row])
