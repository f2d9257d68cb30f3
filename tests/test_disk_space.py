"""What a disk cannot take is refused before the first image: needed, free, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import MODEL, run
from extractions import rows_of
from messages import raises, refuses, shows
from own_mounts import in_own_mounts
from photos import TINY_MODEL, TINY_WIDTH
from planted import Massive, Planted
from study_recipes import arguments, write_recipe
from token_stores import tree

import layerbank.jobs.study_disk_space
from layerbank import RequestError
from layerbank.data.catalogue import require_entry
from layerbank.data.sources import open_source
from layerbank.doctor.disk import check_disk
from layerbank.events import Event, StudyShortOfDiskSpace
from layerbank.extraction.extract import ExtractConfig
from layerbank.jobs.extract import RequestedExtraction, settle_and_check_disk
from layerbank.jobs.job import StudyJob
from layerbank.jobs.study_disk_space import report_disk_space
from layerbank.jobs.study_plan import find_splits
from layerbank.quantities import size

ROOT = Path(__file__).parent.parent


def extract(photos: Path, cache: Path, *options: object) -> Any:
    return run("extract", *MODEL, "--data", f"folder:{photos}", "--cache", cache, *options)


def test_an_extraction_that_does_not_fit_is_refused_before_the_first_image(
    photos: Path, tmp_path: Path, full_disk: Any, loads: list[int]
) -> None:
    full_disk(500_000)
    result = extract(photos, tmp_path / "caches", "--kinds", "cls,patch", "--storage-dtype", "patch=float32")
    refused = refuses(
        result,
        "extraction.disk_too_small",
        cache_root=tmp_path / "caches",
        by_kind="patch 1.3 MB, cls 161.3 kB",
        free="500.0 kB",
        folder=tmp_path / "caches",
        less="no tokens of kind patch, fewer levels, --storage-dtype float16",
    )
    assert refused.values["needed"].startswith("2.")
    assert refused.values["lacking"].startswith("2.")
    assert loads == []
    assert not list((tmp_path / "caches").glob("*/*.zarr"))


def test_only_what_is_missing_has_to_fit(photos: Path, tmp_path: Path, full_disk: Any) -> None:
    assert extract(photos, tmp_path, "--levels", "last").exit_code == 0
    full_disk(0)
    assert extract(photos, tmp_path, "--levels", "last").exit_code == 0
    result = extract(photos, tmp_path, "--levels", "last", "--kinds", "cls,ap,grid2")
    less = "kinds with fewer tokens, fewer levels"
    refuses(result, "extraction.disk_too_small", by_kind="grid2 92.2 kB", less=less)


def test_what_is_overwritten_counts_as_free(photos: Path, tmp_path: Path, full_disk: Any) -> None:
    assert extract(photos, tmp_path).exit_code == 0
    size_bytes = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    full_disk(1_500_000)  # from nothing it needs 1.8 MB
    assert size_bytes > 300_000
    assert extract(photos, tmp_path, "--overwrite").exit_code == 0


def test_a_float16_model_is_judged_by_the_store_that_it_comes_to(
    photos: Path, tmp_path: Path, full_disk: Any, loads: list[int]
) -> None:
    """It overflows and becomes a bfloat16 model, whose store is complete: a full disk is no hindrance."""
    data, config = f"folder:{photos}", ExtractConfig(arrays=(("final", "cls"),), num_workers=0)
    rows = rows_of(open_source(data, "test"), tmp_path)

    def work(kind: type[Planted], precision: str) -> RequestedExtraction:
        request = kind(model=TINY_MODEL, tap="block", precision=precision)
        return RequestedExtraction(request.open("cpu"), request, data, tmp_path, config)

    work(Massive, "bfloat16").extract([rows])
    full_disk(0)
    (settled,) = settle_and_check_disk([work(Massive, "float16")], [rows])
    assert settled.backbone.precision == "bfloat16"
    loads.clear()
    with raises("extraction.disk_too_small", RequestError, free="0 B"):
        settle_and_check_disk([work(Massive, "float32")], [rows])
    assert loads == []


def test_a_probe_and_a_study_refuse_it_too(photos: Path, tmp_path: Path, full_disk: Any) -> None:
    full_disk(10_000)
    options = ("--probe", "linear-cls", "--protocol", "quick", "--cache", tmp_path / "caches", "--runs", tmp_path)
    result = run("probe", *MODEL, "--data", f"folder:{photos}", *options)
    refuses(result, "extraction.disk_too_small", free="10.0 kB")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'models = ["{MODEL[1]}"]\ndata = ["folder:{photos}"]\nprobes = ["linear-cls"]\nimage_size = 32\n'
        f'[weights]\n"{MODEL[1]}" = "random"\n'
    )
    result = run("study", recipe, "--cache", tmp_path / "caches", "--runs", tmp_path)
    assert result.exit_code == 1
    assert "--cache" in result.stderr
    assert "10.0 kB free" in result.stderr
    assert not list((tmp_path / "caches").glob("*/*.zarr"))


def test_a_study_whose_units_do_not_fit_together_says_so_first_and_begins_all_the_same(
    photos: Path,
    two_sets: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def study(free: int, probes: list[str], data: list[str]) -> Any:
        monkeypatch.setattr(layerbank.jobs.study_disk_space, "free_bytes", lambda root: free)
        recipe = write_recipe(tmp_path, data, probes)
        result = run(*arguments(recipe, tmp_path))
        assert result.exit_code == 0, result.output
        return [line for line in result.stderr.splitlines() if line.startswith("study: warning")]

    num_images = [len(open_source(uri, split)) for uri in two_sets for split in ("train", "test")]
    of_cls = 2 * TINY_WIDTH * sum(num_images)
    assert study(of_cls - 1, ["linear-cls"], two_sets[:1]) == [], "a unit alone is judged when it begins"
    shutil.rmtree(tmp_path / "caches")
    assert study(of_cls, ["linear-cls"], two_sets) == []
    shutil.rmtree(tmp_path / "caches")
    (warning,) = study(of_cls - 1, ["linear-cls"], two_sets)
    assert warning == (
        f"study: warning: 2 units still to extract: at least {size(of_cls)} of tokens, {size(of_cls - 1)} free on the disk of "
        f"{tmp_path / 'caches'}: free 1 B before the last ones, or give another disk with --cache"
    )
    assert study(0, ["linear-cls"], two_sets) == [], "stores that are there need nothing"
    (warning,) = study(0, ["linear-cls", "linear-last"], two_sets)
    assert f"2 units still to extract: at least {size(of_cls)} of tokens" in warning, "only ap is missing"
    for store in (tmp_path / "caches").glob("*/other-*.zarr"):
        shutil.rmtree(store)
    (warning,) = study(0, ["linear-cls"], two_sets)
    first, other = (
        {path.read_bytes() for path in Path(uri.removeprefix("folder:")).rglob("*.*") if path.is_file()}
        for uri in two_sets
    )
    assert f"1 unit still to extract: at least {size(2 * TINY_WIDTH * len(other - first))} of tokens" in warning


def test_models_and_data_that_cannot_be_looked_at_are_for_their_units_to_tell(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerbank.jobs.study_disk_space, "free_bytes", lambda root: 0)

    def refused(job: StudyJob, dataset: str) -> Any:
        if "nowhere" in dataset:
            raise PermissionError(dataset)
        return find_splits(job, dataset)

    monkeypatch.setattr(layerbank.jobs.study_disk_space, "find_splits", refused)
    data = ("folder:nowhere", "dtd", f"folder:{photos}")
    job = StudyJob(
        models=("timm/vit_nonsense", TINY_MODEL),
        data=data,
        probes=("linear-cls",),
        image_size=32,
        cache_root=tmp_path / "caches",
        data_root=tmp_path,
    )
    events: list[Event] = []
    report_disk_space(job, events.append)
    (event,) = events
    assert isinstance(event, StudyShortOfDiskSpace)
    num_photos = sum(len(open_source(f"folder:{photos}", split)) for split in ("train", "test"))
    dtd = require_entry("dtd").num_train  # to be fetched; nobody knows its test images yet
    assert (event.num_units, event.needed_bytes) == (2, 2 * TINY_WIDTH * (dtd + num_photos))


def test_a_repair_that_does_not_fit_is_refused_before_anything_is_dropped(
    photos: Path, tmp_path: Path, full_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extract(photos, tmp_path / "caches", "--split", "test").exit_code == 0
    (store,) = (tmp_path / "caches").glob("*/*.zarr")
    sound = tree(store)
    altered = store / "tokens/final/ap/c.0.0"
    altered.write_bytes(bytes([altered.read_bytes()[0] ^ 1]) + altered.read_bytes()[1:])
    (store / "tokens/final/cls/c.0.0").unlink()
    damaged = tree(store)
    full_disk(1000)
    result = run("cache", "repair", store, "--workers", 0)
    refuses(result, "extraction.disk_too_small_for_repair", store=store, free="1.0 kB", folder=store.parent)
    assert tree(store) == damaged
    with monkeypatch.context() as patch:
        patch.setattr("layerbank.extraction.disk_space.free_bytes", lambda root: 1 << 40)
        patch.setattr("layerbank.extraction.disk_space.free_files", lambda root: 0)
        result = run("cache", "repair", store, "--workers", 0)
    refuses(result, "extraction.too_many_files_for_repair", store=store, free=0, folder=store.parent)
    assert tree(store) == damaged
    (store / "tokens/final/cls/c.0.0").write_bytes(sound["tokens/final/cls/c.0.0"])
    result = run("cache", "repair", store, "--workers", 0)  # a damaged file frees the space that the new one takes
    assert result.exit_code == 0, result.output
    assert tree(store) == sound


def test_a_disk_that_takes_too_few_files_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerbank.extraction.disk_space.free_files", lambda root: 50)
    result = extract(photos, tmp_path, "--levels", "last")
    assert result.exit_code == 0, result.output
    result = extract(photos, tmp_path)
    refused = refuses(result, "extraction.too_many_files", free=50, folder=tmp_path)
    assert 50 < int(refused.values["needed"]) < 100  # 6 levels of 2 kinds, metadata too, twice


def test_a_file_in_the_way_is_refused(photos: Path, tmp_path: Path, loads: list[int]) -> None:
    (tmp_path / "notes").touch()
    result = extract(photos, tmp_path / "notes" / "caches")
    refused = refuses(result, "layerbank.output_folder_not_writable", where="--cache")
    assert str(tmp_path / "notes") in refused.got
    assert loads == []
    (finding,) = check_disk(tmp_path / "notes" / "caches")
    assert (finding.state, finding.found) == ("problem", f"{tmp_path / 'notes'} is a file")


def test_a_file_in_the_place_of_a_models_folder_is_refused(photos: Path, tmp_path: Path, loads: list[int]) -> None:
    assert extract(photos, tmp_path / "caches", "--levels", "last").exit_code == 0
    (folder,) = (tmp_path / "caches").glob("timm-*")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / folder.name).touch()
    loads.clear()
    refused = refuses(extract(photos, tmp_path / "other", "--levels", "last"), "extraction.cache_not_writable")
    assert folder.name in refused.got
    assert refused.todo.endswith(" Nothing was written.")
    assert loads == []


PROGRAM = f"""
import subprocess, sys; sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from commands import MODEL, run
from stores import tree
disk, photos = map(Path, sys.argv[1:])
def extract(kinds):
    result = run("extract", *MODEL, "--data", f"folder:{{photos}}", "--cache", disk / "caches", "--kinds", kinds)
    print(result.exit_code, *(line.strip() for line in result.stderr.splitlines()[-4:]), sep="|")
extract("cls")
extract("cls,patch,grid2")
before = tree(disk)
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
extract("cls")
extract("cls,ap")
assert tree(disk) == before
"""


def test_a_real_disk_takes_what_fits_and_refuses_the_rest_and_read_only_what_is_not_complete(
    photos: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    script = 'mount -t tmpfs -o size=2m tmpfs "$2"; "$1" "$3" "$2" "$4"'
    fits, refused, complete, read_only = in_own_mounts(script, *map(str, (disk, tmp_path / "program.py", photos)))
    assert fits.startswith("0|")
    assert refused.startswith("2|layerbank: --cache ")
    assert shows(refused, "extraction.disk_too_small")
    assert f"MB free on the disk of {disk / 'caches'}|" in refused
    assert complete.startswith("0|")
    code, _, _, got, todo = read_only.split("|")
    assert code == "2"
    assert "Read-only file system" in got
    assert todo.endswith(" Nothing was written.")
