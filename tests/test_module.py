"""One module of a backbone and a probe gives the outputs that the probe was tested with, whatever its head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from messages import raises
from photos import TINY_DEPTH, TINY_MODEL
from probe_runs import BATCH, PROTOCOL, stores_of

import layerbank
from layerbank import RequestError
from layerbank.data.sources import open_source
from layerbank.models.request import ModelRequest
from layerbank.probes import HEADS
from layerbank.probing.predict import SavedProbe
from layerbank.probing.probe import probe
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.rows.row_files import row_folder

NAMES = {  # name -> blocks that run
    "linear-cls": 6,
    "linear@2": 3,
    "linear-patch@1": 2,
    "alf": 6,
    "attn-mid-ap": 6,
    "alf-grid2": 6,
    "aat@3": 4,
    "alf-top2": 6,
    "attn-mid-smallest": None,
    "linear@best": None,
    "cae@0": 1,
    "aim-h4": 6,
    "ep": 6,
    "vjepa-h4": 6,
    "map-h4": 6,
    "abmilp": 6,
    "simpool": 6,
    "alf-embed": 6,
    "scalar-mix": 6,
    "ridge-all": 6,
    "logreg@4": 5,
    "knn-cls": 6,
}
REQUEST = ModelRequest(model=TINY_MODEL, weights="random", image_size=32)
FEW = replace(PROTOCOL, weight_decays=(1e-4, 1e-2), epochs=1, min_steps=4, penalties=(1e-2,), num_neighbors=(5,))


@pytest.fixture(scope="module")
def folders(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of probes by name."""
    root = tmp_path_factory.mktemp("study")
    stores = stores_of(REQUEST.open("cpu"), photos, root / "caches")
    named = [parse_probe(name, TINY_DEPTH) for name in NAMES]
    rows = probe(*stores, named, FEW, root / "runs", config={"model": REQUEST.to_dict()})
    return {row["probe"]: row_folder(root / "runs", row) for row in rows}


def test_every_head_is_among_the_probes(folders: dict[str, Path]) -> None:
    heads = {parse_probe(name, TINY_DEPTH).head for name in NAMES}
    assert heads >= {name for name, head in HEADS.items() if head.module.__module__.startswith("layerbank.")}


@pytest.mark.parametrize("name", NAMES)
def test_the_module_of_every_head_gives_the_saved_outputs_runs_the_blocks_it_reads_and_can_be_exported(
    folders: dict[str, Path], photos: Path, name: str
) -> None:
    saved, source = SavedProbe(folders[name]), open_source(f"folder:{photos}", "test")
    tested = np.load(folders[name] / "test.npz")["logits"]
    num_run = []
    for block in saved.backbone.tower.blocks:
        block.register_forward_pre_hook(lambda *_: num_run.append(1))
    images = torch.stack([saved.backbone.geometry(source.load(row)[0]) for row in range(len(source))])
    assert (images.dtype, images.shape[1:]) == (torch.uint8, (3, 32, 32))
    outputs = torch.cat([saved.module(part) for part in images.split(BATCH)]).numpy()
    last = saved.named.levels[-1]
    num_read = TINY_DEPTH if last == "final" else int(last.removeprefix("block.")) + 1
    assert len(num_run) == num_read * -(-len(images) // BATCH)
    assert NAMES[name] in (num_read, None)
    np.testing.assert_allclose(outputs, tested, atol=1e-5 * max(1.0, np.abs(tested).max()))
    predicted = np.stack([one.logits for one in saved.scores(source, batch_size=BATCH, num_workers=0)])
    assert np.array_equal(predicted, outputs)
    with torch.no_grad():
        graph = torch.export.export(
            saved.module, (images[:4],), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        ).module()
    for size in (1, 2, 7):
        some = images[:size]
        np.testing.assert_allclose(graph(some).numpy(), saved.module(some).numpy(), atol=1e-4)


def test_images_of_another_size_or_dtype_are_refused(folders: dict[str, Path]) -> None:
    module = SavedProbe(folders["linear-cls"]).module
    for images in (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 32, 32)):
        with raises("probing.other_images", RequestError, expected="torch.uint8 [B, 3, 32, 32]"):
            module(images)


def test_a_classifier_hands_out_the_module_that_it_runs(folders: dict[str, Path]) -> None:
    classifier = layerbank.Classifier(folders["linear-cls"])
    pixels: Any = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = layerbank.images_from(list(pixels), split="test")
    outputs = classifier.module(torch.stack([classifier.preprocess(image) for image in pixels]))
    np.testing.assert_allclose(outputs.softmax(1).numpy(), classifier.predict_proba(images), atol=1e-6)
