"""`layerbank plan` says what an extraction will take, `extract --dry-run` says the same, and neither leaves anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import MODEL, run
from extractions import rows_of
from hypothesis import given
from hypothesis import strategies as st
from messages import refuses
from photos import TINY_MODEL, VIT_TINY
from token_stores import make_arrays, make_spec

from layerbank.cache import time_block
from layerbank.data import image_set
from layerbank.data.selected_source import SelectedSource
from layerbank.data.sources import BadImage, ImageSource, open_source
from layerbank.events import ignore
from layerbank.extraction.extract import ExtractConfig, Extraction
from layerbank.models.backbone import open_backbone
from layerbank.planning import calibrate
from layerbank.planning.calibrate import Sample, loop_s, run_sample

ROOT = Path(__file__).parent.parent
PARITY_DIGITS = 16  # a plan measures parity on other images, and a decimal number may be a few digits shorter


def plan(photos: Path, root: Path, *options: object, command: str = "plan", code: int = 0) -> dict[str, Any]:
    result = run(command, *MODEL, "--data", f"folder:{photos}", "--cache", root, "--json", *options)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def extract(photos: Path, root: Path, *options: object) -> None:
    result = run("extract", *MODEL, "--data", f"folder:{photos}", "--cache", root, *options)
    assert result.exit_code == 0, result.output


def remove_targets(root: Path) -> None:
    """Labels lie beside a store and are no part of it."""
    for store in root.rglob("*.zarr"):
        shutil.rmtree(store / "targets")
        shutil.rmtree(store / "content_hashes" / ".targets")


def on_disk(root: Path) -> tuple[int, int]:
    files = [file for store in root.rglob("*.zarr") for file in store.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files), len(files)


@pytest.mark.parametrize(
    "options",
    [
        ("--kinds", "cls,ap,grid2"),
        ("--kinds", "patch", "--levels", "block.3,final", "--storage-dtype", "float32"),
        ("--kinds", "cls", "--split", "train", "--views", "4"),
        ("--kinds", "ap", "--levels", "last", "--precision", "bfloat16", "--storage-dtype", "bfloat16"),
    ],
    ids=lambda options: " ".join(options[1:4]),
)
def test_bytes_and_files_are_those_that_are_written(photos: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    planned = plan(photos, tmp_path / "caches", *options)
    assert list(tmp_path.iterdir()) == []
    extract(photos, tmp_path / "caches", *options)
    remove_targets(tmp_path / "caches")
    size_bytes, num_files = on_disk(tmp_path / "caches")
    assert planned["written_files"] == num_files
    assert planned["written_bytes"] == pytest.approx(size_bytes, abs=PARITY_DIGITS)
    assert planned["needed_bytes"] > size_bytes
    assert planned["fits"]


def test_only_what_the_stores_lack_is_planned(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path, "--split", "train", "--levels", "last")
    remove_targets(tmp_path)
    before, _ = on_disk(tmp_path)
    planned = plan(photos, tmp_path, "--kinds", "cls,ap", "--levels", "block.5,final")
    assert [split["num_missing"] for split in planned["splits"]] == [120, 60]
    assert [split["num_rows"] for split in planned["splits"]] == [120, 60]
    assert [split["num_unknown"] for split in planned["splits"]] == [0, 60]
    written = {(one["level"], one["kind"]): one["written_bytes"] for one in planned["tokens"]}
    assert written["block.5", "cls"] == pytest.approx(3 * written["final", "cls"], rel=0.01)  # of the test images
    extract(photos, tmp_path, "--kinds", "cls,ap", "--levels", "block.5,final")
    remove_targets(tmp_path)
    assert planned["written_bytes"] == pytest.approx(on_disk(tmp_path)[0] - before, abs=PARITY_DIGITS)
    nothing = plan(photos, tmp_path, "--kinds", "cls", "--levels", "last")
    assert (nothing["num_images"], nothing["written_bytes"], nothing["forecast"]) == (0, 0, None)
    shown = run("plan", *MODEL, "--data", f"folder:{photos}", "--cache", tmp_path, "--levels", "last", "--kinds", "cls")
    assert "nothing to do: the cache has everything" in shown.stdout


def test_several_models_share_the_decoding(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path, "--split", "test", "--levels", "last")
    second = ("--model", "timm/deit_tiny_patch16_224", "--weights", "random")
    planned = plan(photos, tmp_path, *second, "--levels", "last")
    assert [(one["split"], one["num_missing"]) for one in planned["splits"]] == [
        ("train", 120),
        ("train", 120),
        ("test", 0),
        ("test", 60),
    ]
    assert (planned["num_images"], planned["num_passes"]) == (180, 300)


def test_a_dry_run_of_extract_is_a_plan(photos: Path, tmp_path: Path) -> None:
    planned = [plan(photos, tmp_path / "caches", *more) for more in ((), ())]
    dry = plan(photos, tmp_path / "caches", "--dry-run", command="extract")
    measured = ("forecast", "free_bytes", "host_free_bytes")
    assert {name: dry[name] for name in dry if name not in measured} == {
        name: planned[0][name] for name in planned[0] if name not in measured
    }
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_does_not_fit_is_shown_and_refused(
    photos: Path,
    tmp_path: Path,
    full_disk: Any,
) -> None:
    full_disk(500_000)
    planned = plan(photos, tmp_path, code=2)
    assert (planned["fits"], planned["forecast"], planned["free_bytes"]) == (False, None, 500_000)
    result = run("plan", *MODEL, "--data", f"folder:{photos}", "--cache", tmp_path)
    refuses(result, "extraction.disk_too_small", cache_root=tmp_path, free="500.0 kB")
    assert "MB too little" in result.stdout


def test_the_words_say_bytes_time_limit_and_memory(photos: Path, tmp_path: Path) -> None:
    result = run("plan", *MODEL, "--data", f"folder:{photos}", "--cache", tmp_path / "caches", "--levels", "mid")
    assert result.exit_code == 0
    *_, work, disk, time, memory = result.stdout.splitlines()
    assert work.startswith("work: 180 images decoded, 180 through a model, ")
    assert disk.endswith(f" free at {tmp_path}: it fits")
    assert time.startswith("time: about ")
    assert " on cpu, estimated from 64 images: start " in time
    assert "; limit: " in time
    assert memory.startswith("memory: at most ")
    tokens = [line.split() for line in result.stdout.splitlines() if line.startswith(TINY_MODEL)]
    assert tokens == [
        [TINY_MODEL, level, *sizes]
        for level, *sizes in (
            ("block.3", "23.0", "kB", "23.0", "kB", "46.1", "kB"),
            ("final", "23.0", "kB", "23.0", "kB", "46.1", "kB"),
            ("all", "46.1", "kB", "46.1", "kB", "92.2", "kB"),
        )
    ]


def test_a_shard_plans_its_share(photos: Path, tmp_path: Path) -> None:
    """120 and 60 rows are one block each: the first shard has both, the second nothing."""
    first, second = (plan(photos, tmp_path, "--shard", f"{number}/2", "--levels", "last") for number in (0, 1))
    assert (first["num_images"], second["num_images"]) == (180, 0)
    assert second["written_bytes"] < 40_000  # metadata, labels and ids of two stores that may not be there yet


def test_a_plan_hashes_nothing_and_says_how_many_images_it_does_not_know(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    monkeypatch.setattr(
        image_set.time, "time_ns", lambda: real() + 10**10
    )  # files changed a moment ago are not recorded
    data = shutil.copytree(photos, tmp_path / "photos")
    root = tmp_path / "caches"
    extract(data, root, "--split", "train", "--levels", "last")
    copy = data / "train" / "red" / "again.png"
    shutil.copyfile(data / "train" / "red" / "000.png", copy)  # in the cache by its content, unknown to the index
    with monkeypatch.context() as patch:
        patch.setattr("layerbank.data.image_set.read_whole", None)  # hashing would fail
        (split,) = plan(data, root, "--split", "train", "--levels", "last")["splits"]
        shown = run("plan", *MODEL, "--data", f"folder:{data}", "--cache", root, "--split", "train", "--levels", "last")
    assert (split["num_rows"], split["num_found"], split["num_missing"], split["num_unknown"]) == (121, 120, 1, 1)
    assert "1 image is new to the content index and counts as missing" in shown.stdout
    extract(data, root, "--split", "train", "--levels", "last")
    (split,) = plan(data, root, "--split", "train", "--levels", "last")["splits"]
    assert (split["num_found"], split["num_missing"], split["num_unknown"]) == (121, 0, 0)


def test_a_plan_reads_few_images(photos: Path, tmp_path: Path, loads: list[int]) -> None:
    plan(photos, tmp_path, "--split", "train", "--levels", "last", "--views", "9")
    assert 0 < len(loads) <= 32 + 2 * 64  # one batch first, one in the sample
    assert max(loads) >= 60  # from the middle, too


positive = st.floats(0, 1e6)


@given(positive, positive, positive, st.integers(0, 64), st.integers(1, 64), st.booleans())
def test_a_loop_takes_no_less_than_its_slowest_part_and_no_more_than_their_sum(
    decode_s: float, compute_s: float, write_s: float, num_workers: int, num_cores: int, on_gpu: bool
) -> None:
    seconds = loop_s(decode_s, compute_s, write_s, num_workers=num_workers, on_gpu=on_gpu, num_cores=num_cores)
    assert max(compute_s, write_s) <= seconds <= decode_s + compute_s + write_s + 1e-6


def sampled(photos: Path, tmp_path: Path, batch_size: int) -> Sample:
    backbone = open_backbone(TINY_MODEL, weights="random", image_size=16)
    config = ExtractConfig(arrays=(("final", "cls"), ("block.0", "ap")), num_workers=0)
    extraction = Extraction(backbone=backbone, config=config, cache_root=tmp_path / "never")
    rows = rows_of(open_source(f"folder:{photos}", "train"), tmp_path / "never")
    source = SelectedSource(rows, rows.reading_order, rows.source.ids)
    return run_sample([(extraction, batch_size)], source, ignore)


@pytest.mark.parametrize(("batch_size", "num_images"), [(8, 64), (64, 56), (120, 120)])
def test_a_sample_is_the_loop_on_some_of_the_images_after_a_first_batch(
    photos: Path, tmp_path: Path, loads: list[int], batch_size: int, num_images: int
) -> None:
    sample = sampled(photos, tmp_path, batch_size)
    assert (sample.num_images, sample.num_passes) == (num_images, num_images)
    assert len(loads) == num_images + (batch_size if batch_size < 120 else 0)
    assert min(sample.decode_s, sample.compute_s) > 0
    assert list(tmp_path.rglob("*.zarr")) == []


def test_a_sample_ends_when_its_time_is_over(
    photos: Path, tmp_path: Path, loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "BUDGET_S", 0.0)
    assert sampled(photos, tmp_path, 8).num_images == 8
    assert len(loads) <= 3 * 8


def test_an_image_that_cannot_be_read_does_not_stop_the_calibration(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: ImageSource, row: int) -> Any:
        raise BadImage(id="a", file="b", reason="torn")

    monkeypatch.setattr(ImageSource, "load", load)
    assert sampled(photos, tmp_path, 8).decode_s > 0


def test_the_benchmark_of_a_disk_writes_a_row_block_and_leaves_nothing(tmp_path: Path) -> None:
    arrays = make_arrays()
    timed = time_block(tmp_path / "caches" / "deep", make_spec().model, arrays, num_rows=240, batch_size=64)
    assert timed.num_files == len(arrays)
    assert timed.size_bytes == 240 * 2 * (8 + 32) * 2 + 4 * 4
    assert timed.bytes_per_s > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kinds", ["cls,ap", "patch"])
def test_the_peak_of_memory_is_foreseen(photos: Path, tmp_path: Path, kinds: str) -> None:
    """An upper bound, and less than half above what is taken."""
    command = [sys.executable, str(ROOT / "tests" / "peak.py"), str(tmp_path / "peak")]
    options = ["--model", VIT_TINY, "--weights", "random", "--data", f"folder:{photos}", "--kinds", kinds, "--json"]
    options += ["--cache", str(tmp_path / "caches")]
    planned = subprocess.run([*command, "plan", *options], capture_output=True, text=True, check=True)
    forecast_bytes = json.loads(planned.stdout)["forecast"]["host_peak_bytes"]
    subprocess.run([*command, "extract", *options], stdout=subprocess.DEVNULL, check=True)
    assert 1 <= forecast_bytes / int((tmp_path / "peak").read_text()) < 1.5
