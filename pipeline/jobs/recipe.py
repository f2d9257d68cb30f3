"""A recipe: models x data sets x probes x seeds, in TOML. Shipped ones by name (`recipes/*.toml`), others by path.

The decision taken here: a recipe is read and judged as a whole before any work, and all that is wrong with it is told in one error.
Whether a model or a data set can be opened is not known here: that is a failure of its unit, see `studies.py`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..data.catalogue import find_entry, require_entry
from ..data.sources import SOURCES
from ..errors import RequestError
from ..probing.probe_spec import parse_probes
from ..probing.protocols import open_protocol

SHIPPED = Path(__file__).parent
ANY_DEPTH = 12  # for names of probes: the depth of a model is known when it is opened


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a study asks for; every field is a key of the TOML file.

    Attributes:
        models: ids of backbones.
        data: URIs (`demo:digits`, `folder:DIR`), or names of the catalogue (`cifar10`), looked for under the data root.
        probes: names, as `layerbank probe --probe` takes them.
        seeds: of split, initial weights, order, jitter, dropout, each >= 0.
        protocol: paper, quick, or a TOML file, from the folder where the command runs.
        num_heads: train each probe that has heads once with each of these; empty: what its name says.
        weights: model -> `random` or a file; a model that is not here has its pretrained ones.
        image_size: side of the square input in pixels; None is each model's own.
        tap: norm2 or block.
    """

    models: tuple[str, ...]
    data: tuple[str, ...]
    probes: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    protocol: str = "paper"
    num_heads: tuple[int, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    image_size: int | None = None
    tap: str = "norm2"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with layerbank."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def open_recipe(name: str) -> Recipe:
    """Read a recipe by name or path.

    Args:
        name: of a shipped recipe, or a TOML file.

    Raises:
        RequestError: no such recipe, or everything that is wrong with it.
    """
    path = SHIPPED / f"{name}.toml" if name in shipped_recipes() else Path(name)
    if not path.is_file():
        nearest = difflib.get_close_matches(name, shipped_recipes(), n=1, cutoff=0.0)[0]
        raise RequestError(
            where=f"recipe {name!r}",
            expected="a TOML file, or one of " + ", ".join(shipped_recipes()),
            got="no such file",
            todo=f"Did you mean {nearest!r}?",
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(where=f"recipe {path}", expected="TOML", got=str(error), todo="Correct the file.") from error
    problems = _problems(values)
    if problems:
        raise RequestError(
            where=f"recipe {path}",
            expected="models, data and probes, and what else `layerbank study --help` names",
            got="; ".join(problems),
            todo="Correct " + ("this." if len(problems) == 1 else f"all {len(problems)}."),
        )
    checked: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Recipe(**checked)


def _problems(values: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong, in the order of the file, missing keys last."""
    known = [one.name for one in fields(Recipe)]
    problems = []
    for key, value in values.items():
        if key in known:
            problems += _CHECKS[key](key, value)
        else:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            problems.append(f"the key {key!r} (did you mean {nearest!r}?)")
    problems += [f"no {key}" for key in ("models", "data", "probes") if key not in values]
    models = values.get("models", [])
    if isinstance(values.get("weights"), Mapping) and isinstance(models, list):
        problems += [
            f"weights of {model!r}, which is not in models" for model in values["weights"] if model not in models
        ]
    return problems


def _texts(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        return [f"{key} = {value!r} (a list of texts, not empty)"]
    return [f"{one!r} twice in {key}" for one in dict.fromkeys(value) if value.count(one) > 1]


def _counts(least: int) -> Callable[[str, Any], list[str]]:
    def check(key: str, value: Any) -> list[str]:
        numbers = isinstance(value, list) and all(type(one) is int and one >= least for one in value)
        if not numbers or (key == "seeds" and not value) or len(set(value)) < len(value):
            return [f"{key} = {value!r} (a list of different whole numbers from {least})"]
        return []

    return check


def _data(key: str, value: Any) -> list[str]:
    problems = _texts(key, value)
    for one in [] if problems else value:
        scheme, colon, address = one.partition(":")
        if colon and (scheme not in SOURCES or not address):
            problems.append(f"data {one!r} (a scheme among {', '.join(SOURCES)}, then an address)")
        elif not colon and find_entry(one) is None:
            problems.append(f"data {one!r}" + _told(require_entry, one))
    return problems


def _probes(key: str, value: Any) -> list[str]:
    problems = _texts(key, value)
    for one in [] if problems else value:
        told = _told(parse_probes, [one], ANY_DEPTH)
        if told and "@" not in one:  # which levels there are is the model's to say
            problems.append(f"probe {one!r}{told}")
    return problems


def _protocol(key: str, value: Any) -> list[str]:
    told = _told(open_protocol, value, seed=0) if isinstance(value, str) else " (a name or a file)"
    return [f"{key} = {value!r}{told}"] if told else []


def _weights(key: str, value: Any) -> list[str]:
    fits = isinstance(value, Mapping) and all(isinstance(one, str) and one for one in value.values())
    return [] if fits else [f'{key} = {value!r} (a table of model = "random" or a file)']


def _image_size(key: str, value: Any) -> list[str]:
    return [] if type(value) is int and value >= 1 else [f"{key} = {value!r} (pixels, from 1)"]


def _tap(key: str, value: Any) -> list[str]:
    return [] if value in ("norm2", "block") else [f"{key} = {value!r} (norm2 or block)"]


def _told(attempt: Callable[..., object], *arguments: Any, **more: Any) -> str:
    """What an attempt is refused with, in brackets; "" if it is not."""
    try:
        attempt(*arguments, **more)
    except RequestError as error:
        return f" ({error.todo.rstrip('.')})"
    return ""


_CHECKS: Mapping[str, Callable[[str, Any], list[str]]] = {
    "models": _texts,
    "data": _data,
    "probes": _probes,
    "seeds": _counts(0),
    "protocol": _protocol,
    "num_heads": _counts(1),
    "weights": _weights,
    "image_size": _image_size,
    "tap": _tap,
}
