"""Augmented views: what one is, that nothing but its sample and number decides it, how rows lie in a store, who trains on them."""

from __future__ import annotations

import json
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from commands import MODEL, run
from extractions import extract, only_store, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises
from photos import TINY_MODEL, write_photos
from PIL import Image
from stores import tree

from layerbank import RequestError
from layerbank.cache import TokenStore, export_hdf5, import_hdf5, verify_store
from layerbank.data.selected_source import SelectedSource
from layerbank.data.sources import BadImage, ImageSource, open_source
from layerbank.data.views import ATTEMPTS, VIEW_SEED, ViewRule, draw_view
from layerbank.events import Event, ExtractionFinished, ImageSkipped, OnEvent, ignore
from layerbank.extraction.decoding import ViewGeometry
from layerbank.extraction.extract import ExtractConfig
from layerbank.extraction.repair import repair_and_fill
from layerbank.extraction.views import resample_of, view_geometry
from layerbank.models.backbone import Backbone
from layerbank.models.request import ModelRequest
from layerbank.probes import QUICK, split_rows
from layerbank.probing.predict import SavedProbe
from layerbank.probing.probe import check_train_views, probe
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.rows.row_files import row_folder
from layerbank.probing.tokens.split_tokens import SplitRequest
from layerbank.probing.tokens.token_source import CachedTokens

RULE = ViewRule(num_views=2, min_scale=0.3)
REQUEST = ModelRequest(model=TINY_MODEL, weights="random", image_size=32)
ARRAYS = (("block.3", "cls"), ("final", "cls"), ("final", "ap"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return REQUEST.open("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("views") / "photos", {"train": 8, "test": 4})


@pytest.fixture(scope="module")
def images(folder: Path) -> ImageSource:
    return open_source(f"folder:{folder}", "train")


def _extract(
    backbone: Backbone,
    source: ImageSource,
    root: Path,
    rule: ViewRule | None = RULE,
    *,
    batch_size: int = 8,
    on_event: OnEvent = ignore,
    **options: Any,
) -> SplitRequest:
    config = ExtractConfig(**{"arrays": ARRAYS, "batch_size": batch_size, "num_workers": 0} | options)
    views = {"views": rule.to_dict()} if rule else {}
    request = {"model": REQUEST.to_dict(), "data": f"folder:{source.root}", "split": "train"} | views
    return extract(backbone, source, config, root, rule=rule, request=request, on_event=on_event)


def rows_in_order(source: ImageSource, rule: ViewRule = RULE) -> SelectedSource:
    """The rows of a source with views, image by image."""
    with tempfile.TemporaryDirectory() as root:
        rows = rows_of(source, Path(root), rule)
    ids = [id for id in source.ids for _ in range(rows.rows_an_image)]
    return SelectedSource(rows, np.arange(len(rows)), ids)


@pytest.fixture(scope="module")
def viewed(backbone: Backbone, images: ImageSource, tmp_path_factory: pytest.TempPathFactory) -> SplitRequest:
    return _extract(backbone, images, tmp_path_factory.mktemp("caches"))


# ---- one view


@settings(deadline=None, max_examples=200)
@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    min_scale=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_view_lies_inside_its_image(size: tuple[int, int], min_scale: float, seed: int) -> None:
    (left, top, right, bottom), _ = draw_view(size, ViewRule(num_views=1, min_scale=min_scale), seed)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]


def test_views_of_a_square_image_have_the_areas_ratios_and_mirrors_of_random_resized_crop() -> None:
    drawn = [draw_view((1000, 1000), ViewRule(num_views=1, min_scale=0.25), seed) for seed in range(4000)]
    boxes = np.array([box for box, _ in drawn], dtype=float)
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = widths * heights / 1e6, widths / heights
    assert areas.min() > 0.249
    assert 0.55 < np.median(areas) < 0.65
    assert ratios.min() > 0.749
    assert ratios.max() < 1.334
    assert abs(np.log(ratios).mean()) < 0.01
    space = boxes[:, 0] + 1000 - boxes[:, 2]
    assert abs((boxes[:, 0] / np.maximum(space, 1)).mean() - 0.5) < 0.02
    assert abs(np.mean([mirrored for _, mirrored in drawn]) - 0.5) < 0.03
    plain = ViewRule(num_views=1, min_scale=0.25, flip=False)
    assert [draw_view((1000, 1000), plain, seed) for seed in range(50)] == [(box, False) for box, _ in drawn[:50]]


def test_where_no_box_fits_the_middle_is_taken_at_the_nearest_ratio() -> None:
    rule = ViewRule(num_views=1, min_scale=0.9, flip=False)  # 90 % of a strip ten times as wide as high: none fits
    assert ATTEMPTS == 10
    assert draw_view((1000, 100), rule, 5)[0] == (433, 0, 566, 100)
    assert draw_view((100, 1000), rule, 5)[0] == (0, 433, 100, 566)


def test_a_view_is_cut_and_resized_as_torchvision_does_it(backbone: Backbone, images: ImageSource) -> None:
    source = rows_in_order(images)
    geometry = view_geometry(backbone, source)
    image, _ = source.load(4)
    (left, top, right, bottom), mirrored = draw_view(image.size, RULE, image.info[VIEW_SEED])
    expected = tvf.resized_crop(
        image, top, left, bottom - top, right - left, [32, 32], interpolation=tvf.InterpolationMode.BICUBIC
    )
    expected = tvf.pil_to_tensor(tvf.hflip(expected) if mirrored else expected)
    assert torch.equal(pickle.loads(pickle.dumps(geometry))(image), expected)
    assert resample_of(backbone) == Image.Resampling.BICUBIC


# ---- rows


def test_rows_go_image_by_image_with_the_centre_view_first(backbone: Backbone, images: ImageSource) -> None:
    source = rows_in_order(images)
    assert len(source) == 3 * len(images)
    assert source.ids == [id for id in images.ids for _ in range(3)]
    geometry = view_geometry(backbone, source)
    for row in (0, 3, 30):
        (image, content_hash), (own, own_hash) = source.load(row), images.load(row // 3)
        assert content_hash == own_hash == source.load(row + 2)[1]
        assert torch.equal(geometry(image), backbone.geometry(own))
        assert len({geometry(source.load(row + view)[0]).numpy().tobytes() for view in range(3)}) == 3


def test_a_view_depends_on_its_sample_and_number_alone(backbone: Backbone, images: ImageSource) -> None:
    few, many = rows_in_order(images), rows_in_order(images, replace(RULE, num_views=5))
    order = np.random.default_rng(0).permutation(len(few)).tolist()
    pixels = {row: view_geometry(backbone, few)(few.load(row)[0]) for row in order}
    for row, view in pixels.items():
        again = many.load(row // 3 * 6 + row % 3)[0]
        assert torch.equal(view_geometry(backbone, many)(again), view)


def test_an_image_is_decoded_once_for_the_views_of_a_batch(images: ImageSource) -> None:
    source = rows_in_order(images)
    read: list[int] = []
    original = images.read
    try:
        images.read = lambda row: read.append(row) or original(row)  # type: ignore[method-assign, func-returns-value]
        for row in range(12):
            source.load(row)
    finally:
        images.read = original  # type: ignore[method-assign]
    assert read == [0, 1, 2, 3]


def test_views_of_a_model_whose_transform_cannot_be_split_are_refused(backbone: Backbone, images: ImageSource) -> None:
    whole = replace(backbone, tower=replace(backbone.tower, transform=lambda image: tvf.to_tensor(image)))
    expected = {"model": TINY_MODEL, "transform": whole.transform_id}
    with raises("extraction.views_need_normalisation", RequestError, **expected):
        view_geometry(whole, rows_in_order(images))


@pytest.mark.parametrize(("views", "scale"), [(0, 0.5), (2, 0.0), (2, 1.5)])
def test_rules_that_make_no_sense_are_refused(views: int, scale: float) -> None:
    with raises("data.bad_views", RequestError, num_views=views, min_scale=f"{scale:g}"):
        ViewRule(num_views=views, min_scale=scale)


def test_a_rule_of_another_version_is_refused_by_the_keys_it_has() -> None:
    assert ViewRule.from_dict(RULE.to_dict()) == RULE
    with raises("data.unknown_view_keys", RequestError, keys="rotate", known="num_views, min_scale, flip"):
        ViewRule.from_dict(RULE.to_dict() | {"rotate": True})


# ---- stores


def test_centre_rows_of_a_store_are_the_rows_of_a_store_without_views(
    viewed: SplitRequest, backbone: Backbone, images: ImageSource, tmp_path: Path
) -> None:
    plain = _extract(backbone, images, tmp_path, None)
    one, other = TokenStore.open(only_store(viewed)), TokenStore.open(only_store(plain))
    assert one.rows.views is not None
    assert (len(one.rows), one.rows.views.tolist()) == (72, [0, 1, 2] * 24)
    assert other.rows.views is None
    assert list(one.sample_ids)[::3] == list(other.sample_ids)
    for level, kind in ARRAYS:
        centre = one.tokens(level, kind).read(0, 72)[::3].astype(np.float32)
        np.testing.assert_allclose(centre, other.tokens(level, kind).read(0, 24).astype(np.float32), atol=4e-3)
    assert one.rows.hashes.tolist() == np.repeat(other.rows.hashes, 3).tolist()


def passes(events: list[Event]) -> int:
    return sum(event.num_computed for event in events if isinstance(event, ExtractionFinished))


def test_views_are_found_by_image_number_and_rule_and_only_what_is_missing_is_computed(
    backbone: Backbone, images: ImageSource, tmp_path: Path
) -> None:
    events: list[Event] = []
    _extract(backbone, images, tmp_path, None)
    more = _extract(backbone, images, tmp_path, on_event=events.append)  # two views of the same images
    assert passes(events) == 2 * len(images)
    assert len(more.open().positions) == 3 * len(images)
    for rule, num_computed in (
        (replace(RULE, num_views=1), 0),
        (replace(RULE, num_views=3), 1),
        (replace(RULE, min_scale=0.5), 2),
        (replace(RULE, flip=False), 2),
    ):
        events.clear()
        _extract(backbone, images, tmp_path, rule, on_event=events.append)
        assert passes(events) == num_computed * len(images), rule


def test_a_store_has_the_same_bytes_for_any_number_of_workers_and_after_an_interruption(
    viewed: SplitRequest, backbone: Backbone, images: ImageSource, tmp_path: Path
) -> None:
    workers = _extract(backbone, images, tmp_path / "workers", num_workers=2)
    assert tree(only_store(workers)) == tree(only_store(viewed))
    later = _extract(backbone, images, tmp_path / "later", arrays=ARRAYS[:1])
    _extract(backbone, images, tmp_path / "later")
    assert tree(only_store(later)) == tree(only_store(viewed))


def test_verify_repair_and_hdf5_hold_for_views(
    backbone: Backbone, images: ImageSource, viewed: SplitRequest, tmp_path: Path
) -> None:
    original = only_store(viewed)
    assert verify_store(original) == []
    export_hdf5(original, tmp_path / "views.h5")
    import_hdf5(tmp_path / "views.h5", tmp_path / "back.zarr")
    assert verify_store(tmp_path / "back.zarr") == []
    store = only_store(_extract(backbone, images, tmp_path / "caches"))
    chunk = next(store.glob("tokens/final/ap/c*"))
    chunk.write_bytes(bytes(chunk.stat().st_size))
    assert verify_store(store) != []
    repair_and_fill(store, num_workers=0)
    assert tree(store) == tree(original)


def test_a_split_offers_the_views_it_is_asked_for(viewed: SplitRequest) -> None:
    for num_views, rows_an_image in ((0, 1), (1, 2), (2, 3)):
        split = viewed.with_views(num_views).open()
        assert len(split.positions) == 24 * rows_an_image
        assert split.images.tolist() == [image for image in range(24) for _ in range(rows_an_image)]
        assert set((split.positions % 3).tolist()) == set(range(rows_an_image))


def test_an_unreadable_image_is_skipped_with_all_its_views(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", {"train": 3})
    damaged = tmp_path / "photos/train/green/001.png"
    damaged.write_bytes(b"no image")
    source = open_source(f"folder:{tmp_path}/photos", "train")
    with raises("data.bad_image", BadImage, id="train/green/001.png"):
        _extract(backbone, source, tmp_path / "caches")
    events: list[Event] = []
    request = _extract(
        backbone, source, tmp_path / "caches", on_event=events.append, batch_size=27, on_bad_image="skip"
    )
    assert [event.sample_id for event in events if isinstance(event, ImageSkipped)] == ["train/green/001.png"]
    store = TokenStore.open(only_store(request))
    assert [store.sample_ids[row] for row in sorted(store.skipped)] == ["train/green/001.png"] * 3
    assert 4 not in request.open().images


# ---- training


PROTOCOL = replace(QUICK, lrs=(1e-2,), weight_decays=(1e-4,), dropouts=(0.0,), epochs=2, min_steps=10)


def test_probes_train_on_views_and_are_validated_and_tested_on_centre_views(
    viewed: SplitRequest, backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    test = _extract(backbone, open_source(f"folder:{folder}", "test"), tmp_path, None)
    named = [parse_probe("linear-cls", 12)]
    config = {"model": REQUEST.to_dict()}
    (all_views,) = probe(viewed, test, named, PROTOCOL, tmp_path, config=config)
    (one_view,) = probe(viewed.with_views(1), test, named, PROTOCOL, tmp_path, config=config)
    (none,) = probe(viewed.with_views(0), test, named, PROTOCOL, tmp_path, config=config)
    for row, views in ((all_views, 2), (one_view, 1), (none, 0)):
        assert row.get("train_views", 0) == views
        assert row["refit"]["num_samples"] == 24 * (1 + views)
        assert row["selection"]["num_samples"] == (24 - 6) * (1 + views)
    assert len({row["key"] for row in (all_views, one_view, none)}) == 3
    tokens = CachedTokens(viewed.open(), named[0])
    kept, held_out = split_rows(tokens, PROTOCOL.validation_fraction, PROTOCOL.seed)
    assert (tokens.stored_rows[held_out] % 3 == 0).all()  # a store has the views of an image side by side
    assert set(tokens.images[kept].tolist()).isdisjoint(tokens.images[held_out].tolist())
    sample_ids = np.load(row_folder(tmp_path, all_views) / "test.npz")["sample_ids"]
    assert sample_ids.tolist() == open_source(f"folder:{folder}", "test").ids


def test_a_store_with_views_is_tested_on_its_centre_views_and_predict_takes_plain_images(
    viewed: SplitRequest, backbone: Backbone, images: ImageSource, tmp_path: Path
) -> None:
    (row,) = probe(
        viewed, viewed, [parse_probe("linear-cls", 12)], PROTOCOL, tmp_path, config={"model": REQUEST.to_dict()}
    )
    kept = np.load(row_folder(tmp_path, row) / "test.npz")
    assert kept["sample_ids"].tolist() == images.ids
    saved = SavedProbe(row_folder(tmp_path, row))
    predicted = [one.label for one in saved.predict(images, num_workers=0, batch_size=8)]
    assert predicted == [images.class_names[index] for index in kept["logits"].argmax(1)]


def test_more_views_to_train_on_than_there_are_are_refused() -> None:
    check_train_views(None, 0)
    check_train_views(2, 2)
    with raises("probing.too_few_views", RequestError, train_views=3, num_views=2):
        check_train_views(3, 2)
    with raises("probing.no_views", RequestError, train_views=1):
        check_train_views(1, 0)


def test_views_are_asked_for_by_options_and_extracted_for_the_training_split_alone(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "fast.toml").write_text(
        "epochs = 1\nmin_steps = 5\nlrs = [0.01]\nweight_decays = [1e-4]\ndropouts = [0.0]\n"
    )
    places = ("--cache", tmp_path / "caches")
    views = ("--views", 2, "--view-scale", 0.5, "--no-view-flip")
    extracted = run("extract", *MODEL, "--data", f"folder:{folder}", *places, *views)
    assert extracted.exit_code == 0, extracted.output
    (train,), (test,) = (list((tmp_path / "caches").rglob(f"photos-{split}-*.zarr")) for split in ("train", "test"))
    assert TokenStore.open(train).spec.view_rule == "views, rule 2: crop 0.5-1 of the area, ratio 3/4-4/3, to the size"
    views_of = [TokenStore.open(store).rows.views for store in (train, test)]
    assert (views_of[0] is not None and views_of[0].max(), views_of[1]) == (2, None)
    probed = (
        "--runs",
        tmp_path / "runs",
        "--protocol",
        tmp_path / "fast.toml",
        "--probe",
        "linear-cls",
        "--train-views",
        1,
    )
    result = run("probe", *MODEL, "--data", f"folder:{folder}", *places, *views, *probed, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["train_views"], row["refit"]["num_samples"]) == (1, 48)
    wrong = run("probe", *MODEL, "--data", f"folder:{folder}", *places, *probed)
    assert wrong.exit_code == 2
    assert "--train-views" in wrong.stderr


def test_a_geometry_of_views_travels_to_worker_processes(backbone: Backbone, images: ImageSource) -> None:
    geometry = pickle.loads(pickle.dumps(view_geometry(backbone, rows_in_order(images))))
    assert isinstance(geometry, ViewGeometry)
    assert geometry.rule == RULE
