"""Stage one: what lands in the store is what the model says, whatever happened on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractions import extract, only_store, rows_of
from messages import raises
from photos import TINY_MODEL, write_photos
from stores import tree
from token_stores import write_store

from layerbank import LayerbankError, RequestError
from layerbank.cache import ModelStores, TokenStore, Worker, read_target
from layerbank.cache.errors import StoreLockedError
from layerbank.cache.journal import JOURNAL_FOLDER, WORKER_FILE
from layerbank.cache.writing.locking import StoreLock
from layerbank.data import image_set
from layerbank.data.sources import BadImage, ImageSource, open_source
from layerbank.errors import WorkError
from layerbank.events import (
    Event,
    ExtractionFinished,
    ExtractionProgress,
    ExtractionStarted,
    ImageSkipped,
    RowsFound,
    StoreRepaired,
    TokensOutOfRange,
)
from layerbank.extraction.extract import ExtractConfig, Extraction, begin, model_of
from layerbank.extraction.repair import repair_and_fill
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.request import ModelRequest
from layerbank.models.rounding import round_tokens

ARRAYS = tuple((level, kind) for level in ("block.0", "block.5", "final") for kind in ("cls", "ap", "grid2", "patch"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return open_backbone(TINY_MODEL, weights="random", image_size=32)


@pytest.fixture(scope="module")
def source(photos: Path) -> ImageSource:
    return open_source(f"folder:{photos}", "train")


def run(backbone: Backbone, source: ImageSource, root: Path, **config: Any) -> tuple[Path, list[Event]]:
    events: list[Event] = []
    config = {"arrays": ARRAYS, "batch_size": 16, "num_workers": 0} | config
    settings = ExtractConfig(**config)
    request = extract(backbone, source, settings, root, on_event=events.append)
    return only_store(request), events


@pytest.fixture(scope="module")
def finished(backbone: Backbone, source: ImageSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(backbone, source, tmp_path_factory.mktemp("caches"))[0]


@pytest.mark.parametrize("storage_dtype", ["float16", "float32", "bfloat16"])
def test_the_store_holds_the_models_tokens_rounded_to_the_storage_dtype(
    backbone: Backbone, source: ImageSource, tmp_path: Path, storage_dtype: str
) -> None:
    store, _ = run(backbone, source, tmp_path, storage_dtype=storage_dtype)
    cache = TokenStore.open(store)
    order = rows_of(source, tmp_path).reading_order
    images = torch.stack([backbone.transform(source.load(row)[0]) for row in order[:16].tolist()])
    forward = backbone.compile(["block.0", "block.5", "final"], ["cls", "ap", "grid2", "patch"])
    tokens = forward(images)
    for level, kind in ARRAYS:
        stored = cache.tokens(level, kind).read(0, 16)
        np.testing.assert_array_equal(stored, round_tokens(tokens[level][kind], storage_dtype).values)


def test_rows_are_in_the_order_of_their_hashes_and_ids_and_labels_lie_beside_them(
    finished: Path, source: ImageSource
) -> None:
    cache = TokenStore.open(finished)
    hashes = np.array([source.load(row)[1] for row in range(len(source))], dtype=np.uint64)
    order = np.argsort(hashes)
    np.testing.assert_array_equal(cache.rows.hashes, hashes[order])
    assert list(cache.sample_ids) == [source.ids[row] for row in order.tolist()]
    target = read_target(finished, "label", num_rows=cache.num_rows)
    np.testing.assert_array_equal(target.values, source.labels[order])
    assert (target.type, list(target.class_names)) == ("multiclass", ["blue", "green", "red"])


def test_a_second_run_computes_nothing_and_changes_no_byte(
    backbone: Backbone, source: ImageSource, finished: Path
) -> None:
    before = tree(finished)
    _, events = run(backbone, source, finished.parents[1])
    (found,) = events
    assert isinstance(found, RowsFound)
    assert (found.num_rows, found.num_found, found.num_missing, found.stores) == (len(source), len(source), 0, ())
    assert tree(finished) == before


def test_decoding_processes_do_not_change_a_byte(
    backbone: Backbone, source: ImageSource, finished: Path, tmp_path: Path
) -> None:
    store, _ = run(backbone, source, tmp_path, num_workers=2)
    assert tree(store) == tree(finished)


def test_kinds_added_later_give_the_store_that_is_written_at_once(
    backbone: Backbone, source: ImageSource, finished: Path, tmp_path: Path
) -> None:
    run(backbone, source, tmp_path, arrays=ARRAYS[:2])
    store, events = run(backbone, source, tmp_path)
    started = next(event for event in events if isinstance(event, ExtractionStarted))
    assert started.num_pending == len(source)
    assert tree(store) == tree(finished)


def test_progress_counts_every_image_once_and_says_where_time_went(
    backbone: Backbone, source: ImageSource, tmp_path: Path
) -> None:
    _, events = run(backbone, source, tmp_path)
    progress = [event for event in events if isinstance(event, ExtractionProgress)]
    num_done = [event.num_done for event in progress]
    assert num_done == sorted(set(num_done))
    assert progress[-1].num_done == progress[-1].num_pending == len(source)
    finished = events[-1]
    assert isinstance(finished, ExtractionFinished)
    waited = finished.decode_s + finished.compute_s + finished.write_s
    assert 0.5 * finished.elapsed_s < waited <= finished.elapsed_s


@pytest.fixture
def damaged(tmp_path: Path) -> ImageSource:
    photos = write_photos(tmp_path / "photos", {"train": 8})
    (photos / "train" / "green" / "003.png").write_bytes(b"not an image")
    return open_source(f"folder:{photos}", "train")


def test_an_unreadable_image_stops_the_run_by_default_and_is_named(
    backbone: Backbone, damaged: ImageSource, tmp_path: Path
) -> None:
    with pytest.raises(BadImage, match=r"image train/green/003\.png in .*003\.png: .*--on-bad-image skip"):
        run(backbone, damaged, tmp_path / "caches")


def test_a_skipped_image_is_recorded_and_left_out_of_the_rows(
    backbone: Backbone, damaged: ImageSource, tmp_path: Path
) -> None:
    store, events = run(backbone, damaged, tmp_path / "caches", on_bad_image="skip")
    skipped = [event for event in events if isinstance(event, ImageSkipped)]
    assert [event.sample_id for event in skipped] == ["train/green/003.png"]
    cache = TokenStore.open(store)
    row = list(cache.sample_ids).index("train/green/003.png")
    assert list(cache.skipped) == [row]
    assert not np.any(cache.tokens("final", "cls").read(row, row + 1))
    assert len(cache.rows) == len(damaged)


def test_values_that_float16_cannot_hold_are_an_event_with_level_and_count(source: ImageSource, tmp_path: Path) -> None:
    backbone = open_backbone(TINY_MODEL, weights="random", image_size=32)
    with torch.no_grad():
        backbone.tower.blocks[3].norm2.bias[7] = 1e6  # type: ignore[union-attr, index]
    arrays = (("block.2", "cls"), ("block.3", "cls"))
    store, events = run(backbone, source, tmp_path, arrays=arrays)
    out_of_range = [event for event in events if isinstance(event, TokensOutOfRange)]
    assert {event.array for event in out_of_range} == {"tokens/norm2/block.3/cls"}
    assert out_of_range[-1].num_saturated == len(source)
    assert out_of_range[-1].num_nonfinite == 0
    assert TokenStore.open(store).notes.saturated == {"tokens/norm2/block.3/cls": len(source)}


def test_a_store_held_by_another_process_is_refused(backbone: Backbone, source: ImageSource, tmp_path: Path) -> None:
    config = ExtractConfig(arrays=ARRAYS, batch_size=16, num_workers=0)
    extraction = Extraction(backbone=backbone, config=config, cache_root=tmp_path)
    rows = rows_of(source, tmp_path)
    begin([extraction], rows)
    (files,) = ModelStores(tmp_path, model_of(backbone, "float16")).stores
    lock = StoreLock(files.path)
    lock.acquire()
    try:
        with raises("cache.store_locked", StoreLockedError, store=files.path):
            run(backbone, source, tmp_path)
    finally:
        lock.release()


def test_wrong_settings_are_refused_by_name() -> None:
    with raises("extraction.no_arrays", RequestError):
        ExtractConfig(arrays=())
    with raises("extraction.number_too_small", RequestError, option="--batch-size", least=1, value=0):
        ExtractConfig(arrays=ARRAYS, batch_size=0)
    with raises("extraction.number_too_small", RequestError, option="--workers", least=0, value=-1):
        ExtractConfig(arrays=ARRAYS, num_workers=-1)
    with raises("extraction.unknown_bad_image_rule", RequestError, value="ignore"):
        ExtractConfig(arrays=ARRAYS, on_bad_image="ignore")
    with raises("extraction.worker_overwrites", RequestError, worker="0/2"):
        ExtractConfig(arrays=ARRAYS, worker=Worker(0, 2), overwrite=True)


def test_a_level_the_model_lacks_is_refused_before_anything_is_written(
    backbone: Backbone, source: ImageSource, tmp_path: Path
) -> None:
    with pytest.raises(LayerbankError, match=r"block\.6"):
        run(backbone, source, tmp_path, arrays=(("block.6", "cls"),))
    assert list(tmp_path.rglob("*.zarr")) == []


def test_a_store_that_does_not_record_its_model_and_data_is_not_repaired(finished: Path) -> None:
    before = tree(finished)
    with raises("extraction.unknown_origin", RequestError, store=finished):
        repair_and_fill(finished)
    assert tree(finished) == before


ORIGIN = {"model": {"model": TINY_MODEL}, "data": "demo:digits", "split": "train"}


@pytest.mark.parametrize(
    ("origin", "key"),
    [
        ("all levels", "extraction.unknown_origin"),
        (ORIGIN | {"model": TINY_MODEL}, "extraction.unknown_origin"),
        (ORIGIN | {"data": {}}, "extraction.unknown_origin"),
        (ORIGIN | {"split": ["train"]}, "extraction.unknown_origin"),
        (ORIGIN | {"views": 3}, "extraction.unknown_origin"),
        (ORIGIN | {"views": {"num_views": "3"}}, "extraction.unknown_origin"),
        (ORIGIN | {"views": {}}, "extraction.unknown_origin"),
        (ORIGIN | {"model": {}}, "models.invalid_request"),
        (ORIGIN | {"model": {"model": 5}}, "models.invalid_request"),
        (ORIGIN | {"model": {"model": TINY_MODEL, "image_size": "32"}}, "models.invalid_request"),
    ],
)
def test_a_store_with_a_record_of_other_types_is_not_repaired(tmp_path: Path, origin: Any, key: str) -> None:
    write_store(tmp_path / "a.zarr", attributes={"request": origin})
    before = tree(tmp_path / "a.zarr")
    with raises(key, RequestError):
        repair_and_fill(tmp_path / "a.zarr")
    assert tree(tmp_path / "a.zarr") == before


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_an_image_that_could_not_be_read_for_a_moment_is_never_left_out(
    backbone: Backbone, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_bad_image: str
) -> None:
    source, reads = open_source(f"folder:{photos}", "train"), iter(range(10**6))
    real = image_set.read_whole

    def read_whole(path: str) -> Any:
        if next(reads) == 7:
            raise OSError(5, "Input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(image_set, "read_whole", read_whole)
        with raises("extraction.unsteady_image", WorkError):
            run(backbone, source, tmp_path, on_bad_image=on_bad_image)
    store, _ = run(backbone, source, tmp_path, on_bad_image=on_bad_image)
    assert TokenStore.open(store).num_rows == len(source)


def test_one_model_under_two_names_is_refused_before_anything_is_deleted(
    backbone: Backbone, source: ImageSource, finished: Path
) -> None:
    before, config = tree(finished), ExtractConfig(arrays=ARRAYS, batch_size=16, num_workers=0, overwrite=True)
    extraction = Extraction(backbone=backbone, config=config, cache_root=finished.parents[1])
    with raises("extraction.two_models_one_store", RequestError):
        begin([extraction, extraction], rows_of(source, finished.parents[1]))
    assert tree(finished) == before


def test_a_damaged_journal_byte_costs_no_array_and_what_is_computed_again_is_said(photos: Path, tmp_path: Path) -> None:
    backbone = ModelRequest(model=TINY_MODEL, weights="random", image_size=32).open("cpu")
    source = open_source(f"folder:{photos}", "train")
    both = ExtractConfig(arrays=(("final", "cls"), ("final", "ap")), batch_size=16, num_workers=0)
    store = only_store(extract(backbone, source, both, tmp_path))
    before = tree(store)
    journal = store / JOURNAL_FOLDER / WORKER_FILE
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    events: list[Event] = []
    extract(backbone, source, replace(both, arrays=(("final", "cls"),)), tmp_path, on_event=events.append)
    (said,) = [event for event in events if isinstance(event, StoreRepaired)]
    assert said == StoreRepaired(store=store, arrays=("tokens/final/ap", "tokens/final/cls"), num_blocks=1)
    assert tree(store) == before
