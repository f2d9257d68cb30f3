"""Which model to open: what the user asked for, as it is kept beside every result so that it can be asked for again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    from .backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model and how to run it.

    Args:
        model: its id, such as `timm/vit_small_patch16_224` or `open_clip/ViT-B-32/openai`.
        weights: None for the pretrained ones, `random`, or a file.
        tap: `norm2`, `block` or `module:PATTERN`: where a block is read.
        image_size: side of the square input in pixels; None for the model's own.
        precision: dtype of weights and activations.
        seed: of random weights.
    """

    model: str
    weights: str | None = None
    tap: str = "norm2"
    image_size: int | None = None
    precision: str = "float32"
    seed: int = 0

    def open(self, device: str) -> Backbone:
        """Build the model on a device and load its weights."""
        from .backbone import open_backbone

        return open_backbone(
            self.model,
            weights=self.weights,
            tap=self.tap,
            image_size=self.image_size,
            device=device,
            precision=self.precision,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelRequest:
        """The request that `to_dict` wrote; keys this version does not know are refused.

        Raises:
            RequestError: an unknown key.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise RequestError(
                where="model request",
                expected="the keys " + ", ".join(field.name for field in fields(cls)),
                got=", ".join(unknown),
                todo="It was written by another version of layerbank: use that one, or extract again.",
            )
        return cls(**values)


def pair_models_with_weights(models: Sequence[str], weights: Sequence[str]) -> list[tuple[str, str | None]]:
    """Each model of a command line with its weights, by their order; `pretrained` is None.

    Raises:
        RequestError: some models have weights and others do not, or two are the same in both.

    >>> pair_models_with_weights(["timm/a", "timm/b"], ["pretrained", "b.safetensors"])
    [('timm/a', None), ('timm/b', 'b.safetensors')]
    """
    if weights and len(weights) != len(models):
        raise RequestError(
            where="--weights",
            expected=f"one for each of the {len(models)} models, in their order, or none" if len(models) > 1 else "one",
            got=str(len(weights)),
            todo="Say `pretrained` for a model that keeps its own.",
        )
    named = [None if one == "pretrained" else one for one in weights] or [None] * len(models)
    pairs = list(zip(models, named, strict=True))
    repeated = next((model for number, (model, one) in enumerate(pairs) if (model, one) in pairs[:number]), None)
    if repeated is not None:
        raise RequestError(
            where=f"--model {repeated}",
            expected="different models, or different weights",
            got="the same twice",
            todo="Name each once: all of its layers come from one pass.",
        )
    return pairs


def choose_device(device: str) -> str:
    """`auto` becomes cuda where there is one, else cpu; anything else is for the backbone to check when it opens."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def choose_tap(tap: str | None, module: str | None) -> str:
    """The tap of two options: norm2 unless another was asked for, or a pattern of module names.

    Raises:
        RequestError: both were given.

    >>> choose_tap(None, None), choose_tap(None, "layers.{i}.ffn_norm")
    ('norm2', 'module:layers.{i}.ffn_norm')
    """
    if module is None:
        return tap or "norm2"
    if tap is not None:
        raise RequestError(
            where="--tap, --tap-module",
            expected="one of the two",
            got=f"--tap {tap} --tap-module {module}",
            todo="Leave --tap out: the pattern says where blocks are read.",
        )
    return f"module:{module}"


def choose_precision(precision: str, device: str) -> str:
    """`auto` is float16 on a GPU and float32 on a CPU, whose half-precision arithmetic is slower."""
    if precision != "auto":
        return precision
    return "float16" if device.startswith("cuda") else "float32"


def choose_storage_dtype(text: str) -> str:
    """The one form of what `--storage-dtype` says: `float16`, or `cls=float32,ap=float16`.

    Raises:
        SpecError: a dtype that is none, or a kind named twice.
        RequestError: a kind that is none.
    """
    from layerbank.cache import kinds_with_own_dtype, storage_dtypes_text

    from .taps import grid_cells

    chosen = storage_dtypes_text(text)
    for kind in kinds_with_own_dtype(chosen):
        if kind not in ("cls", "ap", "patch", "register") and grid_cells(kind) is None:
            raise RequestError(
                where=f"--storage-dtype {text}",
                expected="kinds among cls, ap, grid1, grid2, ..., patch, register",
                got=repr(kind),
                todo="Name one of these, such as cls=float32.",
            )
    return chosen


def choose_workers(num_workers: int | None, device: str) -> int:
    """How many processes decode: what was asked for, else by the number of cores.

    On a CPU one for each 16 cores, hence none on a small machine: decoding is 1 to 3 % of what a ViT-S takes there, and a process
    beside the model's threads costs more than it saves (`tests/benchmarks/extraction.py`). For a GPU every core but one, up to 16.
    """
    if num_workers is not None:
        return num_workers
    cores = os.cpu_count() or 2
    return max(1, min(16, cores - 1)) if device.startswith("cuda") else cores // 16
