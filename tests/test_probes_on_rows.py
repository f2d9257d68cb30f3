"""Probes read rows, not stores: the same results wherever the tokens lie and whatever the images are called, as in format 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extractions import extract
from golden_stores import unpack
from small_stores import ALF, LINEAR, PROTOCOL, small_request, write_small_store
from token_stores import make_spec, without_fsync, write_images  # noqa: F401

from layerbank.cache import BatchNotes, CacheWriter, RowSet, find_format1, upgrade_store
from layerbank.data.image_set import ImageSet
from layerbank.data.sources import open_source
from layerbank.events import ExtractionStarted, ProbeFinished
from layerbank.extraction.extract import ExtractConfig
from layerbank.models.request import ModelRequest
from layerbank.probes import TrainingProtocol
from layerbank.probing.predict import SavedProbe, trained_model
from layerbank.probing.probe import probe, verify_tokens
from layerbank.probing.probe_spec import ProbeSpec
from layerbank.probing.rows.row_files import row_folder
from layerbank.probing.tokens.split_tokens import SplitRequest, SplitTokens

RIDGE = ProbeSpec(name="ridge", head="ridge", levels=("final",), kinds=("cls",))
PROBES = [LINEAR, ALF, RIDGE]


def copy_rows(tokens: SplitTokens, images: Sequence[int], root: Path, *, name: str, complete: bool = True) -> None:
    """Write a store of some images, in this order, with their tokens; images that are skipped there are skipped here."""
    chosen = np.asarray(images)
    position = np.full(len(tokens.record), -1)
    position[tokens.images] = tokens.positions
    rows = RowSet(hashes=tokens.record.images.hashes[chosen])
    spec = make_spec(rows=rows, name=name)
    arrays, ids = list(tokens.arrays.values()), [tokens.record.ids[image] for image in images]
    with CacheWriter.open(
        spec.path(root), spec.model, rows, arrays, name=name, sample_ids=ids, batch_size=60
    ) as writer:
        for batch in writer.pending():
            here = position[chosen[batch.start : batch.stop]]
            values = {one.name: tokens.tokens(one.level, one.kind).take(np.maximum(here, 0)) for one in batch.arrays}
            notes = BatchNotes(skipped={batch.start + int(row): "cut off" for row in np.flatnonzero(here < 0)})
            writer.append(batch, values, content_hashes=rows.hashes[batch.start : batch.stop], notes=notes)
        if complete:
            writer.complete()


@pytest.fixture(scope="module")
def one_store(tmp_path_factory: pytest.TempPathFactory) -> SplitTokens:
    return write_small_store(tmp_path_factory.mktemp("caches"))


def splits(root: Path) -> tuple[SplitRequest, SplitRequest]:
    return small_request(root), small_request(root, split="test")


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of the rows but times and places; digests of their files are in it."""
    return [{name: row[name] for name in row if name not in ("seconds", "digest", "stores")} for row in rows]


@pytest.fixture(scope="module")
def wanted(one_store: SplitTokens, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    rows = probe(*splits(one_store.request.cache_root), PROBES, PROTOCOL, tmp_path_factory.mktemp("runs"))
    assert [len(row["stores"]["train"]) for row in rows] == [1] * 3
    return rows


def five(tokens: SplitTokens, root: Path) -> int:
    order = np.random.default_rng(0).permutation(len(tokens.record))
    for number in range(5):
        copy_rows(tokens, order[number::5].tolist(), root, name=f"part {number}")
    return 5


def overlapping(tokens: SplitTokens, root: Path) -> int:
    every = range(len(tokens.record))
    for number, images in enumerate((every[:400], every[599:300:-1], every[::7])):
        copy_rows(tokens, images, root, name=f"part {number}")
    return 2  # what the third has, the first two have


def unfinished(tokens: SplitTokens, root: Path) -> int:
    copy_rows(tokens, range(len(tokens.record) - 1, -1, -1), root, name="backwards", complete=False)
    return 1


def among_others(tokens: SplitTokens, root: Path) -> int:
    copy_rows(tokens, range(len(tokens.record)), root, name="small")
    write_images(root, range(10_000, 10_300), [*tokens.arrays.values()], name="a, before all others")
    write_images(root, 300, [*tokens.arrays.values()], weights="ffffffffffffffff")  # the same images by another model
    write_images(root, 300, [next(iter(tokens.arrays.values()))], name="one array")  # the same model without the others
    (root / "small-01234567").mkdir()
    (root / "small-01234567" / "empty.zarr").mkdir()
    (root / "notes.txt").write_text("mine")
    return 1


@pytest.mark.parametrize("layout", [five, overlapping, unfinished, among_others])
def test_results_are_the_same_to_the_last_bit_wherever_the_rows_lie(
    one_store: SplitTokens, wanted: list[dict[str, Any]], tmp_path: Path, layout: Any
) -> None:
    num_stores = layout(one_store, tmp_path / "caches")
    train, test = splits(tmp_path / "caches")
    verify_tokens([train, test])
    rows = probe(train, test, PROBES, PROTOCOL, tmp_path / "runs")
    assert {len(row["stores"]["train"]) for row in rows} == {num_stores}
    assert comparable(rows) == comparable(wanted)


def test_the_same_images_under_other_names_are_the_same_result(one_store: SplitTokens, tmp_path: Path) -> None:
    """The data set renamed, and all of its files: nothing is trained; its row and its predictions keep the names they had."""
    train, test = splits(one_store.request.cache_root)
    (first,) = probe(train, test, [RIDGE], PROTOCOL, tmp_path)
    record = replace(train.record, dataset="renamed", ids=[f"new {row}" for row in range(len(train.record))])
    events: list[Any] = []
    again = probe(replace(train, record=record), test, [RIDGE], PROTOCOL, tmp_path, on_event=events.append)
    assert again == [first]
    assert [event.reused for event in events if isinstance(event, ProbeFinished)] == [True]


def test_other_labels_other_class_names_and_another_order_are_other_results_on_the_same_tokens(
    one_store: SplitTokens, tmp_path: Path
) -> None:
    train, test = splits(one_store.request.cache_root)
    record, order = train.record, np.arange(len(train.record))[::-1].copy()
    relabelled = replace(record, labels=(record.labels + 1) % 3)
    renamed = replace(record, class_names=["a", "b", "c"])
    images = replace(record.images, hashes=record.images.hashes[order])
    reordered = replace(record, ids=[record.ids[row] for row in order], labels=record.labels[order], images=images)
    keys = set()
    for one in (record, relabelled, renamed, reordered):
        split = replace(train, record=one)
        (row,) = probe(split, test, [RIDGE], PROTOCOL, tmp_path)
        keys.add(row["key"])
        assert split.open().stores == train.open().stores
    assert len(keys) == 4
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


def test_equal_images_share_a_place_and_each_has_its_label(one_store: SplitTokens) -> None:
    request = one_store.request
    chosen = np.array([5, 300, 5, 99, 5, 17])  # 99 was not readable
    record = replace(
        request.record,
        ids=[*"abcdef"],
        labels=np.array([0, 1, 2, 0, 1, 2]),
        images=ImageSet(
            hashes=request.record.images.hashes[chosen],
            rule1_hashes=None,
            is_known=np.ones(6, dtype=np.bool_),
            keeps_order=False,
        ),
    )
    tokens = replace(request, record=record).open()
    assert tokens.sample_ids == [*"abcef"]
    assert tokens.targets.tolist() == [0, 1, 2, 1, 2]
    assert tokens.positions[0] == tokens.positions[2] == tokens.positions[3]
    assert len(set(tokens.positions.tolist())) == 3
    assert sorted(tokens.reading_order.tolist()) == [0, 1, 2, 3, 4]
    read = record.images.hashes[tokens.images[tokens.reading_order]]
    assert (np.diff(read.astype(object)) >= 0).all()  # by hash, whatever the order of the data


def test_an_image_that_is_skipped_in_one_view_is_left_out_with_all_its_views(tmp_path: Path) -> None:
    """Row 99 is the centre view of image 33, row 199 a view of image 66, row 299 one of image 99, and so on."""
    tokens = write_small_store(tmp_path, num_views=2)
    left_out = {33, 66, 99, 133, 166, 199}
    assert set(range(200)) - set(tokens.images.tolist()) == left_out
    assert (np.bincount(tokens.images)[[image for image in range(200) if image not in left_out]] == 3).all()
    centre = tokens.request.with_views(0).open()
    assert set(range(200)) - set(centre.images.tolist()) == {33, 133}


def test_records_that_are_gone_or_damaged_are_restored_where_a_row_is_reused(
    one_store: SplitTokens, tmp_path: Path
) -> None:
    train, test = splits(one_store.request.cache_root)
    (row,) = probe(train, test, [RIDGE], PROTOCOL, tmp_path)
    files = {name: tmp_path / row["images"][name] for name in ("train", "test")}
    content = {name: file.read_bytes() for name, file in files.items()}
    files["train"].unlink()
    files["test"].write_bytes(content["test"][:-10])
    assert probe(train, test, [RIDGE], PROTOCOL, tmp_path) == [row]
    assert {name: file.read_bytes() for name, file in files.items()} == content


# --- format 1 ---


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, stores and runs that layerbank 0.2.0 left."""
    return unpack(tmp_path_factory.mktemp("golden"))


def saved_runs(golden: Path) -> list[tuple[dict[str, Any], Path]]:
    """The rows of format 1, and the folder of each."""
    (file,) = (golden / "runs").rglob("results.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row, file.parent / f"{row['probe']}-{row['key'][:8]}") for row in rows]


def golden_splits(golden: Path, caches: Path) -> list[SplitRequest]:
    """Only an image that could not be read is computed again: format 1 recorded no hash of it."""
    saved = json.loads((saved_runs(golden)[0][1] / "probe.json").read_text())["config"]
    backbone = ModelRequest.from_dict(saved["model"]).open("cpu")
    config = ExtractConfig(arrays=(("final", "cls"),), batch_size=8, num_workers=0, on_bad_image="skip")
    events: list[Any] = []
    requests = [
        extract(backbone, open_source(f"folder:{golden / 'photos'}", split), config, caches, on_event=events.append)
        for split in ("train", "test")
    ]
    assert [event.num_rows for event in events if isinstance(event, ExtractionStarted)] == [1]
    assert requests[0].model.digest == trained_model(saved).digest
    return requests


@pytest.mark.parametrize("upgraded", [False, True])
def test_results_on_stores_of_format_1_are_those_of_the_version_that_wrote_them(
    golden: Path, tmp_path: Path, upgraded: bool
) -> None:
    """Read as they are, or upgraded; predictions are compared image by image."""
    shutil.copytree(golden / "caches", tmp_path / "caches")
    if upgraded:
        for path in find_format1(tmp_path / "caches"):
            upgrade_store(path, tmp_path / "caches")
    train, test = golden_splits(golden, tmp_path / "caches")
    for old, folder in saved_runs(golden):
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in old["protocol"].items()}
        named = ProbeSpec.from_dict(json.loads((folder / "probe.json").read_text())["config"]["probe"])
        (row,) = probe(train, test, [named], TrainingProtocol(**values), tmp_path / "runs")
        for same in ("probe", "chosen", "validation", "test", "settings", "num_parameters", "selection", "refit"):
            assert row[same] == old[same], same
        with np.load(folder / "test.npz") as ours, np.load(row_folder(tmp_path / "runs", row) / "test.npz") as theirs:
            by_id = dict(zip(theirs["sample_ids"].tolist(), theirs["logits"], strict=True))
            logits = np.stack([by_id[id] for id in ours["sample_ids"].tolist()])
            assert len(by_id) == len(logits) == 11  # one of twelve could not be read
            np.testing.assert_allclose(logits, ours["logits"], rtol=1e-4, atol=1e-4)


def test_a_probe_of_format_1_predicts_what_it_was_tested_with(golden: Path) -> None:
    source = open_source(f"folder:{golden / 'photos'}", "test")
    for _, folder in saved_runs(golden)[:2]:
        saved = SavedProbe(folder)
        predictions = list(saved.predict(source, num_workers=0, on_bad_image="skip"))
        with np.load(folder / "test.npz") as tested:
            assert [one.sample_id for one in predictions] == tested["sample_ids"].tolist()
            answers = [saved.class_names[label] for label in tested["logits"].argmax(1)]
        assert [one.label for one in predictions] == answers
