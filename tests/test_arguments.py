"""The Python interface refuses plausible arguments that do not fit, instead of computing something else with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from messages import raises
from photos import TINY_MODEL, VIT_TINY
from PIL import Image
from torch import nn

import layerbank as lb

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
LABELS = [0, 1] * 12


@pytest.fixture(scope="module")
def model() -> lb.Model:
    return lb.open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")


@pytest.fixture(scope="module")
def own() -> nn.Module:
    module: nn.Module = timm.create_model(VIT_TINY.removeprefix("timm/"), img_size=32, depth=2)
    return module


@pytest.fixture(scope="module")
def splits(model: lb.Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[lb.Tokens, lb.Tokens]:
    cache = tmp_path_factory.mktemp("caches")
    train, test = (
        lb.extract(
            model,
            lb.images_from(pixels, LABELS, split=split),
            levels="last",
            kinds=("cls", "grid2"),
            cache=cache,
            progress=False,
        )
        for pixels, split in ((PIXELS, "train"), (PIXELS[::-1].copy(), "test"))
    )
    return train, test


@pytest.mark.parametrize(
    ("key", "images"),
    [
        ("api.not_images", "a.jpg"),
        ("api.not_images", Path("a.jpg")),
        ("api.not_images", b"bytes of a file"),
        ("api.not_images", {"a": PIXELS[0]}),
        ("api.not_images", {"a.jpg"}),
        ("api.not_images", (one for one in PIXELS)),
        ("api.not_images", None),
        ("api.not_images", PIXELS[0]),
        ("api.not_images", PIXELS[0, ..., 0]),
        ("api.not_images", torch.zeros(3, 32, 32, dtype=torch.uint8)),
        ("data.no_items", []),
        ("data.not_an_image", PIXELS / 255),
        ("data.not_an_image", PIXELS.transpose(0, 3, 1, 2)),
        ("data.not_an_image", torch.from_numpy(PIXELS)),
        ("data.not_an_image", np.zeros((4, 8, 8, 4), np.uint8)),
        ("data.not_an_image", [PIXELS[0] / 255]),
    ],
)
def test_images_that_are_none_are_refused_by_whoever_takes_images(key: str, images: Any) -> None:
    with raises(key):
        lb.images_from(images)


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("data.labels_of_other_type", {"labels": ["a", None] * 12}),
        ("data.negative_class_number", {"labels": [-1, 1] * 12}),
        ("data.number_of_labels", {"labels": np.zeros((24, 1), int)}),
        ("data.number_of_labels", {"labels": np.eye(23)}),
        ("data.labels_of_other_type", {"labels": [[0], [1, 2]] * 12}),
        ("data.number_of_labels", {"labels": 3}),
        ("data.number_of_labels", {"labels": None, "class_names": ["a", "b"]}),
        ("data.class_names_twice", {"class_names": ["a", "a"]}),
        ("jobs.wrong_job_value", {"class_names": "ab"}),
        ("jobs.wrong_job_value", {"class_names": [3, 4]}),
        ("jobs.wrong_job_value", {"ids": list(range(24))}),
        ("jobs.wrong_job_value", {"ids": "abcdefghijklmnopqrstuvwx"}),
        ("jobs.wrong_job_value", {"name": None}),
        ("jobs.wrong_job_value", {"split": 3}),
        ("data.bad_split_name", {"split": "../train"}),
    ],
)
def test_what_belongs_to_images_must_fit_them(key: str, changed: dict[str, Any]) -> None:
    with raises(key):
        lb.images_from(PIXELS, **{"labels": LABELS} | changed)


@pytest.mark.parametrize("labels", [torch.tensor([1, 1]), np.array([1, 1])])
def test_the_label_of_a_pair_may_be_a_row_of_several_labels(labels: Any) -> None:
    source = lb.images_from([(one, labels) for one in PIXELS])
    assert (source.task, source.labels.tolist()) == ("multilabel", [[1, 1]] * len(PIXELS))


@pytest.mark.parametrize("labels", [[[0, 1], [1, 0]], None])
def test_labels_of_pairs_are_one_value_or_one_row_each(labels: Any) -> None:
    with raises("data.labels_of_other_type" if labels is None or len(labels) != 2 else "data.number_of_labels"):
        lb.images_from([(one, labels) for one in PIXELS])


def test_class_names_may_be_an_array_and_16_bits_are_scaled_as_in_files(tmp_path: Path) -> None:
    assert lb.images_from(PIXELS, LABELS, class_names=np.array(["a", "b"])).class_names == ["a", "b"]  # type: ignore[arg-type]
    Image.fromarray(np.full((8, 8), 30_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    paths, opened = (lb.images_from([one]) for one in (tmp_path / "deep.png", Image.open(tmp_path / "deep.png")))
    assert np.array_equal(np.asarray(paths.load(0)[0]), np.asarray(opened.load(0)[0]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: lb.open_images(Path("photos")),  # type: ignore[arg-type]
        lambda: lb.open_images("demo:digits", None),  # type: ignore[arg-type]
        lambda: lb.open_model(None),  # type: ignore[arg-type]
        lambda: lb.open_model(TINY_MODEL, image_size=0),
        lambda: lb.open_model(TINY_MODEL, image_size=(32, 32)),  # type: ignore[arg-type]
        lambda: lb.open_model(TINY_MODEL, precision="fp16"),
        lambda: lb.open_model(TINY_MODEL, tap=None),  # type: ignore[arg-type]
        lambda: lb.open_model(TINY_MODEL, seed="a"),  # type: ignore[arg-type]
    ],
)
def test_data_and_models_are_opened_by_texts_and_numbers(call: Callable[[], object]) -> None:
    with raises("jobs.wrong_job_value"):
        call()


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("api.wrong_argument", {"module": None}),
        ("api.wrong_argument", {"module": nn.Linear}),
        ("api.wrong_argument", {"module": lambda images: images}),
        ("models.no_list_of_blocks", {"module": nn.Linear(3, 3)}),
        ("models.no_list_of_blocks", {"blocks": "layers"}),
        ("models.does_not_run", {"image_size": 48}),
        ("jobs.wrong_job_value", {"image_size": 0}),
        ("jobs.wrong_job_value", {"name": 3}),
        ("api.wrong_argument", {"transform": "resize"}),
        ("models.transform_output", {"transform": np.asarray}),
        ("models.transform_output", {"transform": lambda image: torch.zeros(3, 16, 16)}),
        ("models.transform_output", {"transform": lambda image: 1 / 0}),
        ("models.unknown_tap", {"tap": "nope"}),
        ("models.no_such_module", {"tap": "module:nope.{i}"}),
    ],
)
def test_a_module_that_is_no_backbone_is_refused(own: nn.Module, key: str, changed: dict[str, Any]) -> None:
    with raises(key) as refused:
        lb.model_from(**{"module": own, "image_size": 32, "device": "cpu"} | changed)
    if "blocks" in changed:
        assert "blocks" in refused.error.expected  # the candidates


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("api.wrong_argument", {"model": TINY_MODEL}),
        ("api.wrong_argument", {"images": PIXELS}),
        ("jobs.wrong_job_value", {"kinds": "cls"}),
        ("jobs.wrong_job_value", {"kinds": ()}),
        ("models.unknown_kind", {"kinds": ("cls", "foo")}),
        ("jobs.wrong_job_value", {"levels": ()}),
        ("jobs.wrong_job_value", {"levels": (3,)}),
        ("models.unknown_level", {"levels": ("block.99",)}),
        ("models.unknown_level", {"levels": "lasst"}),
        ("jobs.wrong_job_value", {"views": 1.5}),
        ("jobs.wrong_job_value", {"batch_size": 0}),
        ("jobs.wrong_job_value", {"batch_size": 2.5}),
        ("jobs.wrong_job_value", {"workers": -1}),
        ("jobs.wrong_job_value", {"on_bad_image": "ignore"}),
        ("api.wrong_argument", {"cache": None}),
        ("api.wrong_argument", {"progress": "bar"}),
    ],
)
def test_an_extraction_that_cannot_be_meant_is_refused(
    model: lb.Model, tmp_path: Path, key: str, changed: dict[str, Any]
) -> None:
    given = {"model": model, "images": lb.images_from(PIXELS, LABELS), "cache": tmp_path, "progress": False}
    with raises(key):
        lb.extract(**given | changed)
    assert not list(tmp_path.rglob("*.zarr"))


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("jobs.wrong_job_value", {"probes": "ridge-cls"}),
        ("jobs.wrong_job_value", {"probes": []}),
        ("jobs.wrong_job_value", {"seeds": 3}),
        ("jobs.wrong_job_value", {"seeds": ()}),
        ("jobs.wrong_job_value", {"seeds": (-1,)}),
        ("jobs.wrong_job_value", {"seeds": "0"}),
        ("jobs.wrong_job_value", {"seeds": (0.5,)}),
        ("jobs.wrong_job_value", {"memory": 4e9}),
        ("jobs.wrong_job_value", {"retrain": "no"}),
        ("api.wrong_argument", {"train": PIXELS}),
        ("api.wrong_argument", {"test": np.zeros((3, 4))}),
        ("api.wrong_argument", {"runs": None}),
    ],
)
def test_probes_that_cannot_be_meant_are_refused(
    splits: tuple[lb.Tokens, lb.Tokens], tmp_path: Path, key: str, changed: dict[str, Any]
) -> None:
    given = {"train": splits[0], "test": splits[1], "probes": ["ridge-cls"], "runs": tmp_path, "progress": False}
    with raises(key):
        lb.probe(**given | changed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["final", 0, None, ("final",), ("final", "cls", 3), ("final", 2)])
def test_tokens_are_named_by_a_level_and_a_kind(splits: tuple[lb.Tokens, lb.Tokens], key: Any) -> None:
    with raises("api.wrong_argument", where="Tokens[...]"):
        splits[0][key]
    with raises("cache.array_missing"):
        splits[0]["final", "patch"]


def test_an_index_is_that_of_numpy_or_refused(splits: tuple[lb.Tokens, lb.Tokens]) -> None:
    array = splits[0]["final", "grid2"]
    whole = np.asarray(array)
    for index in ((..., 0), ..., (..., 1, slice(0, 3)), ([2, 0], 1), ([2, 0], slice(None), 5), [], (0, -1, 2)):
        assert np.array_equal(array[index], whole[index])
    for index in (None, (None, 0), np.zeros((2, 2), int), ([0, 1], [2, 3]), (0, [1]), (..., None)):
        with raises("api.wrong_rows"):
            array[index]


def test_a_classifier_takes_images_and_nothing_else(splits: tuple[lb.Tokens, lb.Tokens], tmp_path: Path) -> None:
    results = lb.probe(*splits, probes=["ridge-cls"], runs=tmp_path, progress=False)
    classifier = results.best.classifier()
    assert classifier.predict(PIXELS[:3]) == classifier.predict(lb.images_from(PIXELS[:3], [0, 1, 0]))
    for key, images in {"api.not_images": PIXELS[0], "data.no_items": [], "data.not_an_image": PIXELS / 255}.items():
        with raises(key):
            classifier.predict(images)
    with raises("jobs.wrong_job_value"):
        classifier.predict(PIXELS, batch_size=0)
    with raises("api.wrong_argument"):
        lb.Classifier(None)  # type: ignore[arg-type]
    with raises("data.bad_image"):
        classifier.predict(["nowhere.jpg"])
