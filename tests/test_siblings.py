"""A probe trains and tests on tokens of one model in one precision, also if splits are extracted on different days."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from messages import raises
from photos import TINY_MODEL, write_photos
from planted import Large, Massive, Planted, look
from token_stores import make_spec

from layerbank import RequestError
from layerbank.data.sources import ImageSource, open_source
from layerbank.data.views import ViewedSource, ViewRule
from layerbank.events import ParityMeasured, PrecisionFellBack
from layerbank.extraction.extract import ExtractConfig, extract, model_differences, spec_of
from layerbank.extraction.overflow import stores_of_other_splits
from layerbank.models.request import ModelRequest
from layerbank.probing.probe import Store, check_one_model


@pytest.fixture(scope="module")
def splits(photos: Path) -> tuple[ImageSource, ImageSource]:
    train, test = (open_source(f"folder:{photos}", split) for split in ("train", "test"))
    return train, test


def make_store(request: ModelRequest, source: ImageSource, root: Path) -> Path:
    backbone = request.open("cpu")
    store = spec_of(backbone, source, "float16").store_path(root)
    extract(backbone, source, ExtractConfig(arrays=(("final", "cls"),), batch_size=64, num_workers=0), store)
    return store


def float16(kind: type[Planted]) -> Planted:
    return kind(model=TINY_MODEL, tap="block", precision="float16")


def test_a_float16_split_is_refused_where_the_others_are_in_bfloat16(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    """Its own images overflow nowhere, those of the training split did."""
    train, test = splits
    request = float16(Large)
    store = make_store(replace(request, precision="bfloat16"), train, tmp_path)
    with raises("extraction.other_splits_in_bfloat16", RequestError, splits="test", store=store) as refused:
        look(test, tmp_path, request)
    assert "--precision bfloat16" in refused.error.todo
    assert not (tmp_path / "photos0" / "test").exists()
    settled, events = look(test, tmp_path, replace(request, precision="bfloat16"))
    assert settled.backbone.precision == "bfloat16"
    assert [type(event) for event in events] == [ParityMeasured]


def test_splits_that_are_asked_for_together_decide_for_themselves(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    request = float16(Large)
    make_store(replace(request, precision="bfloat16"), splits[0], tmp_path)
    settled, _ = look(splits[0], tmp_path, request, sources=list(splits))
    assert settled.backbone.precision == "float16"


def test_a_split_that_overflows_beside_a_float16_store_of_another_is_refused(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    train, test = splits
    request = float16(Massive)
    store = make_store(request, train, tmp_path)
    with raises(
        "extraction.overflow_beside_float16", RequestError, split="test", store=store, level="block.2"
    ) as refused:
        look(test, tmp_path, request)
    assert "--precision bfloat16" in refused.error.todo
    assert int(refused.error.values["num_nonfinite"]) > 0
    assert not (tmp_path / "photos0" / "test").exists()
    together, events = look(test, tmp_path, request, sources=[train, test])
    assert together.backbone.precision == "bfloat16"
    assert isinstance(events[0], PrecisionFellBack)


def test_where_other_splits_have_both_precisions_float16_goes_on(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    request = float16(Large)
    for precision in ("float16", "bfloat16"):
        make_store(replace(request, precision=precision), splits[0], tmp_path)
    settled, _ = look(splits[1], tmp_path, request)
    assert settled.backbone.precision == "float16"


def test_stores_of_another_model_tap_or_storage_do_not_count(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    spec = make_spec(split="test", compute_dtype="float16")
    request = float16(Large)
    backbone = request.open("cpu")
    make_store(replace(request, precision="bfloat16"), splits[0], tmp_path)
    of_test = spec_of(backbone, splits[1], "float16")
    open_split = {"train": splits[0], "test": splits[1]}.__getitem__
    assert list(stores_of_other_splits(of_test, ["test"], tmp_path, open_split)) == ["bfloat16"]
    for changes in ({"weights": "0" * 16}, {"tap": "norm2"}, {"storage_dtype": "float32"}):
        assert stores_of_other_splits(replace(of_test, **changes), ["test"], tmp_path, open_split) == {}  # type: ignore[arg-type]
    assert stores_of_other_splits(spec, ["test"], tmp_path, open_split) == {}


@pytest.mark.parametrize("planted", [Large, Massive])
def test_another_data_set_of_the_same_name_does_not_count(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path, planted: type[Planted]
) -> None:
    """Its bfloat16 would refuse a float16 split, its float16 a split that overflows."""
    photos = write_photos(tmp_path / "photos0", {"train": 3, "test": 4})
    source = open_source(f"folder:{photos}", "train")
    assert source.name == splits[1].name
    request = float16(planted)
    theirs = make_store(replace(request, precision="bfloat16" if planted is Large else "float16"), splits[1], tmp_path)
    settled, _ = look(source, tmp_path, request)
    assert theirs.parent.parent == spec_of(settled.backbone, source, "float16").store_path(tmp_path).parent.parent
    assert settled.backbone.precision == ("float16" if planted is Large else "bfloat16")


def test_data_that_lack_the_split_of_a_store_are_others(
    splits: tuple[ImageSource, ImageSource], tmp_path: Path
) -> None:
    source = open_source(f"folder:{write_photos(tmp_path / 'photos0', {'train': 3})}", "train")
    make_store(replace(float16(Large), precision="bfloat16"), splits[1], tmp_path)
    assert look(source, tmp_path, float16(Large))[0].backbone.precision == "float16"


def test_views_of_the_training_images_make_no_other_model(splits: tuple[ImageSource, ImageSource]) -> None:
    backbone = float16(Large).open("cpu")
    viewed = ViewedSource(splits[0], ViewRule(num_views=2))
    assert model_differences(*(spec_of(backbone, one, "float16") for one in (viewed, splits[1]))) == []


def test_a_probe_refuses_stores_of_two_precisions(tmp_path: Path) -> None:
    train, test = (
        Store(tmp_path / f"{split}.zarr", make_spec(split=split, compute_dtype=dtype))
        for split, dtype in (("train", "bfloat16"), ("test", "float16"))
    )
    models = {"train_model": "compute_dtype = bfloat16", "test_model": "compute_dtype = float16"}
    with raises("probing.different_models", RequestError, train=train.path, test=test.path, **models):
        check_one_model(train, test)
    check_one_model(train, test._replace(spec=make_spec(split="test", compute_dtype="bfloat16", num_rows=7)))
