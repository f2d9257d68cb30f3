"""Backbones by id, or made of a module of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..jobs.job import Natural, Positive, ProbeJob, job_value, typed_value
from ..models.backbone import Backbone, backbone_of
from ..models.own_module import tower_from
from ..models.request import ModelRequest, choose_device, choose_precision, choose_tap
from ..models.trust import CodePermission
from .arguments import check_kind
from .progress import Progress, listening

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Model:
    """A frozen backbone that is ready to compute tokens; made by `open_model` or `model_from`.

    Attributes:
        backbone: the model with its taps.
        request: how to open it again; None for a module of one's own.

    >>> import layerbank as lb
    >>> lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu").levels[:2]
    ['block.0', 'block.1']
    """

    backbone: Backbone
    request: ModelRequest | None

    @property
    def levels(self) -> list[str]:
        """`block.0` .. `block.{depth-1}`, `final`."""
        return self.backbone.levels

    def __repr__(self) -> str:
        one = self.backbone
        return f"Model({one.model_id!r}, depth={one.depth}, image_size={one.image_size}, device={str(one.device)!r})"


def open_model(
    model: str,
    *,
    weights: str | Path | None = None,
    tap: str = "norm2",
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    weights_key: str | None = None,
    progress: Progress = True,
    allow_code: Sequence[str] = (),
) -> Model:
    """Open a backbone by its id.

    Args:
        model: `timm/NAME`, `open_clip/ARCH/PRETRAINED`, `hf-hub:ORG/REPO`, ...; see `layerbank models`.
        weights: None for the pretrained ones, "random", or a checkpoint file.
        tap: what is read of each block: "norm2", "block" or "module:PATTERN".
        image_size: side of the square input in pixels; None for the model's own.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: "auto" (float16 on a GPU, float32 on a CPU), "float32", "float16" or "bfloat16".
        seed: seed for random weights.
        weights_key: which set of weights of a checkpoint file; None takes the only one, or the one with ema, teacher or target in
            its name.
        progress: of the choice, if the file has several: True prints it, False does not, a function is called with the event.
        allow_code: ids of models that may run code of their own, such as those of `torchhub:`.

    Raises:
        RequestError: a wrong name, file, tap, size, device or precision, or code that is not allowed to run.
        WorkError: weights have to come from a hub that cannot be reached.

    >>> import layerbank as lb
    >>> lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu")
    Model('timm/vit_tiny_patch16_224', depth=12, image_size=(32, 32), device='cpu')
    """
    where = "open_model"
    device = choose_device(str(device))
    precision = job_value(ProbeJob, "precision", precision, where)
    tap = typed_value(tap, str, where, "tap")
    request = ModelRequest(
        model=job_value(ProbeJob, "model", model, where),
        weights=job_value(ProbeJob, "weights", None if weights is None else str(weights), where),
        tap=choose_tap(None, tap.removeprefix("module:")) if tap.startswith("module:") else tap,
        image_size=job_value(ProbeJob, "image_size", image_size, where),
        precision=choose_precision(precision, device),
        seed=typed_value(seed, Natural, where, "seed"),
        weights_key=job_value(ProbeJob, "weights_key", weights_key, where),
        permission=CodePermission(allow_code, "open_model"),
    )
    with listening(progress) as on_event:
        return Model(request.open(device, on_event), request)


def model_from(
    module: nn.Module,
    *,
    blocks: str = "blocks",
    name: str | None = None,
    image_size: int = 224,
    transform: Callable[[Any], Tensor] | None = None,
    tap: str = "block",
    device: str = "auto",
) -> Model:
    """Make a backbone of a module of one's own: any vision transformer with one list of blocks.

    Args:
        module: maps images [B, 3, H, W] to anything; its blocks output tokens [B, T, D].
        blocks: name of the list of blocks inside the module, such as "encoder.layers".
        name: name for stores and results; None takes that of the class.
        image_size: side of the square input in pixels.
        transform: RGB PIL image -> float32 [3, H, W], picklable; None resizes, crops and normalises as ImageNet models do.
        tap: "block", "norm2" where blocks have a norm of that name, or "module:PATTERN".
        device: "auto", "cpu", "cuda", ...

    Raises:
        RequestError: no such list of blocks (names those that exist), tokens that do not fit the patches, or a transform whose
            output is no float32 [3, H, W] of this size.

    >>> import timm, layerbank as lb
    >>> own = timm.create_model("vit_tiny_patch16_224", img_size=32)
    >>> lb.model_from(own, blocks="blocks", name="own/tiny", image_size=32, device="cpu").levels[-2:]
    ['block.11', 'final']
    """
    from torch import nn

    where = "model_from"
    check_kind(module, nn.Module, f"{where}, module", "a torch.nn.Module")
    if not (transform is None or callable(transform)):
        got = type(transform).__name__
        raise RequestError(
            "api.wrong_argument", where=f"{where}, transform", expected="a function of a PIL image, or None", got=got
        )
    tap = typed_value(tap, str, where, "tap")
    tower = tower_from(
        module,
        blocks=typed_value(blocks, str, where, "blocks"),
        name=typed_value(name, str | None, where, "name") or f"own/{type(module).__name__}",
        image_size=typed_value(image_size, Positive, where, "image_size"),
        transform=transform,
        tap=tap,
    )
    return Model(backbone_of(tower, tap=tap, device=choose_device(str(device)), precision="float32"), None)
