"""A model id becomes one callable, `images [B, 3, H, W] -> {level: {kind: tokens}}`, and its identity.

Taps are forward hooks that pool inside the forward pass, so that only the requested tokens leave it, and one pass serves all
levels and kinds. This module knows no data sets, stores or model families.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layerbank.probes import fast_exact_matmul

from ..errors import RequestError
from ..events import OnEvent, ignore
from .families import open_tower
from .layers import FINAL, level_names, unknown_level
from .tap_modules import tokens_of
from .taps import TOKEN_RULE, TokenLayout, kind_shape, pool_tokens
from .tower import Tower, measure_widths, tapped_modules
from .transform import Geometry, Normalisation, split_transform
from .trust import NO_CODE, CodePermission
from .weights import check_finite, weights_digest

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_ONE_PASS = (
    threading.RLock()
)  # hooks hold the tokens of one pass, and torch's setting for products is one for the process

Tokens = dict[str, dict[str, Tensor]]
"""level -> kind -> tokens [B, ...] in the compute dtype, on the backbone's device."""


def open_backbone(
    model_id: str,
    *,
    weights: str | None = None,
    tap: str = "norm2",
    image_size: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    seed: int = 0,
    permission: CodePermission = NO_CODE,
    weights_key: str | None = None,
    on_event: OnEvent = ignore,
) -> Backbone:
    """Build a backbone, move it to its device and precision, and check its taps on a blank image there.

    Args:
        model_id: an id of one of the families in `families`, or a bare timm name.
        weights: None for the pretrained ones, "random", or a safetensors or torch file.
        tap: norm2, block, or `module:PATTERN` with a pattern of `tap_modules`.
        image_size: pixels a side; None for the size of the model's own evaluation.
        device: where it runs, as torch names it.
        precision: float32, float16 or bfloat16, for weights and activations.
        seed: seed for random weights.
        permission: which models may run code of their own.
        weights_key: which set of weights of the file; None chooses.
        on_event: called with `WeightsChosen` if the file has several.

    Raises:
        RequestError: a wrong name, file, key, tap, size, device or precision, weights that are not finite, code that is not
            allowed to run, or a model whose taps cannot be found.
        WorkError: weights have to come from the hub, and it cannot be reached.
    """
    _check_precision(precision)
    target = usable_device(device)
    tower = open_tower(
        model_id,
        weights=weights,
        tap=tap,
        image_size=image_size,
        seed=seed,
        permission=permission,
        weights_key=weights_key,
        on_event=on_event,
    )
    return backbone_of(tower, tap=tap, device=target, precision=precision)


def backbone_of(tower: Tower, *, tap: str, device: str | torch.device, precision: str) -> Backbone:
    """Move a tower to its device and precision, and check its taps on a blank image there.

    Raises:
        RequestError: as `open_backbone`, for the tap, the device and the precision, and for weights that are not finite.
    """
    _check_precision(precision)
    target = usable_device(device)
    check_finite(tower.model, tower.name)
    digest = weights_digest(tower.model)  # before the cast: every precision of a model has the same weights
    tower.model.requires_grad_(False).to(target, PRECISIONS[precision])
    return Backbone(
        model_id=tower.name,
        architecture=tower.architecture,
        weights_digest=digest,
        tap=tap,
        precision=precision,
        device=target,
        embed_dim=measure_widths(tower, tap),
        tower=tower,
    )


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise RequestError("models.unknown_precision", precision=precision, precisions=", ".join(PRECISIONS))


def usable_device(device: str | torch.device) -> torch.device:
    """A device of this machine. It is not opened if it is a CUDA device: a process that only hands out work holds no memory there.

    Raises:
        RequestError: torch cannot compute on it here.
    """
    try:
        target = torch.device(device)
        if target.type != "cuda":
            torch.zeros(1, device=target).tolist()  # `meta` has shapes alone
        elif (target.index or 0) >= (count := torch.cuda.device_count()):
            raise RuntimeError(f"CUDA devices that torch sees here: {count}")
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise RequestError("models.unusable_device", device=device, reason=str(error).partition(". ")[0]) from error
    return target


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A vision transformer ready to give tokens.

    Attributes:
        model_id: canonical, `timm/...` for a bare timm name.
        architecture: canonical text of everything but the weights that changes the function.
        weights_digest: digest of the float32 weights that take part (of CLIP the vision tower).
        tap: norm2, block or `module:PATTERN`.
        precision: compute dtype.
        device: the device of the model.
        embed_dim: width D of each level.
    """

    model_id: str
    architecture: str
    weights_digest: str
    tap: str
    precision: str
    device: torch.device
    embed_dim: dict[str, int]
    tower: Tower = field(repr=False)
    _compiled: dict[tuple[tuple[str, ...], tuple[str, ...]], TokenFunction] = field(default_factory=dict, repr=False)

    @property
    def token_rule(self) -> str:
        """Version of the definitions of the kinds."""
        return TOKEN_RULE

    @property
    def depth(self) -> int:
        return len(self.tower.blocks)

    @property
    def levels(self) -> list[str]:
        """`block.0` .. `block.{depth-1}`, `final`."""
        return level_names(self.depth)

    @property
    def layout(self) -> TokenLayout:
        return self.tower.layout

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.tower.image_size

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """The model's own evaluation transform, RGB PIL image -> float32 [3, H, W]; picklable."""
        return self.tower.transform

    @property
    def geometry(self) -> Geometry:
        """The first half of the transform, RGB PIL image -> uint8 [3, H, W]; a `TokenFunction` does the rest on the device."""
        return split_transform(self.tower.transform)[0]

    @property
    def normalisation(self) -> Normalisation | None:
        """The second half of the transform; None where it could not be split and `geometry` is all of it."""
        return split_transform(self.tower.transform)[1]

    @property
    def transform_id(self) -> str:
        return self.tower.transform_id

    def row_shape(self, level: str, kind: str) -> tuple[int, ...]:
        """Shape of one sample's tokens: `(D,)` for cls and ap, `(T, D)` for the others.

        Raises:
            RequestError: a level or a kind that this backbone lacks.
        """
        if level not in self.embed_dim:
            raise unknown_level(level, self.levels)
        return (*kind_shape(kind, self.layout), self.embed_dim[level])

    def compile(self, levels: Iterable[str], kinds: Iterable[str]) -> TokenFunction:
        """The function from images to the tokens of these levels and kinds; the same object for the same arguments.

        Raises:
            RequestError: a level or a kind that this backbone lacks.
        """
        key = (tuple(levels), tuple(kinds))
        for level in key[0]:
            for kind in key[1]:
                self.row_shape(level, kind)
        with _ONE_PASS:
            if key not in self._compiled:
                self._compiled[key] = TokenFunction(self, *key)
            return self._compiled[key]


class _AllLevelsRead(Exception):
    """Ends a forward pass: nobody reads what the blocks after the last requested level would compute."""


class TokenFunction:
    """`images [B, 3, H, W] -> {level: {kind: tokens}}`, in one forward pass, which ends after the last of the levels.

    A compiled or exported graph runs through the model's end, and drops what is not read by itself.

    Its hooks stay on the model, where `torch.compile` can see them, and do nothing while another function of the same backbone
    runs. Calls from several threads wait for each other; `inference` and `forward` by themselves are for one thread.
    """

    def __init__(self, backbone: Backbone, levels: tuple[str, ...], kinds: tuple[str, ...]) -> None:
        self._tower = backbone.tower
        self._levels, self._kinds = levels, kinds
        self._device, self._dtype = backbone.device, PRECISIONS[backbone.precision]
        normalisation = backbone.normalisation
        self._normalise = None if normalisation is None else normalisation.on(backbone.device)
        self._tokens: Tokens | None = None
        modules = tapped_modules(backbone.tower, backbone.tap)
        for level in levels:
            modules[level].register_forward_hook(partial(self._listen, level))

    def __call__(self, images: Tensor) -> Tokens:
        """Tokens of a batch.

        Args:
            images: [B, 3, H, W], the output of the backbone's geometry (uint8) or of its whole transform (float32), on any device.

        Returns:
            level -> kind -> [B, *row_shape], in the compute dtype, on the backbone's device, sharing no memory with the model.
        """
        with self.exclusive():
            return self.forward(self.normalise(images))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """`inference`, while every other thread waits."""
        with _ONE_PASS, self.inference():
            yield

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Within it, `forward` keeps nothing for gradients, and a CPU uses its faster matmul."""
        with torch.inference_mode(), fast_exact_matmul(self._device):
            yield

    def normalise(self, images: Tensor) -> Tensor:
        """The input of `forward`: bytes are normalised on the model's device; other images are that already."""
        images = images.to(self._device, non_blocking=True)
        if images.dtype == torch.uint8 and self._normalise is not None:
            images = self._normalise(images)
        return images.to(self._dtype)

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of normalised images, within `inference`; `torch.compile` makes one graph of it."""
        tokens: Tokens = {}
        self._tokens = tokens
        try:
            self._tower.forward(images.to(self._device, self._dtype))
        except _AllLevelsRead:
            pass
        finally:
            self._tokens = None
        return {level: tokens[level] for level in self._levels}

    def _listen(self, level: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if self._tokens is None:
            return
        tokens = tokens_of(output)
        seen = self._tower.final(tokens) if level == FINAL else tokens
        self._tokens[level] = {kind: pool_tokens(seen, kind, self._tower.layout) for kind in self._kinds}
        if len(self._tokens) == len(self._levels) and not torch.compiler.is_compiling():
            raise _AllLevelsRead
