"""All splits of one command are computed in one precision, so that a probe is trained and tested on tokens of one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from extractions import extract
from photos import TINY_MODEL, write_photos
from planted import Large, Massive, Planted, look

from layerbank.data.sources import ImageSource, open_source
from layerbank.data.views import ViewRule
from layerbank.events import ParityMeasured, PrecisionFellBack
from layerbank.extraction.extract import ExtractConfig, model_of
from layerbank.models.request import ModelRequest

CONFIG = ExtractConfig(arrays=(("final", "cls"),), batch_size=64, num_workers=0)


@pytest.fixture(scope="module")
def splits(photos: Path) -> tuple[ImageSource, ImageSource]:
    train, test = (open_source(f"folder:{photos}", split) for split in ("train", "test"))
    return train, test


def float16(kind: type[Planted]) -> Planted:
    return kind(model=TINY_MODEL, tap="block", precision="float16")


def compute(request: ModelRequest, source: ImageSource, root: Path) -> None:
    extract(request.open("cpu"), source, CONFIG, root)


@pytest.mark.parametrize("first", [0, 1])
def test_if_one_split_overflows_all_of_them_are_computed_in_bfloat16(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path, first: int
) -> None:
    sources = [splits[first], splits[1 - first]]
    settled, events = look(sources[0], tmp_path, float16(Massive), sources=sources)
    assert settled.backbone.precision == settled.request.precision == "bfloat16"
    assert set(settled.parity) == {"train", "test"}
    assert [type(event) for event in events] == [PrecisionFellBack, ParityMeasured, ParityMeasured]


def test_a_split_of_which_the_cache_has_rows_in_float16_goes_on_in_float16(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    """What was counted then as out of range was reported, and one added image does not change the model."""
    request = float16(Massive)
    compute(request, splits[0], tmp_path)
    assert look(splits[0], tmp_path, request)[0].backbone.precision == "float16"
    more = look(splits[0], tmp_path, request, arrays=[("final", "cls"), ("final", "ap")])
    assert more[0].backbone.precision == "float16"


def test_a_new_split_that_overflows_takes_the_others_with_it(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    request = float16(Massive)
    compute(request, splits[0], tmp_path)
    settled, events = look(splits[1], tmp_path, request, sources=list(splits))
    assert settled.backbone.precision == "bfloat16"
    (fell_back,) = [event for event in events if isinstance(event, PrecisionFellBack)]
    assert (fell_back.split, fell_back.level) == ("test", "block.2")
    assert fell_back.num_nonfinite > 0


def test_rows_in_bfloat16_do_not_keep_a_model_from_float16_that_does_not_overflow(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    request = float16(Large)
    compute(replace(request, precision="bfloat16"), splits[0], tmp_path)
    settled, events = look(splits[0], tmp_path, request, sources=list(splits))
    assert settled.backbone.precision == "float16"
    assert [type(event) for event in events] == [ParityMeasured, ParityMeasured]


def test_rows_of_another_data_set_decide_nothing(splits: tuple[ImageSource, ImageSource], tmp_path: Path) -> None:
    request = float16(Massive)
    compute(request, splits[0], tmp_path)
    photos = write_photos(tmp_path / "photos0", {"train": 3}, classes=("one", "two"))
    for number, file in enumerate(sorted(photos.rglob("*.png"))):  # other images than those of the splits
        file.write_bytes(file.read_bytes() + bytes([number]))
    source = open_source(f"folder:{photos}", "train")
    assert look(source, tmp_path, request)[0].backbone.precision == "bfloat16"


def test_views_of_the_training_images_make_no_other_model(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    backbone = float16(Large).open("cpu")
    extract(backbone, splits[0], CONFIG, tmp_path, rule=ViewRule(num_views=1))
    assert len(list(model_of(backbone, "float16").folder(tmp_path).glob("*.zarr"))) == 1
