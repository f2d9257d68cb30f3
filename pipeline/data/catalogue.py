"""The 20 data sets of the study: the CLIP benchmark's WebDatasets, what they are, and where they lie.

Names, domains, sizes and classes are those of the authors' list. `train` of a `vtab/` data set is VTAB's training split, which
for some is smaller than the original one (CIFAR-10 has 45,000 images, not 50,000): the number of training images is part of the
entry, and data of another size are refused, so that results compare with the paper's. Metric of all 20: balanced accuracy.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError

HUB_OWNER = "clip-benchmark"
SPLITS = ("train", "test")

MULTI, SINGLE = "natural (multi-domain)", "natural (single-domain)"
SPECIALIZED, STRUCTURED = "specialized", "structured"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set.

    Attributes:
        name: of the CLIP benchmark: `cars`, `vtab/cifar10`.
        title: as tables call it.
        domain: one of the four of the study.
        num_train: images of its training split.
        num_classes: C.
    """

    name: str
    title: str
    domain: str
    num_train: int
    num_classes: int

    @property
    def folder(self) -> str:
        """Its name on the hub and under a data root: `wds_vtab-cifar10`."""
        return "wds_" + self.name.replace("/", "-")

    @property
    def repository(self) -> str:
        """Its repository on the hub."""
        return f"{HUB_OWNER}/{self.folder}"

    @property
    def reduced(self) -> bool:
        """Whether VTAB's splits are used, which may keep less for training than the original ones."""
        return self.name.startswith("vtab/")


def _entry(name: str, title: str, domain: str, num_train: int, num_classes: int) -> Entry:
    return Entry(name=name, title=title, domain=domain, num_train=num_train, num_classes=num_classes)


CATALOGUE = (
    _entry("stl10", "STL-10", MULTI, 5000, 10),
    _entry("vtab/cifar10", "CIFAR-10", MULTI, 45000, 10),
    _entry("vtab/cifar100", "CIFAR-100", MULTI, 45000, 100),
    _entry("vtab/caltech101", "Caltech-101", MULTI, 2753, 102),
    _entry("voc2007", "PASCAL VOC 2007", MULTI, 7844, 20),
    _entry("country211", "Country-211", MULTI, 31650, 211),
    _entry("imagenet1k", "ImageNet-1k", MULTI, 1281167, 1000),
    _entry("vtab/pets", "Pets", SINGLE, 2944, 37),
    _entry("vtab/flowers", "Flowers", SINGLE, 1020, 102),
    _entry("cars", "Stanford Cars", SINGLE, 8144, 196),
    _entry("fgvc_aircraft", "FGVC Aircraft", SINGLE, 3334, 100),
    _entry("gtsrb", "GTSRB", SINGLE, 26640, 43),
    _entry("vtab/svhn", "SVHN", SINGLE, 65931, 10),
    _entry("vtab/pcam", "PCAM", SPECIALIZED, 262144, 2),
    _entry("vtab/eurosat", "EuroSAT", SPECIALIZED, 16200, 10),
    _entry("vtab/resisc45", "RESISC45", SPECIALIZED, 18900, 45),
    _entry("vtab/diabetic_retinopathy", "Diabetic Retinopathy", SPECIALIZED, 35126, 5),
    _entry("vtab/dtd", "DTD", STRUCTURED, 1880, 47),
    _entry("fer2013", "FER2013", STRUCTURED, 28709, 7),
    _entry("vtab/dmlab", "Dmlab", STRUCTURED, 65550, 6),
)


def find_entry(name: str) -> Entry | None:
    """The entry of a name in any of its spellings, None if there is none.

    >>> [find_entry(name).title for name in ("vtab/cifar10", "wds/vtab/cifar10", "wds_vtab-cifar10", "cifar10", "CIFAR-10")]
    ['CIFAR-10', 'CIFAR-10', 'CIFAR-10', 'CIFAR-10', 'CIFAR-10']
    """
    return next((entry for entry in CATALOGUE if name in _spellings(entry)), None)


def require_entry(name: str) -> Entry:
    """The entry of a name in any of its spellings.

    Raises:
        RequestError: there is none; names the nearest.
    """
    if entry := find_entry(name):
        return entry
    spelled = {spelling.lower(): entry.name for entry in CATALOGUE for spelling in _spellings(entry)}
    nearest = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.0)[0]
    raise RequestError(
        where="data set of the study",
        expected="one of " + ", ".join(entry.name for entry in CATALOGUE),
        got=repr(name),
        todo=f"Did you mean {spelled[nearest]!r}? Other data are named by their URI, such as wds:DIR.",
    )


def find_data(entry: Entry, data_root: Path) -> Path | None:
    """Its folder under a data root, in the hub's layout (`wds_vtab-cifar10`) or the paper's (`wds/vtab/cifar10`); None if absent.

    A folder counts if it has all shards of both splits; half a copy does not.
    """
    short = "wds_" + entry.name.removeprefix("vtab/")
    folders = (data_root / entry.folder, data_root / short, data_root / "wds" / entry.name)
    return next((folder for folder in folders if all(_is_whole(folder / split) for split in SPLITS)), None)


def check_size(entry: Entry, *, num_train: int, num_classes: int) -> None:
    """Refuse data that are not those of the study.

    Raises:
        RequestError: another number of training images or classes.
    """
    if (num_train, num_classes) == (entry.num_train, entry.num_classes):
        return
    why = "; the study uses VTAB's training split" if entry.reduced else ""
    raise RequestError(
        where=f"data set {entry.name}",
        expected=f"{entry.num_train} training images of {entry.num_classes} classes{why}",
        got=f"{num_train} of {num_classes}",
        todo=f"Take the data from the hub ({entry.repository}), or name yours by their URI: they are another data set.",
    )


def _is_whole(split: Path) -> bool:
    """Whether there are as many tars as nshards.txt says; without that file, whether there is any."""
    num_tars = len(list(split.glob("*.tar")))
    count_file = split / "nshards.txt"
    count = count_file.read_text(encoding="utf-8").strip() if count_file.is_file() else ""
    return num_tars >= int(count) if count.isdigit() else num_tars > 0


def _spellings(entry: Entry) -> tuple[str, ...]:
    short = entry.name.removeprefix("vtab/")
    return (entry.name, f"wds/{entry.name}", entry.folder, f"wds_{short}", short, entry.title)
