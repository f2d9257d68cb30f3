"""Export a probe and its backbone as one file that runs without layerbank: a torch program, or ONNX.

The graph takes uint8 images [B, 3, H, W] for any B and gives outputs [B, C] float32. Normalisation and the rounding of tokens are
in it; blocks that the probe does not read are not. Before the file gets its name it is loaded again, by torch or by onnxruntime,
and compared with the module that `predict` runs.

    model.pt2 | model.onnx    the graph, with the text of metadata.json in it; ONNX of 2 GB and more has a file of weights too
    metadata.json             probe, task, names of classes, model, and what goes in and comes out
    preprocess.json           how images are resized and cropped
    preprocess.py             a function that does it, with Pillow and NumPy alone
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..errors import RequestError, WorkError, first_line
from ..models import preprocess as preprocessing
from ..models.transform import geometry_steps
from ..models.weights import quiet_libraries
from ..outputs import check_local
from .predict import SavedProbe
from .tokens.token_source import join_tokens

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
BATCHES = (1, 2, 7)  # images at once in the comparison; exporters tend to fix a batch size
TOLERANCE = 1e-3  # of the largest output: a token that is rounded to the other side moves outputs in proportion
FORMAT = 1
METADATA = "metadata.json"

Outputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported, and how it compares with `predict`.

    Attributes:
        path: the file or folder.
        size_bytes: of all files.
        num_images: random images, in batches of 1, 2 and 7.
        largest_output: largest absolute output.
        difference: largest absolute difference between two outputs.
    """

    path: Path
    size_bytes: int
    num_images: int
    largest_output: float
    difference: float


def check_export(output: Path, format: str) -> None:
    """Refuse what cannot be exported to a file or folder, before a model is opened.

    Raises:
        RequestError: the name is taken or has the suffix of another format, or packages are missing.
    """
    check_local(output, "--output")
    if output.suffix in SUFFIXES.values() and output.suffix != SUFFIXES[format]:
        raise RequestError("probing.export_format", path=output, format=format, suffix=SUFFIXES[format])
    if os.path.lexists(output):
        raise RequestError("probing.export_exists", path=output)
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(package) is None:
                raise RequestError("probing.export_packages", package=package)


def export_probe(saved: SavedProbe, output: Path, format: str) -> Exported:
    """Write an exported probe, whole or not at all.

    Args:
        saved: the probe, on the CPU.
        output: a file with the suffix of the format, or else a folder, which is made; neither may exist.
        format: torch or onnx.

    Raises:
        RequestError: as `check_export`; a transform, a head or a model that the format cannot express.
        WorkError: the exported graph gives other outputs.
    """
    check_export(output, format)
    as_file = output.suffix == SUFFIXES[format]
    steps = _steps_of(saved)
    export = _export_torch if format == "torch" else _export_onnx
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.{os.getpid()}")
    staging.mkdir()
    try:
        _check_head(saved, export, staging / "head", format)
        metadata = _metadata(saved, steps)
        model = staging / f"model{SUFFIXES[format]}"
        try:
            run = export(saved.module, _random_images(saved, 4), metadata, model)
        except Exception as error:  # exporters raise anything
            reason = first_line(error)
            raise RequestError(
                "probing.export_model", model=saved.backbone.model_id, format=format, reason=reason
            ) from error
        largest, difference = _compare(saved, run)
        if as_file:
            if len(list(staging.iterdir())) > 1:
                raise RequestError("probing.export_too_large", path=output)
        else:
            (staging / METADATA).write_text(metadata, encoding="utf-8")
            (staging / "preprocess.json").write_text(
                json.dumps({"format": FORMAT, "steps": steps}, indent=2, allow_nan=False) + "\n"
            )
            (staging / "preprocess.py").write_text(inspect.getsource(preprocessing), encoding="utf-8")
        size_bytes = sum(file.stat().st_size for file in staging.iterdir())
        _sync(staging)
        if os.path.lexists(output):
            raise RequestError("probing.export_exists", path=output)
        (model if as_file else staging).rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Exported(
        path=output,
        size_bytes=size_bytes,
        num_images=sum(BATCHES),
        largest_output=largest,
        difference=difference,
    )


def _steps_of(saved: SavedProbe) -> list[dict[str, Any]]:
    """The steps from an image to the module's input, which give the pixels that stage one computes."""
    backbone = saved.backbone
    steps = None if backbone.normalisation is None else geometry_steps(backbone.geometry)
    if steps is None:
        raise RequestError("probing.export_transform", model=backbone.model_id, got=backbone.transform_id)
    height, width = backbone.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2 * height + 3, 3 * width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if not np.array_equal(preprocessing.preprocess(image, steps), backbone.geometry(image).numpy()):
        raise RequestError("probing.export_transform", model=backbone.model_id, got=repr(backbone.geometry))
    return [{"rgb": {name: value for name, value in saved.pixels.to_dict().items() if name != "max_pixels"}}, *steps]


def _metadata(saved: SavedProbe, steps: list[dict[str, Any]]) -> str:
    backbone, probe = saved.backbone, saved.named
    about = {
        "format": FORMAT,
        "layerbank": version("layerbank"),
        "probe": probe.name,
        "task": saved.task.describe(),
        "class_names": saved.class_names,
        "input": {"name": "images", "dtype": "uint8", "shape": ["B", 3, *backbone.image_size]},
        "output": {"name": "outputs", "dtype": "float32", "shape": ["B", saved.task.num_outputs]},
        "model": backbone.model_id,
        "architecture": backbone.architecture,
        "weights": backbone.weights_digest,
        "levels": probe.levels,
        "kinds": probe.kinds,
        "preprocess": steps,
    }
    return json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _check_head(saved: SavedProbe, export: Callable[..., Outputs], folder: Path, format: str) -> None:
    """Export the head alone, which takes seconds, so that one that cannot be expressed is named at once."""
    shapes = [saved.backbone.row_shape(level, kind) for level in saved.named.levels for kind in saved.named.kinds]
    tokens = join_tokens(saved.named, [torch.ones(4, *shape) for shape in shapes])
    folder.mkdir()
    try:
        export(saved.module.head, tokens, "{}", folder / f"head{SUFFIXES[format]}")
    except Exception as error:  # exporters raise anything
        head, reason = saved.named.head, first_line(error)
        raise RequestError(
            "probing.export_head", folder=saved.folder, format=format, head=head, reason=reason
        ) from error
    shutil.rmtree(folder)


def _traced(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The graph of a module for any batch size, without the parameters that it does not use."""
    how: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "strict": False}
    with torch.no_grad():
        graph: Any = torch.export.export(module, (example,), **how).module()
        graph.graph.eliminate_dead_code(_writes)
        used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
        for name in [name for name, _ in (*graph.named_parameters(), *graph.named_buffers()) if name not in used]:
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
        graph.recompile()
        return torch.export.export(graph, (example,), **how)


def _writes(node: torch.fx.Node) -> bool:
    """Whether a node changes something; for torch so does a random operation, such as attention, and is never dead."""
    schema = getattr(node.target, "_schema", None)
    return node.is_impure() if schema is None else bool(schema.is_mutable)


def _export_torch(module: nn.Module, example: Tensor, metadata: str, path: Path) -> Outputs:
    torch.export.save(_traced(module, example), path, extra_files={METADATA: metadata})
    run: Outputs = torch.export.load(path).module()
    return run


def _export_onnx(module: nn.Module, example: Tensor, metadata: str, path: Path) -> Outputs:
    import onnxruntime  # type: ignore[import-untyped]

    with quiet_libraries():
        program = torch.onnx.export(
            _traced(module, example), input_names=["images"], output_names=["outputs"], dynamo=True, verbose=False
        )
    assert program is not None
    program.model.metadata_props["layerbank"] = metadata
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _random_images(saved: SavedProbe, number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (number, *saved.module.input_shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _compare(saved: SavedProbe, run: Outputs) -> tuple[float, float]:
    """The largest output, and the largest difference between those of the module and of its export."""
    batches = [_random_images(saved, number, seed=number) for number in BATCHES]
    with torch.no_grad():
        found, expected = (torch.cat([outputs(one) for one in batches]) for outputs in (run, saved.module))
    largest, difference = float(expected.abs().max()), float((found - expected).abs().max())
    tolerance = TOLERANCE * max(1.0, largest)
    # NaN is no difference within the tolerance
    if not difference <= tolerance or _other_classes(found.numpy(), expected.numpy(), tolerance):
        raise WorkError(
            "probing.export_differs",
            folder=saved.folder,
            tolerance=tolerance,
            num_images=sum(BATCHES),
            difference=difference,
        )
    return largest, difference


def _other_classes(found: NDArray[np.float32], expected: NDArray[np.float32], margin: float) -> bool:
    """Whether another output is the largest one for an image whose two largest outputs are further apart than the margin."""
    if expected.shape[1] < 2:
        return False
    second, first = np.sort(expected, axis=1)[:, -2:].T
    return bool(((found.argmax(1) != expected.argmax(1)) & (first - second > margin)).any())


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
