"""Weights of a backbone: reading a file, loading strictly, the digest, and errors of downloads.

This module knows no model families.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
import xxhash
from torch import Tensor, nn

from ..errors import RequestError, WorkError, first_line

RANDOM = "random"
_WRAPPERS = ("state_dict", "model", "model_state_dict")  # where training scripts put the weights inside a checkpoint


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Weights in a safetensors file, or in a torch file read with `weights_only=True` (it executes nothing).

    A checkpoint that holds the weights beside other things is unwrapped, and the prefix of distributed
    training is dropped.

    Raises:
        RequestError: no such file, another format, or no tensors in it.
    """
    if not Path(path).is_file():
        raise RequestError("models.no_weights_file", path=path)
    try:
        if Path(path).suffix == ".safetensors":
            content: object = safetensors.torch.load_file(path)
        else:
            content = _load_torch_file(path)
    except (
        Exception
    ) as error:  # the unpickler fails on a damaged file in arbitrary ways, and so do the classes that it makes
        raise RequestError("models.unreadable_weights", path=path, reason=first_line(error)) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    tensors = content if isinstance(content, dict) else {}
    state = {str(key).removeprefix("module."): value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not state:
        raise RequestError("models.no_tensors", path=path, type=type(content).__name__)
    return state


def _load_torch_file(path: str) -> object:
    """Tensors of a torch file, a zip archive or, before torch 1.6, a pickle."""
    with open(path, "rb") as file:
        head = file.read(2)
    if head not in (b"PK", b"\x80\x02"):  # the unpickler fails on other files in arbitrary ways
        raise ValueError("another kind of file")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor of `state`, which comes from `source`, into `model`.

    Raises:
        RequestError: a key is missing, unexpected or of another shape; names the first of each.
    """
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise weights_mismatch(source, type(model).__name__, error) from error


def weights_mismatch(source: str, model: str, error: Exception) -> RequestError:
    """Torch's complaint about a strict load, which lists every key, cut to the first of each kind."""
    complaints = [_first_keys(line.strip()) for line in str(error).splitlines()[1:]] or [f"{error!r}"]
    return RequestError("models.weights_mismatch", source=source, model=model, complaints="; ".join(complaints[:4]))


def _first_keys(complaint: str, limit: int = 3) -> str:
    """One line of torch's complaint with at most `limit` of its keys.

    >>> _first_keys('Missing key(s) in state_dict: "a", "b", "c", "d".')
    'missing a, b, c and 1 more'
    """
    match = re.match(r"(Missing|Unexpected) key\(s\)", complaint)
    if not match:
        return complaint.rstrip(". ")
    keys = re.findall(r'"([^"]+)"', complaint)
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{match[1].lower()} {', '.join(keys[:limit])}{rest}"


def weights_digest(model: nn.Module) -> str:
    """xxh3-128 of names, dtypes, shapes and bytes of a state dict in the order of the names, in hex."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def from_the_hub(model_id: str) -> Iterator[None]:
    """Turn a failed download inside the block into an error that says how to continue without the hub.

    Raises:
        RequestError: the hub has no such repository or file, or there are no weights of that name.
        WorkError: the hub cannot be reached.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except (OSError, RuntimeError, RepositoryNotFoundError, EntryNotFoundError) as error:
        reason = first_line(error)
        absent = isinstance(error, RepositoryNotFoundError | EntryNotFoundError)
        if absent and not isinstance(error, LocalEntryNotFoundError):
            raise RequestError("models.not_on_the_hub", model=model_id, reason=reason) from error
        raise WorkError("models.hub_unreachable", model=model_id, reason=reason[:200]) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back what timm and open_clip say of models without pretrained weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
