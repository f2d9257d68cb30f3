"""During a run the meter says what the limit is: decoding, the device, or the disk."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from extractions import extract
from hypothesis import given
from hypothesis import strategies as st
from photos import TINY_MODEL
from shown_events import FINISHED, PROGRESS, STARTED, shown

from layerbank import console
from layerbank.cache import CacheWriter
from layerbank.data.sources import ImageSource, open_source
from layerbank.events import Event, ExtractionFinished, ExtractionProgress
from layerbank.executors.workers import Relay
from layerbank.extraction import meter
from layerbank.extraction.extract import ExtractConfig
from layerbank.extraction.meter import find_limit, limit_of
from layerbank.models.backbone import Backbone, TokenFunction, open_backbone

seconds = st.floats(0, 1e6)


@given(seconds, seconds, seconds, st.integers(0, 64), st.integers(1, 64))
def test_the_limit_is_what_takes_most_of_the_time(
    decode_s: float, compute_s: float, write_s: float, num_workers: int, num_cores: int
) -> None:
    limit = find_limit(decode_s, compute_s, write_s, num_workers=num_workers, num_cores=num_cores)
    times = {"decoding": decode_s, "the device": compute_s, "the disk": write_s}
    assert times[limit.what] == max(times.values())
    if "--workers" in limit.advice:
        assert num_workers < int(limit.advice.split()[-1]) <= num_cores


@pytest.mark.parametrize(
    ("times", "num_workers", "num_cores", "words"),
    [
        ((1, 9, 0), 0, 8, "limit: the device"),
        ((6, 3, 1), 0, 8, "limit: decoding, try --workers 2"),  # two decode in the three seconds of the model
        ((6, 3, 1), 2, 8, "limit: decoding, try --workers 6"),  # two needed nine seconds for what shall take three
        ((6, 3, 1), 2, 4, "limit: decoding, try --workers 4"),
        ((6, 3, 1), 4, 4, "limit: decoding, which has every core: smaller images would help"),
        ((1, 2, 7), 2, 8, "limit: the disk, try a faster one with --cache, or fewer levels and kinds"),
    ],
)
def test_the_advice_is_what_would_move_the_limit(
    times: tuple[float, float, float], num_workers: int, num_cores: int, words: str
) -> None:
    assert str(find_limit(*times, num_workers=num_workers, num_cores=num_cores)) == words


def test_the_console_names_it_while_it_goes_on_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_LINE_EVERY_S", -1.0)
    monkeypatch.setattr(meter, "num_cores", lambda: 8)
    slow = replace(PROGRESS, elapsed_s=100.0, decode_s=70.0, compute_s=20.0, write_s=5.0)
    _, note, end = shown(capsys, STARTED, slow, FINISHED)
    assert "decoding 70%, computing 20%, writing 5%; limit: decoding, try --workers 4; " in note
    assert "computing 70%, writing 5%; limit: the device), 2.0 MB of tokens" in end


def test_events_of_several_processes_keep_their_workers() -> None:
    events: list[Event] = []
    relay = Relay(events.append)
    for worker in range(2):
        relay.add(worker, replace(PROGRESS, num_workers=3))
    assert isinstance(events[-1], ExtractionProgress)
    assert events[-1].num_workers == 3


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return open_backbone(TINY_MODEL, weights="random", image_size=16)


@pytest.fixture(scope="module")
def source(photos: Path) -> ImageSource:
    return open_source(f"folder:{photos}", "test")


@pytest.mark.parametrize("slow", ["decoding", "the device", "the disk"])
def test_a_run_with_one_slow_part_names_that_part(
    slow: str, backbone: Backbone, source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, method = {
        "decoding": (ImageSource, "load"),
        "the device": (TokenFunction, "forward"),
        "the disk": (CacheWriter, "append"),
    }[slow]
    original = getattr(kind, method)

    def delayed(*arguments: Any, **more: Any) -> Any:
        time.sleep(0.02 if slow == "decoding" else 0.3)
        return original(*arguments, **more)

    monkeypatch.setattr(kind, method, delayed)
    events: list[Event] = []
    config = ExtractConfig(arrays=(("final", "cls"),), batch_size=12, num_workers=0)
    extract(backbone, source, config, tmp_path, on_event=events.append)
    assert isinstance(events[-1], ExtractionFinished)
    assert limit_of(events[-1]).what == slow
