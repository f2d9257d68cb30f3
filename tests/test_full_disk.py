"""Whatever write the disk refuses, a command ends with an error that names the disk, loses nothing, and can be repeated."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from commands import MODEL, run
from full_disk import Disk, small_disk
from golden_stores import unpack
from photos import write_photos
from study_recipes import FAST, arguments, write_recipe
from study_runs import read_rows

from layerbank.cache import verify_store
from layerbank.report.verify import verify_runs

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TIMES = ("seconds", "memory", "together_with", "digest")  # all that may differ between two runs
MOST_CALLS = 80
CHANGED_BEFORE = ("cache repair", "cache upgrade")  # their stores are damaged, or of format 1 and in part so
ARRAYS = ("--levels", "last", "--kinds", "cls,ap")
IN_PROGRESS = re.compile(r"\.zarr/(zarr\.json|content_hashes/\.journal/.*)$")  # of a store that is repaired
Arguments = list[object]


@dataclass(frozen=True)
class Place:
    """Folders of a case: stores, results and outputs in `folder`, images elsewhere."""

    folder: Path
    photos: Path

    @property
    def caches(self) -> Path:
        return self.folder / "caches"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def data(self) -> str:
        return f"folder:{self.photos}"

    def stores(self) -> list[Path]:
        return sorted(self.folder.rglob("*.zarr"))

    def store(self, name: str = "train") -> Path:
        (store,) = (path for path in self.stores() if name in path.name)
        return store

    def extract(self, split: str = "train", *more: object) -> Arguments:
        return ["extract", *MODEL, "--data", self.data, "--split", split, *ARRAYS, "--cache", self.caches, *more]

    def probe(self, *more: object) -> Arguments:
        protocol = self.photos.parent / "fast.toml"
        places = ["--cache", self.caches, "--runs", self.runs]
        return ["probe", *MODEL, "--data", self.data, "--protocol", protocol, *places, *more]

    def probe_folder(self) -> Path:
        (folder,) = self.runs.rglob("attn-mid-*/probe.json")
        return folder.parent


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line and what has to be there before it: commands that are run, and a change of the folder."""

    arguments: Callable[[Place], Arguments]
    before: tuple[Callable[[Place], Arguments], ...] = ()
    change: Callable[[Place], object] = lambda place: None


BOTH = (lambda at: at.extract(), lambda at: at.extract("test"))


def attentive(place: Place) -> Arguments:
    return place.probe("--probe", "attn-mid,linear-cls")


def damage(place: Place) -> None:
    for name in ("tokens/final/cls/c.0.0", "content_hashes/c.0", "tokens/final/ap/zarr.json"):
        file = place.store() / name
        file.write_bytes(file.read_bytes()[:-1])


def leave_garbage(place: Place) -> None:
    journal = place.store() / "content_hashes/.journal"
    (journal / "aside~tokens~final~cls~c.0.0").write_bytes(b"x")
    (place.store().parent / "gone-12345678.zarr.lock").touch()


def one_old_store(place: Place) -> None:
    """Of format 1; which of several stores with equal rows gets the number 2 depends on which is upgraded first."""
    old = Path("shapes/train/timm-vit_tiny-9215b1f9.zarr")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(unpack(Path(folder)) / "synthetic" / old, place.caches / old)


COMMANDS = {
    "extract": Command(arguments=lambda at: at.extract()),
    "extract more kinds": Command(
        before=(lambda at: at.extract(),), arguments=lambda at: at.extract("train", "--kinds", "cls,ap,grid2")
    ),
    "probe": Command(before=(*BOTH,), arguments=attentive),
    "probe without tokens": Command(arguments=lambda at: at.probe("--probe", "linear-cls")),
    "predict": Command(
        before=(*BOTH, attentive),
        arguments=lambda at: ["predict", "--probe", at.probe_folder(), "--data", at.data, "--workers", 0],
    ),
    "cache import": Command(
        before=(lambda at: at.extract(), lambda at: ["cache", "export", at.store(), at.folder / "a.h5"]),
        change=lambda at: shutil.rmtree(at.caches),
        arguments=lambda at: ["cache", "import", at.folder / "a.h5", "--cache", at.caches],
    ),
    "cache export": Command(
        before=(lambda at: at.extract(),), arguments=lambda at: ["cache", "export", at.store(), at.folder / "a.h5"]
    ),
    "cache merge": Command(
        before=(lambda at: at.extract(), lambda at: at.extract("test")),
        arguments=lambda at: ["cache", "merge", *at.stores(), "--name", "all", "--delete"],
    ),
    "cache upgrade": Command(
        change=one_old_store,
        arguments=lambda at: ["cache", "upgrade", "--cache", at.caches],
    ),
    "cache repair": Command(
        before=(lambda at: at.extract(),),
        change=damage,
        arguments=lambda at: ["cache", "repair", at.store(), "--workers", 0],
    ),
    "cache to npz": Command(
        before=(lambda at: at.extract(),), arguments=lambda at: ["cache", "to", at.store(), at.folder / "a.npz"]
    ),
    "cache to parquet": Command(
        before=(lambda at: at.extract(),), arguments=lambda at: ["cache", "to", at.store(), at.folder / "a.parquet"]
    ),
    "cache verify": Command(before=(lambda at: at.extract(),), arguments=lambda at: ["cache", "verify", at.store()]),
    "cache gc": Command(
        before=(lambda at: at.extract(),),
        change=leave_garbage,
        arguments=lambda at: ["cache", "gc", "--cache", at.caches, "--delete"],
    ),
    "cache rm": Command(
        before=(lambda at: at.extract(),), arguments=lambda at: ["cache", "rm", at.store(), "--delete"]
    ),
    "report": Command(
        before=(*BOTH, attentive),
        arguments=lambda at: [
            *("report", at.runs, "--cache", at.caches, "--figures", at.folder / "figures"),
            *(part for kind in ("csv", "markdown", "latex", "parquet") for part in (f"--{kind}", at.folder / kind)),
        ],
    ),
    "runs verify": Command(before=(*BOTH, attentive), arguments=lambda at: ["runs", "verify", at.runs]),
    "attention": Command(before=(*BOTH, attentive), arguments=lambda at: ["attention", at.probe_folder(), "--heads"]),
    "study": Command(
        arguments=lambda at: [
            *arguments(at.photos.parent / "recipe.toml", at.folder),
            *("--events", at.folder / "events"),
        ]
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    photos = write_photos(folder / "photos", {"train": 8, "test": 4})
    (folder / "fast.toml").write_text(FAST)
    write_recipe(folder, [f"folder:{photos}"], ["linear-cls", "attn-mid"])
    time.sleep(2.1)  # the content index records no younger files
    return photos


def left_by(folder: Path) -> dict[str, Any]:
    """Every file but locks, the content index and events, with its content; rows without what two runs differ in."""
    left: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "results.jsonl":
            left[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(path)]
        elif path.is_file() and not name.endswith((".lock", "events", ".h5")) and "/.index/" not in name:
            left[name] = path.read_bytes()
    return left


class Case:
    """A command, its folder as it was before, and what it leaves on a disk that has room."""

    def __init__(self, name: str, images: Path, folder: Path) -> None:
        self.name, self.place, self._before = name, Place(folder / "case", images), folder / "before"
        command = COMMANDS[name]
        self.place.folder.mkdir()
        for make in command.before:
            assert run(*make(self.place)).exit_code == 0
        command.change(self.place)
        shutil.copytree(self.place.folder, self._before, symlinks=True)
        self.arguments = command.arguments(self.place)
        with small_disk(Disk()) as disk:
            assert run(*self.arguments).exit_code == 0
        self.num_calls = len(disk.calls)
        self.wanted = left_by(self.place.folder)
        kept = {path: content for path, content in left_by(self._before).items() if self.wanted.get(path) == content}
        self.kept = {path: content for path, content in kept.items() if not IN_PROGRESS.search(path)}

    def start_again(self) -> None:
        shutil.rmtree(self.place.folder)
        shutil.copytree(self._before, self.place.folder, symlinks=True)

    def run_on(self, disk: Disk) -> str:
        """Run the command on a disk that becomes full, check what it leaves, and repeat it; how it ended the first time."""
        self.start_again()
        with small_disk(disk):
            result = run(*self.arguments)
        if disk.full_at is None or len(disk.calls) <= disk.full_at:
            return "not reached"
        about = f"{disk.full_at}: {disk.calls[disk.full_at]}, {disk}: {result.output}"
        return self.check_end(result, disk.code, about)

    def check_end(self, result: Result, code: int, about: str) -> str:
        if result.exit_code == 0:
            assert self.differing() == [], about
            return "done"
        assert result.exit_code == 1, about
        assert os.strerror(code) in result.output, about
        left = left_by(self.place.folder)
        assert [path for path, content in self.kept.items() if left.get(path) != content] == [], about
        self._check_sound()
        again = run(*self.arguments)
        assert again.exit_code == 0, f"{about} {again.output}"
        assert self.differing() == [], about
        return "refused"

    def differing(self) -> list[str]:
        left = left_by(self.place.folder)
        return sorted(path for path in left.keys() | self.wanted.keys() if left.get(path) != self.wanted.get(path))

    def _check_sound(self) -> None:
        """What is there is whole, or named as unfinished."""
        for store in self.place.stores():
            assert verify_store(store) == [] or self.name in CHANGED_BEFORE, store
        if self.name in ("probe", "probe without tokens", "study") and [*self.place.runs.rglob("results.jsonl")]:
            assert {problem.key for problem in verify_runs(self.place.runs).problems} <= {"report.foreign_file"}


def numbers_of(case: Case, most: int, draw: random.Random) -> list[int]:
    return sorted(draw.sample(range(case.num_calls), min(most, case.num_calls)))


def fill_disk(name: str, images: Path, folder: Path, most: int) -> dict[str, int]:
    """Run a command again and again, with a disk that becomes full at another call each time; how often it ended how."""
    case, draw = Case(name, images, folder), random.Random(name)
    ends = [
        case.run_on(Disk(full_at=number, stays_full=draw.random() < 0.5, code=draw.choice(CODES)))
        for number in numbers_of(case, most, draw)
    ]
    assert ends.count("not reached") <= len(ends) / 10
    return {"calls": case.num_calls} | {how: ends.count(how) for how in ("refused", "done")}


@pytest.mark.parametrize("name", ["cache export", "cache gc", "cache rm"])
def test_a_disk_full_at_some_calls_is_named_and_loses_nothing(name: str, images: Path, tmp_path: Path) -> None:
    fill_disk(name, images, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_full_at_any_call_is_named_and_loses_nothing(name: str, images: Path, tmp_path: Path) -> None:
    """Every call of a command, of those with more than `MOST_CALLS` a sample."""
    print(name, fill_disk(name, images, tmp_path, MOST_CALLS))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("name", ["cache export", "cache to parquet"])
def test_files_that_libraries_write_appear_whole_or_not_at_all(name: str, images: Path, tmp_path: Path) -> None:
    """Of h5py and pyarrow, which write without Python, with a limit on the size of files."""
    case = Case(name, images, tmp_path)
    (file,) = (path for path in case.place.folder.iterdir() if path.is_file())
    for limit_bytes in range(0, file.stat().st_size, 4096):
        case.start_again()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
        try:
            result = run(*case.arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert case.check_end(result, errno.EFBIG, f"{limit_bytes} bytes: {result.output}") == "refused"
