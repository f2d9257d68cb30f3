"""A request for a model, which is stored beside every result, and defaults of the options that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from ..cores import num_cores
from ..errors import RequestError
from ..events import OnEvent, ignore
from .trust import NO_CODE, CodePermission

if TYPE_CHECKING:
    from .backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model and how to run it.

    Args:
        model: its id, such as `timm/vit_small_patch16_224` or `open_clip/ViT-B-32/openai`.
        weights: None for the pretrained ones, `random`, or a file.
        tap: `norm2`, `block` or `module:PATTERN`: the output that is read in each transformer block.
        image_size: side of the square input in pixels; None for the model's own.
        precision: dtype of weights and activations.
        seed: seed for random weights.
        weights_key: which set of weights of the file; None chooses, see `weights_file.py`.
        permission: which models may run code of their own. It is never written to a file, nor read from one.
    """

    model: str
    weights: str | None = None
    tap: str = "norm2"
    image_size: int | None = None
    precision: str = "float32"
    seed: int = 0
    weights_key: str | None = None
    permission: CodePermission = field(default=NO_CODE, compare=False, repr=False)

    def open(self, device: str, on_event: OnEvent = ignore) -> Backbone:
        """Build the model on a device and load its weights; `on_event` is called with `WeightsChosen`."""
        from .backbone import open_backbone

        return open_backbone(
            self.model,
            weights=self.weights,
            tap=self.tap,
            image_size=self.image_size,
            device=device,
            precision=self.precision,
            seed=self.seed,
            permission=self.permission,
            weights_key=self.weights_key,
            on_event=on_event,
        )

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["permission"]
        if self.weights_key is None:  # as it was before there was a choice
            del values["weights_key"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], permission: CodePermission = NO_CODE) -> ModelRequest:
        """The request that `to_dict` wrote, with the permission that the caller gives.

        Raises:
            RequestError: a key that this version does not know, or a value of another type.
        """
        known = [one.name for one in fields(cls) if one.name != "permission"]
        if unknown := sorted(set(values) - set(known)):
            raise RequestError("models.unknown_request_keys", keys=", ".join(unknown), known=", ".join(known))
        types = get_type_hints(cls)
        wrong = {name: value for name, value in values.items() if not isinstance(value, types[name])}
        if wrong or "model" not in values:
            got = ", ".join(f"{name} = {value!r}" for name, value in wrong.items()) or "no model"
            raise RequestError("models.invalid_request", got=got)
        return cls(**values, permission=permission)


def pair_models_with_weights(models: Sequence[str], weights: Sequence[str]) -> list[tuple[str, str | None]]:
    """Each model of a command line with its weights, by their order; `pretrained` is None.

    Raises:
        RequestError: some models have weights and others do not, or two are the same in both.

    >>> pair_models_with_weights(["timm/a", "timm/b"], ["pretrained", "b.safetensors"])
    [('timm/a', None), ('timm/b', 'b.safetensors')]
    """
    if weights and len(weights) != len(models):
        raise RequestError("models.weights_count", models=len(models), weights=len(weights))
    named = [None if one == "pretrained" else one for one in weights] or [None] * len(models)
    pairs = list(zip(models, named, strict=True))
    repeated = next((model for number, (model, one) in enumerate(pairs) if (model, one) in pairs[:number]), None)
    if repeated is not None:
        raise RequestError("models.repeated_model", model=repeated)
    return pairs


def choose_device(device: str) -> str:
    """`auto` becomes cuda where there is one, else cpu.

    Raises:
        RequestError: torch has no such device here.
    """
    import torch

    from .backbone import usable_device

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    usable_device(device)
    return device


def choose_tap(tap: str | None, module: str | None) -> str:
    """The tap that --tap and --tap-module name; norm2 without either.

    Raises:
        RequestError: both were given.

    >>> choose_tap(None, None), choose_tap(None, "layers.{i}.ffn_norm")
    ('norm2', 'module:layers.{i}.ffn_norm')
    """
    if module is None:
        return tap or "norm2"
    if tap is not None:
        raise RequestError("models.tap_and_module", tap=tap, module=module)
    return f"module:{module}"


def choose_precision(precision: str, device: str) -> str:
    """`auto` is float16 on a GPU and float32 on a CPU, whose half-precision arithmetic is slower."""
    if precision != "auto":
        return precision
    return "float16" if device.startswith("cuda") else "float32"


def choose_storage_dtype(text: str) -> str:
    """The canonical form of `--storage-dtype`: `float16`, or `cls=float32,ap=float16`.

    Raises:
        SpecError: an unknown dtype, or a kind named twice.
        RequestError: an unknown kind.
    """
    from layerbank.cache import kinds_with_own_dtype, storage_dtypes_text

    from .taps import grid_cells

    chosen = storage_dtypes_text(text)
    for kind in kinds_with_own_dtype(chosen):
        if kind not in ("cls", "ap", "patch", "register") and grid_cells(kind) is None:
            raise RequestError("models.unknown_kind_to_store", text=text, kind=kind)
    return chosen


def choose_workers(num_workers: int | None, device: str) -> int:
    """Number of decoding processes: the requested one, else by the number of cores.

    On a CPU one for each 16 cores, hence none on a small machine: decoding takes 1 to 3 % of the time of a ViT-S there, and a
    process beside the model's threads costs more than it saves (`tests/benchmarks/extraction.py`). For a GPU every core but one,
    up to 16.
    """
    if num_workers is not None:
        return num_workers
    cores = num_cores()
    return max(1, min(16, cores - 1)) if device.startswith("cuda") else cores // 16
