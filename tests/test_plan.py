"""`layerbank plan` says what an extraction will take, `extract --dry-run` says the same, and neither leaves anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import MODEL, run
from hypothesis import given
from hypothesis import strategies as st
from photos import TINY_MODEL
from test_room import full_disk, loads  # noqa: F401
from token_stores import make_arrays, make_spec

from layerbank.cache import time_block
from layerbank.data.sources import BadImage, ImageSource, open_source
from layerbank.models.backbone import open_backbone
from layerbank.planning.calibrate import measure_decoding, measure_forward
from layerbank.planning.plan_time import loop_s

ROOT = Path(__file__).parent.parent


def plan(photos: Path, root: Path, *options: object, command: str = "plan", code: int = 0) -> dict[str, Any]:
    result = run(command, *MODEL, "--data", f"folder:{photos}", "--cache", root, "--json", *options)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def extract(photos: Path, root: Path, *options: object) -> None:
    result = run("extract", *MODEL, "--data", f"folder:{photos}", "--cache", root, *options)
    assert result.exit_code == 0, result.output


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
    told = plan(photos, tmp_path / "caches", *options)
    assert list(tmp_path.iterdir()) == []
    extract(photos, tmp_path / "caches", *options)
    size_bytes, num_files = on_disk(tmp_path / "caches")
    assert told["written_files"] == num_files
    assert told["written_bytes"] == pytest.approx(size_bytes, rel=0.02)  # what was promised
    assert told["written_bytes"] == size_bytes  # what it is
    assert told["needed_bytes"] > size_bytes
    assert told["fits"]


def test_only_what_the_stores_lack_is_planned(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path, "--split", "train", "--levels", "last")
    before, _ = on_disk(tmp_path)
    told = plan(photos, tmp_path, "--kinds", "cls,ap", "--levels", "block.5,final")
    assert [store["num_missing"] for store in told["stores"]] == [120, 60]
    assert [store["num_rows"] for store in told["stores"]] == [120, 60]
    missing = {(one["level"], one["kind"]): one["written_bytes"] / one["size_bytes"] for one in told["tokens"]}
    assert missing["block.5", "cls"] == 1
    assert missing["final", "cls"] == pytest.approx(1 / 3, abs=0.01)  # of the test images
    extract(photos, tmp_path, "--kinds", "cls,ap", "--levels", "block.5,final")
    assert told["written_bytes"] == on_disk(tmp_path)[0] - before
    nothing = plan(photos, tmp_path, "--kinds", "cls", "--levels", "last")
    assert (nothing["num_images"], nothing["written_bytes"], nothing["forecast"]) == (0, 0, None)
    shown = run("plan", *MODEL, "--data", f"folder:{photos}", "--cache", tmp_path, "--levels", "last", "--kinds", "cls")
    assert "nothing to do: the stores have everything" in shown.stdout


def test_several_models_share_the_decoding(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path, "--split", "test", "--levels", "last")
    second = ("--model", "timm/deit_tiny_patch16_224", "--weights", "random")
    told = plan(photos, tmp_path, *second, "--levels", "last")
    assert [(one["split"], one["num_missing"]) for one in told["stores"]] == [
        ("train", 120),
        ("train", 120),
        ("test", 0),
        ("test", 60),
    ]
    assert (told["num_images"], told["num_passes"]) == (180, 300)


def test_a_dry_run_of_extract_is_a_plan(photos: Path, tmp_path: Path) -> None:
    told = [plan(photos, tmp_path / "caches", *more) for more in ((), ())]
    dry = plan(photos, tmp_path / "caches", "--dry-run", command="extract")
    measured = ("forecast", "free_bytes", "host_free_bytes")
    assert {name: dry[name] for name in dry if name not in measured} == {
        name: told[0][name] for name in told[0] if name not in measured
    }
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_does_not_fit_is_shown_and_refused(
    photos: Path,
    tmp_path: Path,
    full_disk: Any,  # noqa: F811
) -> None:
    full_disk(1_500_000)
    told = plan(photos, tmp_path, code=2)
    assert (told["fits"], told["forecast"], told["free_bytes"]) == (False, None, 1_500_000)
    result = run("plan", *MODEL, "--data", f"folder:{photos}", "--cache", tmp_path)
    assert result.exit_code == 2
    assert "MB too little" in result.stdout
    assert "expected  room for" in result.stderr


def test_the_words_say_bytes_time_limit_and_memory(photos: Path, tmp_path: Path) -> None:
    result = run("plan", *MODEL, "--data", f"folder:{photos}", "--cache", tmp_path / "caches", "--levels", "mid")
    assert result.exit_code == 0
    *_, work, disk, time, memory = result.stdout.splitlines()
    assert work.startswith("work: 180 images decoded, 180 through a model, ")
    assert disk.endswith(f" free at {tmp_path}: it fits")
    assert time.startswith("time: about ")
    assert "; limit: " in time
    assert memory.startswith("memory: at most ")
    tokens = [line.split() for line in result.stdout.splitlines() if line.startswith(TINY_MODEL)]
    assert tokens == [
        [TINY_MODEL, level, *sizes]
        for level, *sizes in (
            ("block.6", "69.1", "kB", "69.1", "kB", "138.3", "kB"),
            ("final", "69.1", "kB", "69.1", "kB", "138.3", "kB"),
            ("all", "138.3", "kB", "138.3", "kB", "276.5", "kB"),
        )
    ]


def test_a_shard_plans_its_share(photos: Path, tmp_path: Path) -> None:
    """120 and 60 rows are one block each: the first shard has both, the second nothing."""
    first, second = (plan(photos, tmp_path, "--shard", f"{number}/2", "--levels", "last") for number in (0, 1))
    assert (first["num_images"], second["num_images"]) == (180, 0)
    assert second["written_bytes"] < 40_000  # metadata, labels and ids of two stores that may not be there yet


def test_a_plan_reads_few_images(photos: Path, tmp_path: Path, loads: list[int]) -> None:  # noqa: F811
    plan(photos, tmp_path, "--split", "train", "--levels", "last", "--views", "9")
    assert 0 < len(loads) <= 32 + 4 * 8
    assert max(loads) >= 90  # images here and there, not the first ones alone


positive = st.floats(0, 1e6)


@given(positive, positive, positive, st.integers(0, 64), st.integers(1, 64), st.booleans())
def test_a_loop_takes_no_less_than_its_slowest_part_and_no_more_than_their_sum(
    decode_s: float, compute_s: float, write_s: float, num_workers: int, num_cores: int, on_gpu: bool
) -> None:
    seconds = loop_s(decode_s, compute_s, write_s, num_workers=num_workers, on_gpu=on_gpu, num_cores=num_cores)
    assert max(compute_s, write_s) <= seconds <= decode_s + compute_s + write_s + 1e-6


def test_a_forward_pass_is_measured_at_the_batch_size_of_the_run() -> None:
    backbone = open_backbone(TINY_MODEL, weights="random", image_size=16)
    speed = measure_forward(backbone, 8, arrays=[("final", "cls"), ("block.0", "ap")], storage_dtype="float32")
    assert (speed.batch_size, speed.tokens_bytes, speed.device_peak_bytes) == (8, 8 * 2 * 192 * 4, None)
    assert speed.images_per_s > 0
    assert speed.first_pass_s > 0
    # of a new store on a CPU, cls and ap of every level: 2 tokens an image
    assert measure_forward(backbone).batch_size == 64


def test_an_image_that_cannot_be_read_does_not_stop_the_calibration(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: ImageSource, row: int) -> Any:
        raise BadImage(id="a", file="b", reason="torn")

    monkeypatch.setattr(ImageSource, "load", load)
    backbone = open_backbone(TINY_MODEL, weights="random", image_size=16)
    assert measure_decoding(open_source(f"folder:{photos}", "train"), [backbone.geometry]) > 0


def test_the_trial_of_a_disk_writes_a_block_and_leaves_nothing(tmp_path: Path) -> None:
    arrays = make_arrays()
    timed = time_block(tmp_path / "caches" / "deep", make_spec(), arrays, batch_size=64)
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
    options = ["--model", TINY_MODEL, "--weights", "random", "--data", f"folder:{photos}", "--kinds", kinds, "--json"]
    options += ["--cache", str(tmp_path / "caches")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run([*command, "plan", *options], env=environment, capture_output=True, text=True, check=True)
    forecast_bytes = json.loads(told.stdout)["forecast"]["host_peak_bytes"]
    subprocess.run([*command, "extract", *options], env=environment, stdout=subprocess.DEVNULL, check=True)
    assert 1 <= forecast_bytes / int((tmp_path / "peak").read_text()) < 1.5
