"""A trained probe as a folder: `probe.safetensors` holds the weights, `probe.json` describes them.

    {"format": 1,
     "head": {"kind": "attentive", "embed_dim": 384, "num_heads": 24, "num_classes": 10},
     "config": {...}}

`config` is the caller's: model, levels, kinds, class names, whatever is needed to use the probe again. Both files are staged and
renamed, `probe.json` last: a folder without it holds no probe. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .ensemble import Ensemble
from .errors import CheckpointError, CheckpointMissing
from .heads import HEADS, HeadModule

FORMAT = 1
WEIGHTS, DESCRIPTION = "probe.safetensors", "probe.json"


def save_probe(folder: str | os.PathLike[str], probe: HeadModule | Ensemble, config: Mapping[str, Any]) -> None:
    """Write a probe into a folder, replacing one that is there.

    Args:
        folder: made if missing.
        probe: its weights and statistics are saved.
        config: JSON values; `load_probe` returns them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = json.dumps(
        {"format": FORMAT, "head": probe.describe(), "config": dict(config)}, indent=2, allow_nan=False
    )
    (folder / DESCRIPTION).unlink(missing_ok=True)  # never an old description beside new weights
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in probe.state_dict().items()}
    _write(folder / WEIGHTS, save(weights))  # save_file gives a file that nobody else may read
    _write(folder / DESCRIPTION, f"{description}\n".encode())


def load_probe(folder: str | os.PathLike[str]) -> tuple[HeadModule | Ensemble, dict[str, Any]]:
    """Read a probe that `save_probe` wrote.

    Returns:
        the probe in evaluation mode, and the caller's config.

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
        found, head, config = description["format"], description["head"], description["config"]
    except (ValueError, KeyError, TypeError) as error:
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
    return probe.eval(), config


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
