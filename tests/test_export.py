"""`layerbank export`: a file that gives what `predict` gives, in torch and in ONNX, written whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from messages import raises, refuses
from photos import TINY_DEPTH, TINY_MODEL
from PIL import Image
from probe_runs import PROTOCOL, stores_of
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Lambda, PILToTensor, Resize

from layerbank import RequestError, WorkError
from layerbank.data.decoding import decode_rgb
from layerbank.data.pixels import PixelRule
from layerbank.data.sources import open_source
from layerbank.models.preprocess import preprocess
from layerbank.models.request import ModelRequest
from layerbank.models.transform import geometry_steps
from layerbank.probing import export as exporting
from layerbank.probing.export import export_probe
from layerbank.probing.predict import SavedProbe
from layerbank.probing.probe import probe
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.rows.row_files import row_folder

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAMES = ("aat@2", "knn-cls", "alf-top2")
REQUEST = ModelRequest(model=TINY_MODEL, weights="random", image_size=32)
FEW = replace(PROTOCOL, weight_decays=(1e-4, 1e-2), epochs=1, min_steps=4, num_neighbors=(5,))


@pytest.fixture(scope="module")
def folders(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("study")
    stores = stores_of(REQUEST.open("cpu"), photos, root / "caches")
    named = [parse_probe(name, TINY_DEPTH) for name in NAMES]
    rows = probe(*stores, named, FEW, root / "runs", config={"model": REQUEST.to_dict()})
    return {row["probe"]: row_folder(root / "runs", row) for row in rows}


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_preprocess", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("format", "name"), [("torch", "aat@2"), ("onnx", "aat@2"), ("onnx", "knn-cls"), ("onnx", "alf-top2")]
)
def test_image_files_through_the_files_of_an_export_get_the_outputs_of_predict(
    folders: dict[str, Path], photos: Path, tmp_path: Path, format: str, name: str
) -> None:
    result = run("export", folders[name], "--format", format, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout)
    assert done["num_images"] == 10
    assert done["difference"] <= 1e-3 * max(1, done["largest_output"])
    model = tmp_path / "out" / {"torch": "model.pt2", "onnx": "model.onnx"}[format]
    names = {model.name, "metadata.json", "preprocess.json", "preprocess.py"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert [file.name for file in tmp_path.iterdir()] == ["out"]

    metadata = (tmp_path / "out" / "metadata.json").read_text()
    if format == "torch":
        extra: dict[str, Any] = {"metadata.json": ""}
        graph = torch.export.load(model, extra_files=extra)
        assert extra["metadata.json"] == metadata
        assert not any(f"blocks.{number}" in key for key in graph.state_dict for number in range(3, TINY_DEPTH))
        outputs = graph.module()
    else:
        session = onnxruntime.InferenceSession(model)
        assert session.get_modelmeta().custom_metadata_map["layerbank"] == metadata
        outputs = lambda images: torch.from_numpy(session.run(["outputs"], {"images": images.numpy()})[0])  # noqa: E731
    about = json.loads(metadata)
    assert (about["class_names"], about["task"]["type"]) == (["blue", "green", "red"], "multiclass")

    saved, source = SavedProbe(folders[name]), open_source(f"folder:{photos}", "test")
    steps = json.loads((tmp_path / "out" / "preprocess.json").read_text())["steps"]
    function = imported(tmp_path / "out" / "preprocess.py").preprocess
    images = torch.from_numpy(np.stack([function(source.load(row)[0], steps) for row in range(9)]))
    expected = torch.from_numpy(np.stack([one.logits for one in saved.scores(source, batch_size=9)][:9]))
    for size in (1, 2, 7, 9):
        torch.testing.assert_close(
            outputs(images[:size]), expected[:size], atol=1e-3 * float(expected.abs().max()), rtol=0
        )


def test_a_file_gets_the_module_alone_and_nothing_is_ever_replaced(folders: dict[str, Path], tmp_path: Path) -> None:
    result = run("export", folders["aat@2"], "--output", tmp_path / "new" / "one.pt2")
    assert result.exit_code == 0, result.output
    assert "10 random images" in result.output
    before = (tmp_path / "new" / "one.pt2").read_bytes()
    for output in (tmp_path / "new" / "one.pt2", tmp_path / "new"):
        refuses(run("export", folders["aat@2"], "--output", output), "probing.export_exists", path=output)
    refuses(run("export", folders["aat@2"], "--output", tmp_path / "x.onnx"), "probing.export_format", suffix=".pt2")
    refuses(run("export", folders["aat@2"], "--output", "s3://bucket/x.pt2"), "layerbank.url_not_a_path")
    refuses(run("export", tmp_path, "--output", tmp_path / "x.pt2"), "probes.no_saved_probe")
    assert (tmp_path / "new" / "one.pt2").read_bytes() == before
    assert [file.name for file in tmp_path.rglob("*")] == ["new", "one.pt2"]


def test_other_outputs_heads_and_models_that_cannot_be_traced_and_missing_packages_leave_nothing(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = SavedProbe(folders["aat@2"])
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "_export_torch", lambda *_: lambda images: saved.module(images) + 2)
        with raises("probing.export_differs", WorkError, num_images=10):
            export_probe(saved, tmp_path / "x", "torch")

    class CountsImages(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.flatten(1)[:, :3] * (1 if tokens.sum() > 0 else len(tokens))

    head, saved.module.head = saved.module.head, CountsImages()
    with raises("probing.export_head", RequestError, head="attentive", format="torch"):
        export_probe(saved, tmp_path / "x", "torch")
    saved.module.head = head
    saved.module.input_shape = (3, 40, 40)  # which the model refuses
    with raises("probing.export_model", RequestError):
        export_probe(saved, tmp_path / "x", "torch")
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "geometry_steps", lambda geometry: None)
        with raises("probing.export_transform", RequestError, model=TINY_MODEL):
            export_probe(SavedProbe(folders["aat@2"]), tmp_path / "x", "torch")

    def with_weights_beside(
        module: torch.nn.Module, example: torch.Tensor, metadata: str, path: Path
    ) -> torch.nn.Module:
        path.write_bytes(b"a model")
        path.with_name("model.data").write_bytes(b"its weights")
        return module

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "_export_torch", with_weights_beside)
        with raises("probing.export_too_large", RequestError):
            export_probe(SavedProbe(folders["aat@2"]), tmp_path / "x.pt2", "torch")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    refused = run("export", folders["aat@2"], "--format", "onnx", "--output", tmp_path / "x")
    refuses(refused, "probing.export_packages", package="onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "steps",
    [
        [Resize(37, InterpolationMode.BICUBIC), CenterCrop(32)],
        [Resize((32, 48), InterpolationMode.BILINEAR)],
        [Resize(20), CenterCrop((32, 24))],  # is padded
        [ResizeKeepRatio((40, 56), interpolation="bicubic"), CenterCrop((32, 48))],
        [ResizeKeepRatio((32, 32), longest=1.0, interpolation="bicubic"), CenterCropOrPad((32, 32), fill=(1, 2, 3))],
        [CenterCropOrPad((33, 90), fill=7)],
    ],
)
def test_the_steps_of_a_transform_give_its_pixels(steps: list[Any]) -> None:
    geometry = Compose([*steps, PILToTensor()])
    found = geometry_steps(geometry)
    assert found is not None
    again = json.loads(json.dumps(found))
    for size in ((40, 40), (61, 40), (40, 61), (33, 200), (7, 5), (32, 32)):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        assert np.array_equal(preprocess(image, again), geometry(image).numpy()), size


def test_a_transform_of_other_steps_has_none_to_name() -> None:
    assert geometry_steps(Compose([Lambda(lambda image: image), PILToTensor()])) is None
    assert geometry_steps(Compose([Resize(32, max_size=64), PILToTensor()])) is None
    assert geometry_steps(lambda image: image) is None


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    image.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


RANDOM = np.random.default_rng(0)
RGBA = Image.fromarray(RANDOM.integers(0, 256, (9, 7, 4), dtype=np.uint8))
DEEP = Image.fromarray(RANDOM.integers(0, 5000, (9, 7)).astype(np.uint16))
TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    "rule",
    [
        PixelRule(),
        PixelRule(background="drop"),
        PixelRule(background="#102030", range=(10, 4000), exif_orientation=True),
    ],
)
@pytest.mark.parametrize(
    "stored",
    [
        encoded(RGBA),
        encoded(RGBA.convert("LA")),
        encoded(RGBA.convert("RGB")),
        encoded(RGBA.convert("P"), transparency=3),
        encoded(RGBA.convert("L"), transparency=7),
        encoded(RGBA.convert("RGB"), "JPEG", exif=TURNED),
        encoded(RGBA.convert("CMYK"), "JPEG"),
        encoded(DEEP),
        encoded(DEEP, "TIFF"),
        b"P5 7 9 4095\n" + np.asarray(DEEP).clip(0, 4095).astype(">u2").tobytes(),
        encoded(RGBA.convert("RGB"), "TIFF", exif=TURNED),
    ],
)
def test_the_first_step_makes_the_pixels_of_stage_one(stored: bytes, rule: PixelRule) -> None:
    step = {name: value for name, value in rule.to_dict().items() if name != "max_pixels"}
    with Image.open(io.BytesIO(stored)) as image:
        found = preprocess(image, json.loads(json.dumps([{"rgb": step}])))
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(decode_rgb(stored, rule)[0]))
