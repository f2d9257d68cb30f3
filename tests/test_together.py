"""Several models, one decode: each store is what it would be alone, and each image is decoded once."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import run
from extractions import extract, only_store, rows_of
from hypothesis import given
from hypothesis import strategies as st
from messages import raises
from photos import TINY_MODEL
from stores import tree

from layerbank import RequestError
from layerbank.cache import StoreFiles
from layerbank.data.sources import ImageSource, open_source
from layerbank.events import Event, ExtractionFinished, ExtractionProgress, ExtractionStarted, RowsFound
from layerbank.extraction.extract import ExtractConfig, Extraction, extract_together
from layerbank.extraction.loop import cut_pieces
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.request import pair_models_with_weights

CONFIG: dict[str, Any] = {"arrays": (("final", "ap"), ("block.3", "cls")), "batch_size": 16, "num_workers": 0}


@pytest.fixture(scope="module")
def backbones() -> list[Backbone]:
    """Two of one size, which see the same crops, and one of another."""
    return [
        open_backbone(TINY_MODEL, weights="random", seed=seed, image_size=size)
        for seed, size in enumerate((32, 32, 48))
    ]


class Counted(ImageSource):
    """A source that counts how often each row is decoded."""

    def __init__(self, source: ImageSource) -> None:
        self.__dict__.update(source.__dict__)
        self._source, self.loads = source, Counter[int]()

    def load(self, row: int) -> Any:
        self.loads[row] += 1
        return self._source.load(row)

    def read(self, row: int) -> Any:
        return self._source.read(row)

    def file_of(self, row: int) -> str:
        return self._source.file_of(row)


@pytest.fixture
def source(photos: Path) -> Counted:
    return Counted(open_source(f"folder:{photos}", "train"))


def together(
    backbones: list[Backbone], source: ImageSource, root: Path, *, batch_sizes: tuple[int, ...] = (16, 16, 16)
) -> tuple[list[Path], list[Event]]:
    events: list[Event] = []
    extractions = [
        Extraction(backbone=backbone, config=ExtractConfig(**CONFIG | {"batch_size": size}), cache_root=root)
        for backbone, size in zip(backbones, batch_sizes, strict=True)
    ]
    extract_together(extractions, rows_of(source, root), on_event=events.append)
    return [path for one in extractions for path in one.model.folder(root).glob("*.zarr")], events


def alone(backbone: Backbone, source: ImageSource, root: Path, **config: Any) -> Path:
    return only_store(extract(backbone, source, ExtractConfig(**CONFIG | config), root))


@pytest.mark.parametrize("batch_sizes", [(16, 16, 16), (16, 24, 7)])
def test_stores_are_those_of_each_model_alone_and_every_image_is_decoded_once(
    backbones: list[Backbone], source: Counted, tmp_path: Path, batch_sizes: tuple[int, ...]
) -> None:
    stores, events = together(backbones, source, tmp_path / "together", batch_sizes=batch_sizes)
    assert source.loads == Counter(range(len(source)))
    for backbone, store, size in zip(backbones, stores, batch_sizes, strict=True):
        assert tree(store) == tree(alone(backbone, source, tmp_path / "alone", batch_size=size))
    assert len([event for event in events if isinstance(event, ExtractionStarted)]) == 3
    assert [event.store for event in events if isinstance(event, ExtractionFinished)] == stores
    progress = [event for event in events if isinstance(event, ExtractionProgress)]
    assert len(progress) == sum(-(-len(source) // size) for size in batch_sizes)
    assert progress[-1].num_done == progress[-1].num_pending == 3 * len(source)


def test_only_what_a_store_lacks_is_computed_for_it(backbones: list[Backbone], source: Counted, tmp_path: Path) -> None:
    alone(backbones[0], source, tmp_path)
    alone(backbones[1], source, tmp_path, arrays=(("final", "ap"),))
    source.loads.clear()
    _, events = together(backbones, source, tmp_path)
    assert source.loads == Counter(range(len(source)))
    found = [event for event in events if isinstance(event, RowsFound)]
    assert [event.num_missing for event in found] == [0, len(source), len(source)]
    started = [event for event in events if isinstance(event, ExtractionStarted)]
    assert [event.num_arrays for event in started] == [1, 2]


def test_nothing_is_decoded_where_nothing_is_missing(
    backbones: list[Backbone], source: Counted, tmp_path: Path
) -> None:
    together(backbones, source, tmp_path)
    source.loads.clear()
    _, events = together(backbones, source, tmp_path)
    assert [event.num_missing for event in events if isinstance(event, RowsFound)] == [0, 0, 0]
    assert len(events) == 3
    assert not source.loads


def test_a_model_that_is_named_twice_is_refused(backbones: list[Backbone], source: Counted, tmp_path: Path) -> None:
    with raises("extraction.two_models_one_store", RequestError, model=TINY_MODEL, other=TINY_MODEL):
        together([backbones[0]] * 2, source, tmp_path, batch_sizes=(16, 16))
    assert list(tmp_path.rglob("*.zarr")) == []


# --- the command ---

SMALL = ("--image-size", "32", "--workers", "0", "--levels", "final", "--split", "train")
OTHER_MODEL = "timm/deit_tiny_patch16_224"


def test_the_command_takes_several_models(photos: Path, tmp_path: Path) -> None:
    models = ("--model", TINY_MODEL, "--weights", "random", "--model", OTHER_MODEL, "--weights", "random")
    result = run("extract", *models, *SMALL, "--data", f"folder:{photos}", "--cache", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    stores = [store_in(folder) for folder in json.loads(result.stdout)["folders"]]
    assert [StoreFiles.read(store).header.spec.model.name for store in stores] == [TINY_MODEL, OTHER_MODEL]
    single = ("--model", OTHER_MODEL, "--weights", "random", "--no-compile")
    result = run("extract", *single, *SMALL, "--data", f"folder:{photos}", "--cache", tmp_path / "one", "--json")
    assert tree(store_in(json.loads(result.stdout)["folders"][0])) == tree(stores[1])


def store_in(folder: str) -> Path:
    """The one store of a model."""
    (store,) = Path(folder).glob("*.zarr")
    return store


@pytest.mark.parametrize(
    ("models", "weights", "key", "values"),
    [
        (["a", "b"], ["random"], "models.weights_count", {"models": 2, "weights": 1}),
        (["a"], ["random", "x.pt"], "models.weights_count", {"models": 1, "weights": 2}),
        (["a", "a"], [], "models.repeated_model", {"model": "a"}),
        (["a", "a"], ["random", "random"], "models.repeated_model", {"model": "a"}),
    ],
)
def test_models_and_weights_that_do_not_pair_are_refused(
    models: list[str], weights: list[str], key: str, values: dict[str, Any]
) -> None:
    with raises(key, RequestError, **values):
        pair_models_with_weights(models, weights)


def test_one_model_with_two_weights_is_two_models() -> None:
    assert pair_models_with_weights(["a", "a"], ["pretrained", "x.pt"]) == [("a", None), ("a", "x.pt")]


# --- pieces ---


@given(st.lists(st.lists(st.integers(1, 6), max_size=6), min_size=1, max_size=4), st.data())
def test_pieces_hold_each_range_of_each_list_whole_and_cover_no_row_twice(
    lengths: list[list[int]], data: st.DataObject
) -> None:
    batches = []
    for sizes in lengths:
        start = 0
        ranges = []
        for size in sizes:
            start += data.draw(st.integers(0, 3))
            ranges.append((start, start + size))
            start += size
        batches.append(ranges)
    pieces = cut_pieces(batches)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(pieces))
    for number, ranges in enumerate(batches):
        rows = [row for start, stop, numbers in pieces if number in numbers for row in range(start, stop)]
        assert rows == [row for start, stop in ranges for row in range(start, stop)]
        borders = {piece[0] for piece in pieces} | {piece[1] for piece in pieces}
        assert {border for pair in ranges for border in pair} <= borders
    assert all(numbers for _, _, numbers in pieces)
