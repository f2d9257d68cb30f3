"""A trained probe as a folder: `probe.safetensors` holds the weights, `probe.json` describes them.

    {"format": 1,
     "head": {"kind": "attentive", "embed_dim": 384, "num_heads": 24, "num_classes": 10},
     "token_shape": [24, 384],
     "config": {...}}

`token_shape` is that of the normalised tokens of an image that the probe was trained on, if the caller gave it: others are refused.
`config` is the caller's: model, levels, kinds, class names, whatever is needed to use the probe again. Both files are staged and
renamed, `probe.json` last: a folder without it holds no probe. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .ensemble import Ensemble
from .errors import CheckpointError, CheckpointMissing, DataError, SettingError
from .heads import HEADS, HeadModule

FORMAT = 1
# of a squared length; tokens that were rounded to float16 after they were normalised are off by 1e-4
LENGTH_TOLERANCE = 5e-3
WEIGHTS, DESCRIPTION = "probe.safetensors", "probe.json"


def save_probe(
    folder: str | os.PathLike[str],
    probe: HeadModule | Ensemble,
    config: Mapping[str, Any],
    *,
    token_shape: Sequence[int] | None = None,
) -> None:
    """Write a probe into a folder, replacing one that is there.

    Args:
        folder: made if missing.
        probe: its weights and statistics are saved.
        config: JSON values; `load_probe` returns them.
        token_shape: (T, D) or (F,) of the normalised tokens of an image that it was trained on; the loaded probe then refuses
            tokens of another number or length. None if they were not normalised: it refuses tokens of another width only.

    Raises:
        SettingError: the config holds something else than JSON values.

    >>> import tempfile
    >>> from layerbank.probes import LinearProbe
    >>> folder = tempfile.mkdtemp()
    >>> save_probe(folder, LinearProbe(8, 3), {"classes": ["a", "b", "c"]}, token_shape=(8,))
    >>> probe, config = load_probe(folder)
    >>> config["classes"]
    ['a', 'b', 'c']
    """
    folder = Path(folder)
    tokens = {} if token_shape is None else {"token_shape": list(token_shape)}
    described = {"format": FORMAT, "head": probe.describe()} | tokens | {"config": dict(config)}
    try:
        description = json.dumps(described, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingError("probes.config_not_json", reason=error) from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)  # never an old description beside new weights
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in probe.state_dict().items()}
    _write(folder / WEIGHTS, save(weights))  # save_file gives a file that nobody else may read
    _write(folder / DESCRIPTION, f"{description}\n".encode())


def load_probe(
    folder: str | os.PathLike[str], *, any_tokens: bool = False
) -> tuple[HeadModule | Ensemble, dict[str, Any]]:
    """Read a probe that `save_probe` wrote.

    Args:
        folder: the folder.
        any_tokens: let the probe compute with tokens of any number and length, without a look at their values: for `vmap`,
            `compile` and loops on a GPU, which would wait for it.

    Returns:
        the probe in evaluation mode, and the caller's config. The probe raises DataError for tokens that it was not trained on.

    Raises:
        CheckpointMissing: the folder holds no probe.
        CheckpointError: a file is damaged or of another format, the head is unknown, or the weights do not belong to it.
    """
    folder = Path(folder)
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointMissing("probes.no_saved_probe", folder=folder, name=name)
    file = folder / DESCRIPTION
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        found, head, config = description["format"], description["head"], dict(description["config"])
        token_shape = description.get("token_shape")
        if token_shape is not None and not all(type(size) in (int, type(None)) for size in token_shape):
            raise ValueError(f"token_shape {token_shape}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError("probes.damaged_description", file=file, reason=repr(error)) from error
    if found != FORMAT:
        raise CheckpointError("probes.checkpoint_format", file=file, expected=FORMAT, found=found)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError("probes.damaged_weights", file=folder / WEIGHTS, reason=error) from error
    try:
        probe = _restore(head, weights)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("probes.unknown_saved_head", file=file, reason=repr(error)) from error
    _check_shapes(folder / WEIGHTS, probe, weights)
    probe.load_state_dict(weights)
    if not any_tokens:
        check = partial(_check_tokens, token_shape)
        probe.register_forward_pre_hook(check, with_kwargs=True)
    return probe.eval(), config


def _check_tokens(
    token_shape: Sequence[int] | None, probe: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Refuse tokens that a loaded probe would compute nonsense with."""
    tokens = torch.as_tensor(next(iter((*arguments, *named.values()))))
    dtype = next(one.dtype for one in probe.state_dict().values() if one.is_floating_point())
    shape = token_shape or _shape_of_head(probe)
    fits = tokens.dtype == dtype and tokens.dim() == len(shape) + 1
    if not fits or any(want not in (None, size) for want, size in zip(shape, tokens.shape[1:], strict=True)):
        letters = ", ".join(["B", *("T" if size is None else str(size) for size in shape)])
        got = f"{tokens.dtype} {list(tokens.shape)}"
        raise DataError("probes.other_tokens", expected=f"{dtype} [{letters}]", got=got)
    if token_shape is None or torch.compiler.is_compiling():  # a graph cannot depend on values
        return
    if not _is_normalized(tokens):
        lengths = torch.linalg.vector_norm(tokens.float(), dim=-1)
        raise DataError("probes.tokens_not_normalized", least=float(lengths.min()), largest=float(lengths.max()))


def _shape_of_head(probe: nn.Module) -> tuple[int | None, ...]:
    """(F,) or (T, D) of the tokens that a head reads; T is None: not known."""
    head: Any = probe.members[0] if isinstance(probe, Ensemble) else probe
    sizes = head.sizes
    return (sizes["num_features"],) if HEADS[head.kind].flat else (None, sizes["embed_dim"])


def _is_normalized(tokens: Tensor) -> bool:
    """Whether tokens [B, T, D] have length 1, or 0 where they are padding; those [B, F] a sum of such squares.

    Tokens that were normalised over the token axis have such sums in each channel.
    """
    squares = tokens.float().square()
    lengths = squares.sum(-1)
    if tokens.dim() == 2:
        return _are_whole(lengths)
    return (_are_whole(lengths) and bool((lengths < 1.5).all())) or _are_whole(squares.sum(1))


def _are_whole(values: Tensor) -> bool:
    return bool(((values - values.round()).abs() < LENGTH_TOLERANCE).all())


def _restore(description: dict[str, Any], weights: dict[str, Tensor], prefix: str = "") -> HeadModule | Ensemble:
    """A probe of the described head, in the dtype of the weights, whose names begin with a prefix."""
    sizes = dict(description)
    kind = sizes.pop("kind")
    if kind == Ensemble.kind:
        return Ensemble([_restore(one, weights, f"members.{number}.") for number, one in enumerate(sizes["members"])])
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    dtype = own.get("classifier.weight", torch.zeros(0)).dtype
    return HEADS.require(kind).module.restore(sizes, own).to(dtype)


def _check_shapes(file: Path, probe: HeadModule | Ensemble, weights: dict[str, Tensor]) -> None:
    expected = {name: list(tensor.shape) for name, tensor in probe.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(
            "probes.foreign_weights",
            file=file,
            expected=", ".join(f"{name} {expected.get(name, 'absent')}" for name in wrong),
            found=", ".join(f"{name} {found.get(name, 'absent')}" for name in wrong),
        )


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)
