"""Models that a repository's `hubconf.py` builds, by `torchhub:<repo>:<entry>`: for example DINOv2's own code.

The repository is `owner/name[:ref]` on GitHub or a folder. **Its code runs here**, so it is opened only with permission, see
`trust.py`. The transform is the one DINO, DINOv2 and MAE are evaluated with,
at 224 pixels unless `--image-size` says otherwise: a hub entry has none.

The architecture's text holds a digest of the file that defines the model's class, because the entry's name says nothing of what
the code does today. It covers no file imported from there.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from xxhash import xxh3_64_hexdigest

from ...errors import RequestError, WorkError, first_line
from ..families import RANDOM, ModelFamily
from ..tower import Tower
from ..vit_parts import final_norm, find_blocks, layout_of
from ..weights import load_strictly
from ..weights_file import read_state_dict
from .timm_models import transform_text

IMAGE_SIZE = 224
EVALUATION = {
    "crop_pct": 0.875,  # 224 / 256
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def open_torchhub(model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    """Build a model of a torch hub repository, by default at 224 pixels; for the arguments see `families.OpenModel`.

    Raises:
        RequestError: no such repository or entry, weights that do not fit, no vision transformer, or one that does not run at this
            size.
        WorkError: GitHub cannot be reached.
    """
    repo, entry = _split(model_id)
    local = _is_folder(repo)
    if local:
        repo = _absolute(repo, Path.cwd())
        if not (Path(repo) / "hubconf.py").is_file():
            raise RequestError("models.no_hubconf", model=model_id, folder=repo)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(model_id, repo, entry, weights, local=local).eval()
    if weights is not None and weights != RANDOM:
        load_strictly(model, read_state_dict(weights, model.state_dict()), f"--weights {weights}")
    size = IMAGE_SIZE if image_size is None else image_size
    name = f"torchhub:{Path(repo).name}:{entry}" if local else model_id
    forward: Callable[[Tensor], Any] = getattr(model, "forward_features", model)
    layout = layout_of(model, name, (size, size), chosen=True)
    try:
        with torch.inference_mode():
            forward(torch.zeros(1, 3, size, size, dtype=next(model.parameters()).dtype))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise RequestError("models.does_not_run", model=name, size=size, reason=first_line(error)) from error
    blocks = find_blocks(model, name, tap, forward, (size, size))
    last, final, how = final_norm(model, blocks)
    code_digest = xxh3_64_hexdigest(Path(inspect.getfile(type(model))).read_bytes())
    config: dict[str, Any] = EVALUATION | {"input_size": (3, size, size)}
    return Tower(
        name=name,
        model=model,
        forward=forward,
        blocks=blocks,
        second_norm="norm2",
        last=last,
        final=final,
        layout=layout,
        image_size=(size, size),
        transform=create_transform(**config, is_training=False),
        transform_id=transform_text(config),
        architecture=f"{name} image={size}x{size} final={how} positions=own code={code_digest}",
    )


def _split(model_id: str) -> tuple[str, str]:
    """Repository and entry of an id; a reference of the repository holds a colon too.

    >>> _split("torchhub:facebookresearch/dinov2:main:dinov2_vits14")
    ('facebookresearch/dinov2:main', 'dinov2_vits14')
    """
    repo, _, entry = model_id.removeprefix("torchhub:").rpartition(":")
    if not model_id.startswith("torchhub:") or not repo or not entry or ("/" not in repo and not repo.startswith(".")):
        raise RequestError("models.bad_torchhub_id", model=model_id)
    return repo, entry


def code_of(model_id: str, folder: Path) -> str:
    """The id with the absolute path of a repository that is a folder; relative ones lie in `folder`.

    >>> code_of("torchhub:./vits/../tiny:small", Path("/models"))
    'torchhub:/models/tiny:small'

    Raises:
        RequestError: it is no id of this family.
    """
    repo, entry = _split(model_id)
    return f"torchhub:{_absolute(repo, folder) if _is_folder(repo) else repo}:{entry}"


def _is_folder(repo: str) -> bool:
    return repo.startswith((".", "/", "~"))


def _absolute(repo: str, folder: Path) -> str:
    return os.path.realpath(folder / os.path.expanduser(repo))


def _build(model_id: str, repo: str, entry: str, weights: str | None, *, local: bool) -> nn.Module:
    """Call the entry, with `pretrained` as most take it; one that does not brings the weights it brings."""

    def load(**options: Any) -> Any:
        if local:
            return torch.hub.load(repo, entry, source="local", **options)  # type: ignore[no-untyped-call]
        return torch.hub.load(repo, entry, trust_repo=True, verbose=False, **options)  # type: ignore[no-untyped-call]

    try:
        try:
            model = load(pretrained=weights is None)
        except TypeError as error:
            if "pretrained" not in str(error):
                raise
            if weights == RANDOM:
                raise RequestError("models.entry_without_pretrained", model=model_id, entry=entry) from error
            model = load()
    except (RuntimeError, ModuleNotFoundError) as error:
        if not isinstance(error, ModuleNotFoundError) and not str(error).startswith(("Cannot find", "Missing dep")):
            raise
        raise RequestError("models.entry_not_loaded", model=model_id, entry=entry, reason=error) from error
    except OSError as error:
        reason = first_line(error)[:200]
        raise WorkError("models.torchhub_unreachable", model=model_id, reason=reason) from error
    if not isinstance(model, nn.Module):
        raise RequestError("models.entry_is_no_module", model=model_id, entry=entry, type=type(model).__name__)
    return model


TORCHHUB = ModelFamily(form="torchhub:REPO:ENTRY", open=open_torchhub, code_of=code_of)
