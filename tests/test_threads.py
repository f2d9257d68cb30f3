"""Stores and classifiers in several threads at once give what they give in one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from photos import write_photos
from probe_runs import REQUEST, run, stores_of
from small_stores import write_small_store

from layerbank.data.sources import open_source
from layerbank.probing.module import ProbeModule
from layerbank.probing.predict import SavedProbe
from layerbank.probing.rows.row_files import row_folder

NUM_THREADS = 8


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """The results of `work(0)` .. `work(7)`, all begun at the same time."""
    begin = Barrier(NUM_THREADS)

    def one(number: int) -> Any:
        begin.wait()
        return work(number)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(one, range(NUM_THREADS)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), {"train": 6, "test": 4})


def test_a_saved_probe_in_eight_threads_predicts_as_in_one(photos: Path, tmp_path: Path) -> None:
    backbone = REQUEST.open("cpu")
    (row, _), _ = run(stores_of(backbone, photos, tmp_path), tmp_path / "runs", ("linear-cls", "alf"))
    saved = SavedProbe(row_folder(tmp_path / "runs", row))
    source = open_source(f"folder:{photos}", "test")

    def predict(size: int) -> list[Any]:
        return list(saved.predict(source, batch_size=4, num_workers=0))

    alone = predict(0)
    assert all(found == alone for found in in_threads(predict))


def test_two_probes_of_one_backbone_do_not_mix_their_tokens(photos: Path, tmp_path: Path) -> None:
    backbone = REQUEST.open("cpu")
    rows, _ = run(stores_of(backbone, photos, tmp_path), tmp_path / "runs", ("linear-cls", "linear-all"))
    probes = [SavedProbe(row_folder(tmp_path / "runs", row)) for row in rows]
    probes[1].module = ProbeModule(probes[0].backbone, probes[1].named, probes[1].module.head, lambda kind: "float16")
    source = open_source(f"folder:{photos}", "test")

    def predict(number: int) -> list[Any]:
        return list(probes[number % 2].predict(source, batch_size=4, num_workers=0))

    alone = [predict(0), predict(1)]
    assert all(found == alone[number % 2] for number, found in enumerate(in_threads(predict)))


def test_tokens_are_read_by_eight_threads_as_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbank.cache.mapping.rows.can_be_contiguous", lambda files: False)
    write_small_store(tmp_path)
    tokens = write_small_store(tmp_path).tokens("final", "grid2")
    rows = np.random.default_rng(0).integers(0, 500, (NUM_THREADS, 200))
    alone = [tokens.take(one) for one in rows]
    for number, found in enumerate(in_threads(lambda number: [tokens.take(rows[number]) for _ in range(20)])):
        assert all((one == alone[number]).all() for one in found)
