"""Whether a dataset of an HDF5 file lies in that file: HDF5 follows links and reads storage in any other file that a file names."""

from __future__ import annotations

from typing import Any

import h5py  # type: ignore[import-untyped]  # it ships no types

MOST_LINKS = 16  # that lead to a dataset, as in HDF5 itself, or virtual datasets in one another


def place_outside(file: Any, name: str, depth: int = 0) -> str:
    """Where a dataset lies in part or as a whole, if that is outside its file; "" if it lies inside, or is not there.

    Nothing outside is opened to find out.

    Args:
        file: an open h5py.File.
        name: path of the dataset.
        depth: number of virtual datasets that this one is a source of.
    """
    parts, place, num_links = _parts(name), "", 0
    while parts:
        group, part = file[place or "/"], parts.pop(0)
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            return f"{link.filename}::{link.path}"
        if isinstance(link, h5py.SoftLink):
            num_links += 1
            if num_links > MOST_LINKS:
                return ""
            parts = _parts(link.path) + parts
            place = "" if link.path.startswith("/") else place
        elif link is None:
            return ""
        else:
            place = f"{place}/{part}"
    dataset = file[place or "/"]
    return _storage_outside(file, dataset, depth) if isinstance(dataset, h5py.Dataset) else ""


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _storage_outside(file: Any, dataset: Any, depth: int) -> str:
    if dataset.external:
        return str(dataset.external[0][0])
    if not dataset.is_virtual:
        return ""
    if depth == MOST_LINKS:
        return "a circle of virtual datasets"
    for source in dataset.virtual_sources():
        if source.file_name != ".":
            return f"{source.file_name}::{source.dset_name}"
        if found := place_outside(file, source.dset_name, depth + 1):
            return found
    return ""
