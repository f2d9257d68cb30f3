"""Weights in a checkpoint file: which of its tensors are the backbone's, under whatever prefix and beside whatever else.

A set of weights is named by the path to it: the keys of dictionaries and then the prefix of tensor names, such as
`teacher.module.backbone`, or `.` without any. The rule: where a file has one set, it is taken; where it has several, the one whose
path has one of the words `ema`, `teacher` or `target`, which is the average that its authors evaluate. Where none or several have,
the file is refused until `--weights-key` names one, by its path or by a beginning of it that no other path has. The prefix is
dropped. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..errors import RequestError, first_line
from ..events import OnEvent, WeightsChosen, ignore

AVERAGES = frozenset(("ema", "teacher", "target"))
ROOT = "."  # the set of weights without a path
_TRAINING_PREFIX = re.compile(r"(module\.|_orig_mod\.)*")  # of distributed and compiled modules
_STEM = re.compile(r"(?:^|(?<=\.))(?:visual\.)?(?:trunk\.)?(?:patch_embed|embeds|conv1|embeddings\.patch_embed\w*)\.")
"""Tensors of the first layer of a vision transformer: the prefix before it is that of the whole backbone (or of a CLIP model)."""

_SCALAR: Any = np.float64(0).__reduce__()[0]
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.dtype,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # NumPy 1 and 2
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
]
"""Types beside tensors that training scripts keep in checkpoints: options and NumPy scalars."""


@dataclass
class WeightsChoice:
    """Which set of weights is read.

    Attributes:
        key: as `--weights-key`.
        on_event: called with the choice among several sets.
        was_asked: whether a file was read by it.
    """

    key: str | None = None
    on_event: OnEvent = ignore
    was_asked: bool = False


_CHOICE: ContextVar[WeightsChoice] = ContextVar("choice of weights")


@contextmanager
def weights_chosen_by(key: str | None, on_event: OnEvent) -> Iterator[WeightsChoice]:
    """Within it, files are read by this `--weights-key`, and the choice among several sets of weights is reported.

    The families of models pass on a path alone, those of plug-ins included.
    """
    choice = WeightsChoice(key, on_event)
    token = _CHOICE.set(choice)
    try:
        yield choice
    finally:
        _CHOICE.reset(token)


def read_state_dict(path: str, expected: Collection[str] = ()) -> dict[str, Tensor]:
    """Weights in a safetensors file, or in a torch file read with `weights_only=True`.

    Args:
        path: the file.
        expected: names of the model's tensors, where they are known: a prefix that they have stays.

    Raises:
        RequestError: no such file, another format, no tensors in it, or several sets of weights of which none is to be preferred.
    """
    choice = _CHOICE.get(WeightsChoice())
    choice.was_asked = True
    content = _read(path)
    try:
        sets = dict(_sets_of(content, expected))
    except RecursionError as error:
        reason = "a dictionary that contains itself, or that is nested too deeply"
        raise RequestError("models.unreadable_weights", path=path, reason=reason) from error
    if not sets:
        raise RequestError("models.no_tensors", path=path, type=type(content).__name__)
    chosen = _choose(path, list(sets), choice.key)
    if len(sets) > 1:
        choice.on_event(WeightsChosen(path=path, key=chosen, others=tuple(name for name in sets if name != chosen)))
    return sets[chosen]


def _choose(path: str, names: list[str], key: str | None) -> str:
    """The one set of weights that is meant."""
    if key in names:
        return key
    found = [name for name in names if key is None or name.startswith(f"{key}.")]
    if key is None and len(found) > 1:
        found = [name for name in found if AVERAGES & set(re.split(r"[._]", name))]
    if len(found) != 1:
        shown = ", ".join(names)
        if key is not None:
            raise RequestError("models.unknown_weights_key", path=path, key=key, names=shown)
        raise RequestError("models.several_weights", path=path, names=shown)
    return found[0]


def _sets_of(content: object, expected: Collection[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Path and tensors of each set of weights in a file."""
    dictionaries = dict(_dictionaries(content, ""))
    prefixes = {
        path: {name[: match.start()] for name in tensors if (match := _STEM.search(name))}
        for path, tensors in dictionaries.items()
    }
    if not any(prefixes.values()):  # a model with other names: the largest dictionaries
        least = max(map(len, dictionaries.values()), default=0) / 2
        prefixes = {path: {_shared(tensors)} for path, tensors in dictionaries.items() if len(tensors) >= least}
    for path, found in prefixes.items():
        tensors = dictionaries[path]
        own: dict[str, dict[str, Tensor]] = (
            {"": {}} if set(expected) & set(tensors) else {one: {} for one in sorted(found)}
        )
        for name, value in tensors.items():
            prefix = max(filter(name.startswith, own), key=len, default=None)
            if prefix is not None:
                own[prefix][name.removeprefix(prefix)] = value
        for prefix, named in own.items():
            yield (path + prefix).rstrip(".") or ROOT, named


def _dictionaries(content: object, path: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Path and tensors of each dictionary in a file that holds tensors itself."""
    if not isinstance(content, Mapping):
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor) and value.dim()}
    if tensors:
        scalars = {str(key): value for key, value in content.items() if isinstance(value, Tensor) and not value.dim()}
        yield path, tensors | scalars
    for key, value in content.items():
        yield from _dictionaries(value, f"{path}{key}.")


def _shared(names: Collection[str]) -> str:
    """The prefix that training gives to all names, such as `module.`; "" if some have another one."""
    (found, *others) = {_prefix(name) for name in names}
    return "" if others else found


def _prefix(name: str) -> str:
    match = _TRAINING_PREFIX.match(name)
    assert match is not None
    return match[0]


def shard_names(path: str) -> list[str]:
    """Names of the files of weights that an index lists, which lie beside it; none for a file of weights itself.

    Raises:
        RequestError: an index that cannot be read, or that names files elsewhere.
    """
    if not path.endswith(".index.json"):
        return []
    try:
        names = sorted(set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("weight_map does not name files beside the index")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise RequestError("models.unreadable_weights", path=path, reason=reason) from error
    return names


def _read(path: str) -> object:
    """The content of a file: what it is decides how it is read, not its name. Of an index all of its files."""
    shards = shard_names(path) if Path(path).is_file() else []
    if not shards:
        return _read_file(path)
    content: dict[str, object] = {}
    for shard in shards:
        part = _read_file(str(Path(path).with_name(shard)))
        if not isinstance(part, Mapping):
            raise RequestError("models.no_tensors", path=path, type=type(part).__name__)
        content.update(part)
    return content


def _read_file(path: str) -> object:
    if not Path(path).is_file():
        raise RequestError("models.no_weights_file", path=path)
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        raise RequestError("models.weights_are_lfs_pointer", path=path)
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        raise RequestError("models.weights_are_web_page", path=path)
    try:
        if head[:2] in (b"PK", b"\x80\x02"):  # a zip archive or, before torch 1.6, a pickle
            with torch.serialization.safe_globals(_HARMLESS):
                return torch.load(path, map_location="cpu", weights_only=True)
        return safetensors.torch.load_file(path)
    except (
        Exception
    ) as error:  # the unpickler fails on a damaged file in arbitrary ways, and so do the classes that it makes
        raise RequestError("models.unreadable_weights", path=path, reason=first_line(error)) from error
