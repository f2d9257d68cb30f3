"""A recipe: models x data sets x probes x seeds, in TOML. Shipped recipes by name (`recipes/*.toml`), others by path.

The decision taken here: a recipe is checked as a whole before any work, and one error names all that is wrong with it. Whether a
model or a data set can be opened is not checked here: that is a failure of its unit, see `units.py`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from ..data.catalogue import find_entry, require_entry
from ..data.sources import SOURCES
from ..errors import RequestError, nearest_name
from ..probing.probe_spec import parse_probes
from ..probing.protocols import open_protocol
from .job import NEVER_IN_FILES, ProbeJob, job_value

SHIPPED = Path(__file__).parent / "recipes"
_OF_THE_STUDY = (
    "data",
    "model",
    "weights",
    "cache_root",
    "runs_root",
    "device",
    "memory",
    "workers",
    "tap",
    "tap_module",
)
MORE = tuple(
    one.name
    for one in fields(ProbeJob)
    if one.name not in (*_OF_THE_STUDY, *NEVER_IN_FILES, "probes", "seeds", "protocol", "num_heads", "image_size")
)
ANY_DEPTH = 12  # to check names of probes: the depth of a model is known when it is opened


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The parts of a study; every field but `file` is a key of the TOML file.

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
        more: any other field of `ProbeJob`, such as storage_dtype or sweep; the keys of the TOML file that are not above.
        file: where it was read from, for messages; None for one that was made in Python.
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
    more: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = field(default=None, compare=False)

    def option(self, name: str) -> Any:
        """The value of a field of `ProbeJob` that has no field here: that of the recipe, or the default."""
        return self.more.get(name, ProbeJob.__dataclass_fields__[name].default)

    @property
    def splits(self) -> tuple[str, str]:
        """Names of the training and the test split."""
        return self.option("train_split"), self.option("test_split")


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with layerbank."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def open_recipe(name: str) -> Recipe:
    """Read a recipe by name or path.

    Args:
        name: name of a shipped recipe, or path of a TOML file.

    Raises:
        RequestError: no such recipe, or the recipe is wrong; the message names every problem.
    """
    path = SHIPPED / f"{name}.toml" if name in shipped_recipes() else Path(name)
    if not path.is_file():
        names = shipped_recipes()
        nearest = nearest_name(name, names)
        raise RequestError("jobs.recipe_not_found", name=name, names=", ".join(names), nearest=nearest)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError("jobs.recipe_not_toml", path=path, error=error) from error
    if problems := _problems(values):
        raise RequestError("jobs.recipe_invalid", path=path, problems="; ".join(problems), num_problems=len(problems))
    checked: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    more = {key: job_value(ProbeJob, key, checked.pop(key), str(path)) for key in MORE if key in checked}
    return Recipe(**checked, more=more, file=path)


def _problems(values: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong, in the order of the file, missing keys last."""
    known = [*_CHECKS, *MORE]
    problems = []
    for key, value in values.items():
        if key in MORE:
            problems += (
                [f"{key} = {value!r}{reason}"] if (reason := _reason(job_value, ProbeJob, key, value, "")) else []
            )
        elif key in known:
            problems += _CHECKS[key](key, value)
        elif key in NEVER_IN_FILES:
            problems.append(f"{key} (no file can give this permission: use --{key.replace('_', '-')} MODEL)")
        else:
            nearest = nearest_name(key, known)
            problems.append(f"the key {key!r} (did you mean {nearest!r}?)")
    problems += [f"no {key}" for key in ("models", "data", "probes") if key not in values]
    models = values.get("models", [])
    if isinstance(values.get("weights"), Mapping) and isinstance(models, list):
        problems += [
            f"weights of {model!r}, which is not in models" for model in values["weights"] if model not in models
        ]
    return problems


def _form(expected: str, fits: Callable[[Any], bool]) -> Callable[[str, Any], list[str]]:
    return lambda key, value: [] if fits(value) else [f"{key} = {value!r} ({expected})"]


def _numbers(least: int, *, may_be_empty: bool) -> Callable[[str, Any], list[str]]:
    def fits(value: Any) -> bool:
        numbers = isinstance(value, list) and all(type(one) is int and one >= least for one in value)
        return numbers and len(set(value)) == len(value) and (may_be_empty or bool(value))

    return _form(f"a list of different whole numbers from {least}", fits)


def _texts(key: str, value: Any, problem_of: Callable[[str], str] = lambda text: "") -> list[str]:
    """Problems of a list of texts, and of each text by itself."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        return [f"{key} = {value!r} (a list of texts, not empty)"]
    twice = [f"{one!r} twice in {key}" for one in dict.fromkeys(value) if value.count(one) > 1]
    return twice or [problem for one in value if (problem := problem_of(one))]


def _problem_of_data(name: str) -> str:
    scheme, colon, address = name.partition(":")
    if colon and (scheme not in SOURCES or not address):
        return f"data {name!r} (a scheme among {', '.join(SOURCES)}, then an address)"
    return f"data {name!r}" + _reason(require_entry, name) if not colon and find_entry(name) is None else ""


def _problem_of_probe(name: str) -> str:
    reason = _reason(parse_probes, [name], ANY_DEPTH)
    return f"probe {name!r}{reason}" if reason and "@" not in name else ""  # the levels after @ depend on the model


def _protocol(key: str, value: Any) -> list[str]:
    reason = _reason(open_protocol, value, seed=0) if isinstance(value, str) else " (a name or a file)"
    return [f"{key} = {value!r}{reason}"] if reason else []


def _is_table_of_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, str) and one for one in value.values())


def _reason(attempt: Callable[..., object], *arguments: Any, **more: Any) -> str:
    """Return the advice of the error that an attempt raises, in brackets; "" if it succeeds."""
    try:
        attempt(*arguments, **more)
    except RequestError as error:
        return f" ({error.todo.rstrip('.')})"
    return ""


_CHECKS: Mapping[str, Callable[[str, Any], list[str]]] = {
    "models": _texts,
    "data": partial(_texts, problem_of=_problem_of_data),
    "probes": partial(_texts, problem_of=_problem_of_probe),
    "seeds": _numbers(0, may_be_empty=False),
    "protocol": _protocol,
    "num_heads": _numbers(1, may_be_empty=True),
    "weights": _form('a table of model = "random" or a file', _is_table_of_texts),
    "image_size": _form("pixels, from 1", lambda value: type(value) is int and value >= 1),
    "tap": _form("norm2 or block", lambda value: value in ("norm2", "block")),
}
