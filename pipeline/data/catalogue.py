"""The 20 data sets of the study: WebDatasets of the CLIP benchmark, found on disk or downloaded from the Hugging Face hub.

Names, domains, sizes and classes are those of the authors' list. `train` of a `vtab/` data set is VTAB's training split, which
for some is smaller than the original one (CIFAR-10 has 45,000 images, not 50,000): the number of training images is part of the
entry, and data of another size are refused, so that results compare with the paper's. Metric of all 20: balanced accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError, WorkError, advice, first_line
from ..quantities import whole_number

HUB_OWNER = "clip-benchmark"
SPLITS = ("train", "test")
DOWNLOADED = ["train/*.tar", "test/*.tar", "*/nshards.txt", "classnames.txt"]

MULTI, SINGLE = "natural (multi-domain)", "natural (single-domain)"
SPECIALIZED, STRUCTURED = "specialized", "structured"


@dataclass(frozen=True)
class Entry:
    """One data set of the study.

    Attributes:
        name: in the CLIP benchmark: `cars`, `vtab/cifar10`.
        title: its name in tables.
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


CATALOGUE = tuple(
    Entry(*row)
    for row in (
        ("stl10", "STL-10", MULTI, 5000, 10),
        ("vtab/cifar10", "CIFAR-10", MULTI, 45000, 10),
        ("vtab/cifar100", "CIFAR-100", MULTI, 45000, 100),
        ("vtab/caltech101", "Caltech-101", MULTI, 2753, 102),
        ("voc2007", "PASCAL VOC 2007", MULTI, 7844, 20),
        ("country211", "Country-211", MULTI, 31650, 211),
        ("imagenet1k", "ImageNet-1k", MULTI, 1281167, 1000),
        ("vtab/pets", "Pets", SINGLE, 2944, 37),
        ("vtab/flowers", "Flowers", SINGLE, 1020, 102),
        ("cars", "Stanford Cars", SINGLE, 8144, 196),
        ("fgvc_aircraft", "FGVC Aircraft", SINGLE, 3334, 100),
        ("gtsrb", "GTSRB", SINGLE, 26640, 43),
        ("vtab/svhn", "SVHN", SINGLE, 65931, 10),
        ("vtab/pcam", "PCAM", SPECIALIZED, 262144, 2),
        ("vtab/eurosat", "EuroSAT", SPECIALIZED, 16200, 10),
        ("vtab/resisc45", "RESISC45", SPECIALIZED, 18900, 45),
        ("vtab/diabetic_retinopathy", "Diabetic Retinopathy", SPECIALIZED, 35126, 5),
        ("vtab/dtd", "DTD", STRUCTURED, 1880, 47),
        ("fer2013", "FER2013", STRUCTURED, 28709, 7),
        ("vtab/dmlab", "Dmlab", STRUCTURED, 65550, 6),
    )
)


def find_entry(name: str) -> Entry | None:
    """The entry of a name in any of its spellings, None if there is none.

    >>> [find_entry(name).title for name in ("vtab/cifar10", "wds_vtab-cifar10", "CIFAR-10")]
    ['CIFAR-10', 'CIFAR-10', 'CIFAR-10']
    """
    return next((entry for entry in CATALOGUE if name in _spellings(entry)), None)


def require_entry(name: str) -> Entry:
    """The entry of a name in any of its spellings.

    Raises:
        RequestError: there is none; names the nearest.
    """
    if entry := find_entry(name):
        return entry
    todo = advice(name, (spelling for entry in CATALOGUE for spelling in _spellings(entry)))
    names = ", ".join(entry.name for entry in CATALOGUE)
    raise RequestError("data.unknown_study_data", name=name, names=names, advice=todo)


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
    if (num_train, num_classes) != (entry.num_train, entry.num_classes):
        values = {
            "name": entry.name,
            "repository": entry.repository,
            "num_train": num_train,
            "num_classes": num_classes,
        }
        raise RequestError(
            "data.not_the_studys_data", study_train=entry.num_train, study_classes=entry.num_classes, **values
        )


def locate_data(
    entry: Entry, data_root: Path, *, fetch: bool = True, on_download: Callable[[str], None] | None = None
) -> str:
    """The URI of a data set, downloaded into the data root if it is not there.

    Args:
        entry: the data set.
        data_root: folder of all data sets.
        fetch: False never goes to the hub.
        on_download: called with the repository before a download begins.

    Returns:
        `wds:FOLDER`, for `--data`.

    Raises:
        WorkError: it is not under the data root and cannot be downloaded.
    """
    folder = find_data(entry, data_root)
    if folder is None and fetch:
        if on_download is not None:
            on_download(entry.repository)
        _download(entry, data_root / entry.folder)
        folder = find_data(entry, data_root)
    if folder is None:
        folder = data_root / entry.folder
        raise WorkError("data.not_on_disk", name=entry.name, folder=folder, repository=entry.repository)
    return f"wds:{folder}"


def _download(entry: Entry, folder: Path) -> None:
    """Download into a staging folder, where an interrupted download continues file by file, and rename it when it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if folder.exists():
        raise WorkError("data.incomplete_folder", name=entry.name, folder=folder)
    staging = folder.with_name(f".{folder.name}.part")
    try:
        snapshot_download(entry.repository, repo_type="dataset", allow_patterns=DOWNLOADED, local_dir=staging)
        staging.rename(folder)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, RuntimeError) as error:
        reason = first_line(error)[:200]
        raise WorkError(
            "data.not_on_the_hub", name=entry.name, folder=folder, repository=entry.repository, reason=reason
        ) from error


def _is_whole(split: Path) -> bool:
    """Whether there are as many tars as nshards.txt says; without that file, whether there is any."""
    num_tars = len(list(split.glob("*.tar")))
    count_file = split / "nshards.txt"
    count = count_file.read_text(encoding="utf-8").strip() if count_file.is_file() else ""
    number = whole_number(count)
    return num_tars >= number if number is not None else num_tars > 0


def _spellings(entry: Entry) -> tuple[str, ...]:
    short = entry.name.removeprefix("vtab/")
    return (entry.name, f"wds/{entry.name}", entry.folder, f"wds_{short}", short, entry.title)
