"""The bytes of a store depend on images, model and batch size alone; and nothing is computed or decoded twice."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractions import extract, only_store
from photos import TINY_MODEL
from PIL import Image
from stores import tree

from layerbank.data.sources import BadImage, ImageSource
from layerbank.extraction.decoding import start_worker_server
from layerbank.extraction.extract import ExtractConfig
from layerbank.models.backbone import Backbone, open_backbone

NUM_ROWS, BATCH_SIZE = 600, 32  # more than one block, and batches that are not full
TORN_ROW = 400


class Noise(ImageSource):
    """Images of noise; leaves a file for every one it decodes, and fails at some row if asked to."""

    keeps_order = True  # so that a row is torn where a test says

    def __init__(self, folder: Path, torn_row: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.torn_row = folder, torn_row
        rows = [str(row) for row in range(NUM_ROWS)]
        zeros = np.zeros(NUM_ROWS, dtype=np.int64)
        super().__init__(name="noise", split="train", ids=rows, labels=zeros, class_names=["a"], sizes=zeros)

    def read(self, row: int) -> np.ndarray[Any, Any]:
        return np.random.default_rng(row).integers(0, 256, (20, 24, 3), dtype=np.uint8)

    def load(self, row: int) -> tuple[Image.Image, int]:
        if row == self.torn_row:
            raise BadImage(id=str(row), file="memory", reason="torn")
        (self.folder / f"{row}-{time.monotonic_ns()}").touch()
        return super().load(row)

    def file_of(self, row: int) -> str:
        return "memory"

    def loads(self) -> Counter[int]:
        return Counter(int(path.name.split("-")[0]) for path in self.folder.iterdir())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    start_worker_server()
    return open_backbone(TINY_MODEL, weights="random", image_size=16)


def run(backbone: Backbone, source: ImageSource, root: Path, *, num_workers: int) -> Path:
    arrays = (("block.5", "cls"), ("final", "ap"))
    config = ExtractConfig(arrays=arrays, batch_size=BATCH_SIZE, num_workers=num_workers)
    return only_store(extract(backbone, source, config, root))


@pytest.fixture(scope="module")
def whole(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    return tree(run(backbone, Noise(folder / "reads"), folder / "caches", num_workers=0))


@pytest.mark.parametrize("num_workers", [1, 4])
def test_any_number_of_decoding_processes_gives_the_same_bytes(
    backbone: Backbone, whole: dict[str, str], tmp_path: Path, num_workers: int
) -> None:
    source = Noise(tmp_path / "reads")
    assert tree(run(backbone, source, tmp_path / "caches", num_workers=num_workers)) == whole
    assert source.loads() == Counter(range(NUM_ROWS))


@pytest.mark.parametrize("num_workers", [(0, 0), (1, 4)])
def test_a_resumed_run_gives_the_same_bytes_and_repeats_no_finished_block(
    backbone: Backbone, whole: dict[str, str], tmp_path: Path, num_workers: tuple[int, int]
) -> None:
    with pytest.raises(BadImage):
        run(backbone, Noise(tmp_path / "first", TORN_ROW), tmp_path / "caches", num_workers=num_workers[0])
    source = Noise(tmp_path / "second")
    assert tree(run(backbone, source, tmp_path / "caches", num_workers=num_workers[1])) == whole
    again = source.loads()
    assert set(again.values()) == {1}
    assert 0 < NUM_ROWS - len(again) <= TORN_ROW


def test_there_are_as_many_forward_passes_as_batches_and_as_many_decodes_as_images(
    whole: dict[str, str], tmp_path: Path
) -> None:
    backbone = open_backbone(TINY_MODEL, weights="random", image_size=16)
    passes: list[int] = []
    backbone.tower.blocks[0].register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    source = Noise(tmp_path / "reads")
    assert tree(run(backbone, source, tmp_path / "caches", num_workers=0)) == whole
    assert len(passes) == sum(-(-rows // BATCH_SIZE) for rows in block_sizes())
    assert sum(passes) == NUM_ROWS
    assert source.loads() == Counter(range(NUM_ROWS))


def block_sizes() -> list[int]:
    from layerbank.cache.geometry import rows_per_block

    rows = rows_per_block(NUM_ROWS)
    return [min(rows, NUM_ROWS - start) for start in range(0, NUM_ROWS, rows)]


def test_the_callers_random_numbers_are_left_alone(backbone: Backbone, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(backbone, Noise(tmp_path / "reads"), tmp_path / "caches", num_workers=0)
    assert torch.equal(torch.rand(2), expected)
