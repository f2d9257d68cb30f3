"""What a person sees: plain lines in a log, one warning an array, tables in full width."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shown_events import FINISHED, PROGRESS, STARTED, STORE, shown

from layerbank import console
from layerbank.console import Listener, print_error, print_table
from layerbank.events import (
    BatchHalved,
    ClusterBusy,
    ClusterJoined,
    CompileFailed,
    HashingFinished,
    HashingProgress,
    HashingStarted,
    ImageSkipped,
    ImagesTrusted,
    IndexIgnored,
    MemoryPlanned,
    ParityMeasured,
    PrecisionAdvice,
    ProbeFinished,
    ProbeProgress,
    ProbeStarted,
    RowsFound,
    StoreRepaired,
    StudyUnitAgain,
    TokensOutOfRange,
    TrainingStarted,
    UploadFailed,
    WorkerLost,
)
from layerbank.quantities import size


def test_a_log_gets_a_line_at_the_start_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    start, end = shown(capsys, STARTED, PROGRESS, FINISHED)
    assert start == (
        "extract: 900 of 1,000 images of photos/train through timm/vit (float32 on cpu, batches of 64, 26 arrays) "
        f"-> {STORE}"
    )
    assert end == (
        "extract: done, 900 images in 20.0 s (45.0 images/s; decoding 20%, computing 70%, writing 5%; limit: the device), "
        "2.0 MB of tokens"
    )


def test_the_line_at_the_start_says_whether_the_model_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = shown(capsys, replace(STARTED, compiled=True))
    assert "(float32 on cpu, compiled, batches of 64, 26 arrays)" in line


def test_a_log_gets_rate_shares_and_time_left_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_LINE_EVERY_S", -1.0)
    line = shown(capsys, STARTED, PROGRESS)[1]
    assert line.startswith("  450/900, 45.0 images/s; decoding 20%, computing 70%, writing 5%; limit: the device; ")
    assert line.endswith(" s left")


def test_time_left_is_counted_from_the_start_of_a_phase(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console, "PLAIN_LINE_EVERY_S", -1.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with Listener() as listener:
        listener.show(TrainingStarted(probes=("alf",), num_settings=4, num_passes=1))
        for now[0], phase, step in ((900.0, "select", 500), (900.0, "refit", 0), (910.0, "refit", 100)):
            listener.show(ProbeProgress(probes=("alf",), phase=phase, step=step, num_steps=500, num_probes=4))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  refit: step 100")]
    assert lines[0].endswith("; 40 s left")


def test_an_array_out_of_range_is_told_once_and_again_when_it_grew_tenfold(capsys: pytest.CaptureFixture[str]) -> None:
    def event(count: int) -> TokensOutOfRange:
        return TokensOutOfRange(
            array="tokens/block.3/cls", num_saturated=count, num_nonfinite=0, storage_dtype="float16"
        )

    lines = shown(capsys, event(1), event(5), event(10), event(11))
    assert len(lines) == 2
    assert lines[0] == (
        "extract: warning: tokens/block.3/cls: 1 values beyond float16 (stored as its largest number), 0 not finite"
    )


def test_other_events_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    row: dict[str, Any] = {"validation": 0.5, "test": {"balanced_accuracy": 0.75}}
    found = RowsFound(
        backbone="timm/vit", dataset="photos", split="train", num_rows=1600, num_views=0, num_found=1588, num_missing=12,
        num_unreadable=0, stores=(STORE,),
    )  # fmt: skip
    lines = shown(
        capsys,
        found,
        replace(found, num_found=1000, num_missing=0, num_views=3, num_unreadable=2),
        ImagesTrusted(dataset="photos", split="train", num_images=1588),
        CompileFailed(backbone="timm/vit", reason="InductorError: no compiler"),
        BatchHalved(backbone="timm/vit", num_images=32, reason="CUDA out of memory"),
        ImageSkipped(sample_id="a/1", file="photos/a/1.png", reason="truncated"),
        HashingStarted(dataset="photos", split="train", num_images=1588, num_rows=1600, size_bytes=10**8),
        HashingProgress(
            dataset="photos",
            split="train",
            num_done=500,
            num_images=1588,
            bytes_done=5 * 10**7,
            size_bytes=10**8,
            elapsed_s=0.5,
        ),
        HashingFinished(dataset="photos", split="train", num_images=1588, size_bytes=10**8, elapsed_s=1.0),
        ImagesTrusted(dataset="photos", split="train", num_images=12),
        IndexIgnored(path=Path("caches/.index/photos.index"), reason="it is damaged"),
        StoreRepaired(store=Path("caches/vit/a.zarr"), arrays=("tokens/final/cls",), num_blocks=2),
        WorkerLost(worker="1/2", reason="killed by SIGKILL", num_left=1),
        WorkerLost(worker="0/4", reason="its node has died", num_left=3, is_replaced=True),
        ClusterJoined(num_nodes=2, num_workers=8, num_gpus=1, num_cpus=4),
        ClusterJoined(num_nodes=1, num_workers=1, num_gpus=0, num_cpus=1),
        ClusterBusy(waited_s=20.4, num_workers=8),
        StudyUnitAgain(model="timm/vit", dataset="photos", reason="its node has died"),
        UploadFailed(probes=("alf", "linear"), tokens_bytes=1_700_000_000, reason="CUDA out of memory"),
        ProbeStarted(probe="alf", num_settings=63, num_rows=1000, token_shape=(24, 384)),
        ProbeProgress(probes=("alf",), phase="select", step=5, num_steps=1000, num_probes=63),
        ProbeFinished(probe="alf", row=row, reused=False),
        ProbeFinished(probe="alf", row={"test": None}, reused=True),
    )
    assert lines == [
        "extract: photos/train, 1,600 images: 1,588 in the cache, 12 to compute (timm/vit)",
        "extract: photos/train, 1,600 rows (4 views of each image): 1,000 in the cache, 0 to compute, 2 unreadable (timm/vit)",
        "photos/train: 1,588 images trusted by name and size, without being read",
        "extract: warning: timm/vit could not be compiled and runs eagerly: InductorError: no compiler",
        "extract: warning: timm/vit: CUDA out of memory; from here on 32 images at a time",
        "extract: skipped image 'a/1' in photos/a/1.png: truncated",
        "photos/train: hashing 1,588 of 1,600 images",
        "photos/train: 12 images trusted by name and size, without being read",
        "warning: the content index caches/.index/photos.index is ignored: it is damaged; images are hashed again",
        "extract: warning: caches/vit/a.zarr is damaged: 2 row blocks of tokens/final/cls will be computed again",
        "extract: warning: worker 1/2 was lost (killed by SIGKILL); 1 left to take over its rows",
        "extract: warning: worker 0/4 was lost (its node has died); 3 left to take over its rows, and another starts",
        "ray: 2 machines, 8 workers at a time with 1 GPU and 4 cores each",
        "ray: 1 machine, 1 worker at a time with 1 core each",
        "ray: warning: none of 8 workers has started after 20 s: the cluster is full; waiting",
        "study: warning: the worker of timm/vit on photos was lost (its node has died); another takes over",
        "probe alf, linear: warning: CUDA out of memory: 1.7 GB of tokens do not fit into memory any more and are "
        "streamed from the store",
        "probe alf: 63 settings on 1,000 rows of 24 x 384",
        "probe alf: validation 50.0, test 75.0 % balanced accuracy",
        "probe alf: every setting diverged (from results.jsonl, not trained again)",
    ]


def test_advice_on_speed_follows_work_that_took_long(capsys: pytest.CaptureFixture[str]) -> None:
    advice = PrecisionAdvice(precision="bfloat16", speedup=2.04)
    slow = replace(FINISHED, elapsed_s=90.0, write_s=80.0)
    lines = shown(capsys, advice, STARTED, FINISHED, replace(STARTED, split="test"), slow, slow)
    assert [line for line in lines if "try" in line] == [
        "extract: done, 900 images in 90.0 s (10.0 images/s; decoding 4%, computing 16%, writing 89%; limit: the disk, "
        "try a faster one with --cache, or fewer levels and kinds), 2.0 MB of tokens",
        "extract: this CPU multiplies 2.0 times as fast in bfloat16: try --precision bfloat16",
        lines[3],
    ]
    assert shown(capsys, advice, STARTED) == shown(capsys, STARTED)


def test_rounding_is_reported_where_it_matters(capsys: pytest.CaptureFixture[str]) -> None:
    measured = ParityMeasured(
        backbone="timm/vit", split="train", num_images=32, compute_dtype="float32", storage_dtype="float16",
        cosine_min=0.9999, cosine_level="block.3", max_relative_error=0.0004, error_level="final",
        num_saturated=0, num_nonfinite=0,
    )  # fmt: skip
    assert shown(capsys, measured) == []
    for wrong in ({"cosine_min": 0.99}, {"num_saturated": 3}, {"num_nonfinite": 1}):
        (line,) = shown(capsys, replace(measured, **wrong))
        assert line.startswith("extract: train: storage rounding error of float16, on 32 images: ")


def test_the_plan_of_the_memory_says_where_tokens_lie(capsys: pytest.CaptureFixture[str]) -> None:
    plan = MemoryPlanned(
        probe="alf",
        budget_bytes=60 * 10**9,
        planned_bytes=9 * 10**9,
        tokens="resident",
        on_gpu=True,
        tokens_bytes=1_700_000_000,
        num_banks=1,
        probes_at_once=63,
        group_size=7,
        chunk_size=256,
    )
    plans = [plan, replace(plan, tokens="streamed"), replace(plan, on_gpu=False)]
    bank = "probe alf: one bank of 63 probes in groups of 7, 256 images at a time; 1.7 GB of tokens"
    assert shown(capsys, *plans, replace(plan, on_gpu=False, tokens="streamed")) == [
        f"{bank} in GPU memory; at most 9.0 GB of 60.0 GB there",
        f"{bank} streamed from the store; at most 9.0 GB of 60.0 GB there",
        f"{bank} in memory; at most 9.0 GB of 60.0 GB",
        f"{bank} streamed from the store; at most 9.0 GB of 60.0 GB",
    ]


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, STARTED, FINISHED, quiet=True) == []


def test_a_terminal_gets_one_moving_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with Listener() as listener:
        listener.show(STARTED)
        listener.show(PROGRESS)
        time.sleep(0.3)  # the line is drawn ten times a second
        listener.show(FINISHED)
    text = capsys.readouterr().err
    assert "450/900, 45.0 images/s" in text
    assert "extract: done, 900 images" in text


def test_markup_in_names_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, ImageSkipped(sample_id="[bold]x[/bold]", file="[red]", reason="[/]"))
    assert lines == ["extract: skipped image '[bold]x[/bold]' in [red]: [/]"]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_table_on_a_narrow_terminal_keeps_names_in_one_piece(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    store = "caches/timm-vit_small_patch14_dinov2.lvd142m-1a2b3c4d/[red]:smile:-train-5e6f7a8b.zarr"
    print_table(("store", "state", "rows"), [(store, "complete", "10"), ("b", "writing", "1,000")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [store, "  state complete", "  rows  10", "b", "  state writing", "  rows  1,000"]
    print_table(("probe", "test"), [("alf", "95.0"), ("linear-cls", "90.0")])
    assert [len(line.split()) for line in capsys.readouterr().out.splitlines()] == [2, 2, 2]


def test_a_table_in_a_log_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "x" * 300
    print_table(("probe", "setting", "test"), [("alf", wide, "1.0"), ("b", "y", "10.0")], title="t" * 200)
    title, header, first, second = capsys.readouterr().out.splitlines()
    assert title == "t" * 200
    assert header.split() == ["probe", "setting", "test"]
    assert wide in first
    assert second.endswith(" 10.0")


def test_lines_of_a_table_in_a_log_end_with_their_last_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("check", "result", "do"), [("cores", "ok", ""), ("hub", "warning", "Give a file.")], num_left=3)
    assert capsys.readouterr().out.splitlines() == [
        "check  result   do",
        "cores  ok",
        "hub    warning  Give a file.",
    ]


def test_an_error_has_a_line_for_each_of_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("--probe", {"expected": "one of alf", "got": "'alff'", "do": "Did you mean 'alf'?"})
    assert capsys.readouterr().err.splitlines() == [
        "layerbank: --probe",
        "  expected  one of alf",
        "  got       'alff'",
        "  do        Did you mean 'alf'?",
    ]


@pytest.mark.parametrize(("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2.5e12, "2.5 TB")])
def test_sizes_are_for_people(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text
