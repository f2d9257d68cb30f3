"""A trained probe as a folder: `probe.safetensors` holds the weights, `probe.json` what they are.

    {"format": 1,
     "head": {"kind": "attentive", "embed_dim": 384, "num_heads": 24, "num_classes": 10},
     "config": {...}}

`config` is the caller's: model, levels, kinds, class names, whatever it takes to use the probe again. Both
files are written aside and renamed, `probe.json` last: a folder without it holds no probe. Nothing is ever
unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .ensemble import Ensemble
from .errors import CheckpointError, CheckpointMissing
from .heads import ZOO, ZooProbe
from .heads.attentive import AttentiveProbe
from .heads.knn import KnnProbe
from .heads.linear import LinearProbe

Probe = AttentiveProbe | LinearProbe | KnnProbe | ZooProbe | Ensemble

FORMAT = 1
WEIGHTS, DESCRIPTION = "probe.safetensors", "probe.json"


def save_probe(folder: str | os.PathLike[str], probe: Probe, config: Mapping[str, Any]) -> None:
    """Write a probe into a folder, replacing one that is there.

    Args:
        folder: made if missing.
        probe: its weights and statistics are saved.
        config: JSON values; comes back from `load_probe`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = json.dumps({"format": FORMAT, "head": _describe(probe), "config": dict(config)}, indent=2)
    (folder / DESCRIPTION).unlink(missing_ok=True)  # never old words beside new weights
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in probe.state_dict().items()}
    staging = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file(weights, staging)
    _commit(staging, folder / WEIGHTS)
    staging = folder / f".{DESCRIPTION}.{os.getpid()}"
    staging.write_text(description + "\n", encoding="utf-8")
    _commit(staging, folder / DESCRIPTION)


def load_probe(
    folder: str | os.PathLike[str],
) -> tuple[Probe, dict[str, Any]]:
    """Read a probe that `save_probe` wrote.

    Returns:
        the probe in evaluation mode, and the caller's config.

    Raises:
        CheckpointMissing: the folder holds no probe.
        CheckpointError: a file is damaged, of another format, or the weights are not those of the head.
    """
    folder = Path(folder)
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointMissing(
                where=str(folder),
                expected=f"the file {name}",
                got="none",
                todo="Train and save the probe again.",
            )
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        found, head, config = description["format"], description["head"], description["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / DESCRIPTION, f"JSON with format, head and config ({error!r})") from error
    if found != FORMAT:
        raise CheckpointError(
            where=str(folder / DESCRIPTION),
            expected=f"format {FORMAT}",
            got=f"format {found}",
            todo="Load it with the version that wrote it.",
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise _damaged(folder / WEIGHTS, f"a safetensors file ({error})") from error
    try:
        probe = _make(head, weights)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / DESCRIPTION, f"a head this version knows ({error!r})") from error
    _check_shapes(folder / WEIGHTS, probe, weights)
    probe.load_state_dict(weights)
    return probe.eval(), config


def _describe(probe: Probe) -> dict[str, Any]:
    if isinstance(probe, Ensemble):
        members: list[Any] = list(probe.members)
        return {"kind": "ensemble", "members": [_describe(member) for member in members]}
    if isinstance(probe, ZooProbe):
        return {"kind": probe.kind, **probe.sizes}
    if isinstance(probe, LinearProbe):
        return {"kind": "linear", "num_features": probe.num_features, "num_classes": probe.num_classes}
    if isinstance(probe, KnnProbe):
        return {
            "kind": "knn",
            "num_samples": len(probe.bank),
            "num_features": probe.num_features,
            "num_classes": probe.num_classes,
            "num_neighbors": probe.num_neighbors,
            "temperature": probe.temperature,
        }
    return {
        "kind": "attentive",
        "embed_dim": probe.embed_dim,
        "num_heads": probe.num_heads,
        "num_classes": probe.num_classes,
    }


def _make(head: dict[str, Any], weights: dict[str, torch.Tensor]) -> Probe:
    """A probe of the described head, in the dtype of the weights."""
    sizes = dict(head)
    kind = sizes.pop("kind")
    probe: Probe
    if kind == "ensemble":
        members: list[Any] = [
            _make(member, _of_member(number, weights)) for number, member in enumerate(sizes["members"])
        ]
        return Ensemble(members)
    if kind == "linear":
        probe = LinearProbe(**sizes)
    elif kind == "knn":
        shape = (sizes.pop("num_samples"), sizes.pop("num_features"))
        num_classes = sizes.pop("num_classes")
        return KnnProbe(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64), num_classes, **sizes)
    elif kind == "attentive":
        mask = weights.get("token_mask")
        probe = AttentiveProbe(**sizes, token_mask=None if mask is None else torch.ones_like(mask))
    elif kind in ZOO:
        probe = ZOO[kind](**sizes)
    else:
        raise ValueError(f"kind {kind!r}")
    return probe.to(weights.get("classifier.weight", torch.zeros(0)).dtype)


def _of_member(number: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = f"members.{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _check_shapes(file: Path, probe: Probe, weights: dict[str, torch.Tensor]) -> None:
    expected = {name: list(tensor.shape) for name, tensor in probe.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(
            where=str(file),
            expected=", ".join(f"{name} {expected.get(name, 'absent')}" for name in wrong),
            got=", ".join(f"{name} {found.get(name, 'absent')}" for name in wrong),
            todo=f"The weights do not belong to {DESCRIPTION}; save the probe again.",
        )


def _damaged(file: Path, expected: str) -> CheckpointError:
    return CheckpointError(
        where=str(file),
        expected=expected,
        got="something else",
        todo="The file is damaged; save the probe again.",
    )


def _commit(staging: Path, target: Path) -> None:
    with staging.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(staging, target)
