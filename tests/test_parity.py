"""The cost of half precision is measured on the first images, reported, kept in the store, and not hidden by large activations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import MODEL, run
from extractions import extract
from messages import raises, refuses
from photos import TINY_MODEL, write_photos
from planted import ARRAYS, Large, Massive, Planted, look, parity_of

from layerbank import RequestError, WorkError
from layerbank.cache import CacheError, TokenStore
from layerbank.data.sources import ImageSource, open_source
from layerbank.events import ParityMeasured, PrecisionFellBack
from layerbank.extraction.extract import ExtractConfig
from layerbank.extraction.parity import compare_tokens
from layerbank.extraction.parity_levels import parity_by_level
from layerbank.models.request import ModelRequest, choose_storage_dtype

COUNTS = ("saturated", "nonfinite", "reference_nonfinite")


def names_of(level: str, kind: str) -> str:
    return f"tokens/final/{kind}" if level == "final" else f"tokens/norm2/{level}/{kind}"


@pytest.fixture(scope="module")
def source(photos: Path) -> ImageSource:
    return open_source(f"folder:{photos}", "train")


def test_the_cosine_and_the_error_are_those_of_the_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(5, 3, 8, generator=generator)
    stored = reference + 0.01 * torch.randn(5, 3, 8, generator=generator)
    parity = compare_tokens(stored, reference)
    cosines = torch.nn.functional.cosine_similarity(stored.double(), reference.double(), dim=-1)
    scale = reference.double().square().mean((0, 1)).sqrt().expand_as(reference)
    error = (stored.double() - reference.double()).abs() / torch.maximum(reference.double().abs(), scale)
    assert parity["cosine_min"] == pytest.approx(float(cosines.min()), abs=1e-6)
    assert parity["cosine_mean"] == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert parity["max_relative_error"] == pytest.approx(float(error.max()), rel=0.006)
    assert (parity["nonfinite"], parity["reference_nonfinite"]) == (0, 0)


def test_equal_tokens_have_cosine_one_and_no_error_even_if_they_are_zero() -> None:
    tokens = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    parity = compare_tokens(tokens, tokens)
    assert (parity["cosine_min"], parity["cosine_mean"], parity["max_relative_error"]) == (1.0, 1.0, 0.0)


def test_a_token_that_is_not_finite_has_cosine_zero_and_is_counted() -> None:
    reference = torch.ones(4, 3)
    stored = torch.tensor([[1.0, 1.0, 1.0], [1.0, float("inf"), 1.0], [float("nan")] * 3, [1.0, 1.0, 1.0]])
    parity = compare_tokens(stored, reference)
    assert (parity["cosine_min"], parity["cosine_mean"], parity["nonfinite"]) == (0.0, 0.5, 4)
    json.dumps(parity, allow_nan=False)
    assert compare_tokens(reference, stored)["reference_nonfinite"] == 4


def test_a_massive_activation_hides_an_error_from_the_cosine_but_not_from_the_relative_error() -> None:
    reference = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    reference[:, 3] = 1e5
    stored = reference.clone()
    stored[:, 5] *= -1  # a channel altogether wrong
    parity = compare_tokens(stored, reference)
    assert parity["cosine_min"] > 0.999999
    assert parity["max_relative_error"] == pytest.approx(2.0)


def test_on_a_float32_model_only_the_rounding_of_storage_is_measured(source: ImageSource, tmp_path: Path) -> None:
    settled, events = look(source, tmp_path)
    assert settled.backbone.precision == "float32"
    [measured] = events
    assert isinstance(measured, ParityMeasured)
    assert (measured.compute_dtype, measured.num_images) == ("float32", 32)
    assert (measured.num_saturated, measured.num_nonfinite) == (0, 0)
    assert set(parity_of(settled)) == {names_of(level, kind) for level, kind in ARRAYS}
    for one in parity_of(settled).values():
        assert 0 < one["max_relative_error"] < 2**-10  # float16 has 11 bits
        assert one["cosine_min"] > 0.999999
    exact, _ = look(source, tmp_path, storage_dtype="float32")
    for one in parity_of(exact).values():
        assert (one["cosine_min"], one["max_relative_error"]) == (1.0, 0.0)


def test_each_kind_is_measured_in_its_own_storage_dtype(source: ImageSource, tmp_path: Path) -> None:
    settled, _ = look(source, tmp_path, storage_dtype="bfloat16,cls=float32")
    parity = parity_of(settled)
    assert parity["tokens/final/cls"]["max_relative_error"] == 0.0
    assert 2**-10 < parity["tokens/final/ap"]["max_relative_error"] <= 2**-8


@pytest.mark.parametrize(("precision", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_a_half_precision_model_is_compared_with_the_same_model_in_float32(
    source: ImageSource, tmp_path: Path, precision: str, bits: int
) -> None:
    request = Planted(model=TINY_MODEL, precision=precision)
    settled, events = look(source, tmp_path, request, storage_dtype="float32")
    assert settled.backbone.precision == precision
    assert [type(event) for event in events] == [ParityMeasured]
    levels = parity_by_level(parity_of(settled))
    assert list(levels) == ["block.1", "block.5", "final"]
    for level in levels.values():
        assert level["max_relative_error"] > 2.0**-bits  # more than storing alone would cost
        assert 1 - 2.0 ** (-bits - 2) * 64 < level["cosine_min"] <= level["cosine_mean"] < 1


def test_float16_that_overflows_falls_back_to_bfloat16_before_any_store_is_made(
    source: ImageSource, photos: Path, tmp_path: Path
) -> None:
    test = open_source(f"folder:{photos}", "test")
    request = Massive(model=TINY_MODEL, precision="float16", tap="block")
    settled, events = look(source, tmp_path, request, sources=[source, test], storage_dtype="bfloat16")
    assert settled.backbone.precision == settled.request.precision == "bfloat16"
    fallback = events[0]
    assert isinstance(fallback, PrecisionFellBack)
    assert (fallback.split, fallback.level) == ("train", "block.2")
    assert fallback.num_nonfinite > 0
    assert [type(event) for event in events[1:]] == [ParityMeasured, ParityMeasured]
    for split in ("train", "test"):
        for one in parity_of(settled, split).values():
            assert [one[name] for name in COUNTS] == [0, 0, 0]
    assert list(tmp_path.rglob("*.zarr")) == []


def test_the_overflow_of_a_level_that_is_not_wanted_counts_too(source: ImageSource, tmp_path: Path) -> None:
    """Else a level added later would find a float16 store that cannot hold it."""
    request = Massive(model=TINY_MODEL, precision="float16", tap="block")
    settled, _ = look(source, tmp_path, request, arrays=[("block.0", "cls")])
    assert settled.backbone.precision == "bfloat16"


def test_a_massive_activation_within_the_range_of_float16_is_no_reason_to_fall_back(
    source: ImageSource, tmp_path: Path
) -> None:
    settled, events = look(source, tmp_path, Large(model=TINY_MODEL, precision="float16", tap="block"))
    assert settled.backbone.precision == "float16"
    assert [type(event) for event in events] == [ParityMeasured]


def test_what_float16_storage_cuts_off_is_counted_by_array(source: ImageSource, tmp_path: Path) -> None:
    settled, events = look(
        source, tmp_path, Massive(model=TINY_MODEL, tap="block"), arrays=[*ARRAYS, ("block.2", "cls")]
    )
    parity = parity_of(settled)
    assert parity["tokens/block/block.1/cls"]["saturated"] == 0
    assert parity["tokens/block/block.2/cls"]["saturated"] == parity["tokens/block/block.5/ap"]["saturated"] == 32
    assert parity["tokens/block/block.2/cls"]["max_relative_error"] == pytest.approx(1 - 65504 / 1e5, rel=0.01)
    assert parity["tokens/block/block.2/cls"]["cosine_min"] > 0.999  # blind to it
    [measured] = events
    assert isinstance(measured, ParityMeasured)
    assert measured.num_saturated == 5 * 32 - 2 * 32  # cls of block 2, both kinds of block 11; `final` is normalised


@pytest.mark.parametrize(
    ("request_", "threshold", "values"),
    [
        (
            Planted(model=TINY_MODEL, precision="bfloat16"),
            0.9999999,
            {"num_wrong": 6, "num_arrays": 6, "num_saturated": 0, "num_nonfinite": 0},
        ),
        (
            Massive(model=TINY_MODEL, tap="block"),
            0.5,
            {"num_wrong": 2, "num_arrays": 6, "num_saturated": 32, "num_nonfinite": 0},
        ),
    ],
)
def test_a_threshold_makes_it_an_error_before_anything_is_written(
    source: ImageSource, tmp_path: Path, request_: ModelRequest, threshold: float, values: dict[str, int]
) -> None:
    with raises(
        "extraction.below_parity_threshold", WorkError, threshold=threshold, split="train", **values
    ) as refused:
        look(source, tmp_path, request_, threshold=threshold)
    assert refused.error.values["array"].startswith("tokens/block/block.5/" if values["num_saturated"] else "tokens/")
    assert 0.9 < float(refused.error.values["cosine"]) < 1
    assert list(tmp_path.rglob("*.zarr")) == []
    look(source, tmp_path, threshold=0.999)  # holds


def test_a_threshold_that_is_no_cosine_is_refused(source: ImageSource, tmp_path: Path) -> None:
    with raises("extraction.threshold_not_a_cosine", RequestError, value=1.5):
        look(source, tmp_path, threshold=1.5)


def test_images_that_cannot_be_read_take_no_part(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2})
    files = sorted((photos / "train").rglob("*.png"))
    files[0].write_bytes(b"not an image")
    source = open_source(f"folder:{photos}", "train")
    settled, _ = look(source, tmp_path / "caches")
    assert parity_of(settled)["tokens/final/cls"]["num_images"] == 5
    for file in files:
        file.write_bytes(b"not an image")
    settled, events = look(source, tmp_path / "caches")
    assert (parity_of(settled), events) == ({}, [])


def test_the_command_keeps_the_report_in_the_store_and_info_shows_it(photos: Path, tmp_path: Path) -> None:
    command = ("extract", *MODEL, "--data", f"folder:{photos}", "--split", "test", "--cache", tmp_path)
    options = ("--precision", "bfloat16", "--storage-dtype", "cls=float32,ap=float16")
    assert run(*command, *options, "--levels", "last", "--parity-threshold", "0.9").exit_code == 0
    result = run(*command, *options, "--levels", "block.3,final", "--json")
    store = store_in(result.stdout)
    cache = TokenStore.open(store)
    assert cache.spec.model.storage_dtype == "float16,cls=float32"
    assert set(cache.parity) == {names_of(level, kind) for level in ("block.3", "final") for kind in ("cls", "ap")}
    at_once = store_in(run(*command[:-1], tmp_path / "once", *options, "--levels", "block.3,final", "--json").stdout)
    assert Path(at_once, "zarr.json").read_bytes() == Path(store, "zarr.json").read_bytes()
    shown = run("cache", "info", store).stdout
    assert "parity: bfloat16 and the storage dtype against a float32 run, on 32 images" in shown
    assert "cosine_min" in shown
    info = json.loads(run("cache", "info", store, "--json").stdout)
    assert info["parity"]["arrays"] == cache.parity
    assert set(info["parity"]["levels"]) == {"block.3", "final"}


def store_in(shown: str) -> Path:
    """The one store of the model that `extract --json` names."""
    (folder,) = json.loads(shown)["folders"]
    (store,) = Path(folder).glob("*.zarr")
    return store


def test_each_store_is_measured_on_its_own_images_whatever_else_is_written(photos: Path, tmp_path: Path) -> None:
    """Else what a store records would depend on which runs were interrupted."""
    few = write_photos(tmp_path / "few", {"train": 2})
    source, small = open_source(f"folder:{photos}", "train"), open_source(f"folder:{few}", "train")
    config = ExtractConfig(arrays=(("final", "ap"),), batch_size=16, num_workers=0)
    request = Planted(model=TINY_MODEL)
    extract(request.open("cpu"), small, config, tmp_path / "caches")
    later = look(source, tmp_path / "caches", arrays=[("final", "ap"), ("block.1", "ap")])[0]
    apart = look(small, tmp_path / "caches", arrays=[("final", "ap"), ("block.1", "ap")])[0]
    both = look(source, tmp_path / "caches", arrays=[("final", "ap"), ("block.1", "ap")], sources=[small, source])[0]
    assert both.parity["train"] == later.parity["train"]
    assert [one["tokens/norm2/block.1/ap"]["num_images"] for one in apart.parity["train"].values()] == [6]


def test_a_recorded_report_below_the_threshold_is_an_error_too(photos: Path, tmp_path: Path) -> None:
    command = (
        "extract",
        *MODEL,
        "--data",
        f"folder:{photos}",
        "--split",
        "test",
        "--cache",
        tmp_path,
        "--levels",
        "last",
    )
    assert run(*command, "--storage-dtype", "bfloat16").exit_code == 0
    result = run(*command, "--storage-dtype", "bfloat16", "--parity-threshold", "1")
    refuses(result, "extraction.below_parity_threshold", exit_code=1, threshold=1.0)


def test_a_storage_dtype_that_makes_no_sense_is_refused() -> None:
    with raises("cache.invalid_storage_dtype", CacheError):
        choose_storage_dtype("int8")
    with raises("models.unknown_kind_to_store", text="clz=float32"):
        choose_storage_dtype("clz=float32")


def test_storage_dtypes_by_kind_have_one_form() -> None:
    assert choose_storage_dtype("grid2=bfloat16,cls=float32") == "float16,cls=float32,grid2=bfloat16"
