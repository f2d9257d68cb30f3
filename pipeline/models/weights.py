"""Weights of a backbone: loading strictly, the digest, values that are not finite, and errors of downloads.

This module knows no model families, and no files: see `weights_file.py`.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import xxhash
from torch import Tensor, nn

from ..errors import RequestError, WorkError, first_line


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
    return _few(match[1].lower(), re.findall(r'"([^"]+)"', complaint), limit) if match else complaint.rstrip(". ")


def _few(what: str, keys: Sequence[str], limit: int = 3) -> str:
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{what} {', '.join(keys[:limit])}{rest}"


def keys_mismatch(source: str, model: str, keys: Mapping[str, Sequence[str]]) -> RequestError:
    """The error for weights that do not fit, with the keys of each kind of difference."""
    complaints = "; ".join(_few(what, names) for what, names in keys.items() if names)
    return RequestError("models.weights_mismatch", source=source, model=model, complaints=complaints)


def weights_digest(model: nn.Module) -> str:
    """xxh3-128 of names, dtypes, shapes and bytes of a state dict in the order of the names, in hex."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy())
    return digest.hexdigest()


def check_finite(model: nn.Module, name: str) -> None:
    """Raise RequestError if weights of a model, by its name, are NaN or infinite."""
    broken = [key for key, tensor in model.named_parameters() if not bool(tensor.detach().isfinite().all())]
    if broken:
        raise RequestError("models.weights_not_finite", model=name, number=len(broken), first=broken[0])


@contextmanager
def from_the_hub(model_id: str) -> Iterator[None]:
    """Turn a failed download inside the block into an error that says how to continue without the hub.

    Raises:
        RequestError: the hub has no such repository or file, there are no weights of that name, or they do not fit the model.
        WorkError: the hub cannot be reached.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except (OSError, RuntimeError, RepositoryNotFoundError, EntryNotFoundError) as error:
        if "loading state_dict" in (reason := first_line(error)):
            raise weights_mismatch(model_id, model_id, error) from error
        absent = isinstance(error, RepositoryNotFoundError | EntryNotFoundError)
        if absent and not isinstance(error, LocalEntryNotFoundError):
            raise RequestError("models.not_on_the_hub", model=model_id, reason=reason) from error
        raise WorkError("models.hub_unreachable", model=model_id, reason=reason[:200]) from error


def hub_file(repository: str, file: str, model_id: str, *, required: bool = False) -> str | None:
    """Path of a file of a repository in the hub's cache, downloaded if need be.

    Args:
        repository: its name, ORG/NAME.
        file: name of the file.
        model_id: for messages.
        required: whether the repository must have it; None is returned for a file that it has not. Without a network a file that is
            not in the cache counts as one that the repository has not.

    Raises:
        RequestError: no such repository, or no such file although it is required.
        WorkError: the hub cannot be reached.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with from_the_hub(model_id):
        try:
            return hf_hub_download(repository, file)
        except EntryNotFoundError as error:
            out_of_reach = isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE
            if required or out_of_reach:  # which is no answer
                raise
            return None


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
