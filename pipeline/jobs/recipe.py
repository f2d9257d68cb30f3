"""A recipe: a `StudyJob` in TOML. Shipped recipes by name (`recipes/*.toml`), others by path.

The decision taken here: a study is checked as a whole before any work, and one error names all that is wrong with it. Whether a
model or a data set can be opened is not checked here: that is a failure of its unit, see `units.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..data.catalogue import find_entry, require_entry
from ..data.sources import SOURCES
from ..errors import RequestError, advice, shown
from ..probing.probe_spec import check_names
from ..probing.protocols import open_protocol
from ..toml_file import read_toml
from .job import HEADER, NEVER_IN_FILES, StudyJob, job_value

SHIPPED = Path(__file__).parent / "recipes"


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with layerbank."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def open_recipe(name: str) -> StudyJob:
    """Read a recipe by name or path.

    Args:
        name: name of a shipped recipe, or path of a TOML file.

    Raises:
        RequestError: no such recipe, or the recipe is wrong; the message names every problem.

    >>> import layerbank as lb
    >>> lb.open_recipe("smoke").probes
    ('linear-cls', 'alf', 'alf-grid2')
    """
    path = SHIPPED / f"{name}.toml" if name in shipped_recipes() else Path(name)
    if not path.is_file():
        names = shipped_recipes()
        is_path = path.suffix == ".toml" or len(path.parts) > 1
        todo = "Check the path." if is_path else advice(name, names)
        raise RequestError("jobs.recipe_not_found", name=name, names=", ".join(names), advice=todo)
    try:
        values = read_toml(path)
    except (OSError, ValueError) as error:
        raise RequestError("jobs.recipe_not_toml", path=path, error=error) from error
    _refuse(_problems(values), f"recipe {path}")
    return StudyJob.from_dict(values)


def check_study(job: StudyJob) -> None:
    """Refuse a study made in Python for what a recipe is refused for.

    Raises:
        RequestError: names every problem.
    """
    _refuse(
        _problems({one.name: getattr(job, one.name) for one in fields(job) if one.name not in NEVER_IN_FILES}),
        "study job",
    )


def _refuse(problems: Sequence[str], where: str) -> None:
    if problems:
        raise RequestError("jobs.recipe_invalid", where=where, problems="; ".join(problems), num_problems=len(problems))


def _problems(values: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong, in the order of the file, missing keys last."""
    known = {one.name: one.default is MISSING and one.default_factory is MISSING for one in fields(StudyJob)}
    problems = []
    for key, value in values.items():
        if key in NEVER_IN_FILES:
            problems.append(f"{key} (no file can give this permission: use --{key.replace('_', '-')} MODEL)")
        elif key in known:
            problems += _problems_of_value(key, value)
        elif key not in HEADER:
            problems.append(f"the key {key!r} ({advice(key, known).rstrip('.')})")
    problems += [f"no {key}" for key, is_required in known.items() if is_required and key not in values]
    weights, models = values.get("weights"), values.get("models", ())
    if isinstance(weights, Mapping) and isinstance(models, list | tuple):
        problems += [f"weights of {model!r}, which is not in models" for model in weights if model not in models]
    return problems


def _problems_of_value(key: str, value: Any) -> list[str]:
    try:
        value = job_value(StudyJob, key, value)
    except RequestError as error:
        return [f"{key} = {shown(value)} ({error.expected})"]
    each = value if isinstance(value, tuple) else (value,)
    counts = Counter(value) if isinstance(value, tuple) else Counter()
    if twice := [one for one, count in counts.items() if count > 1]:
        return [f"{one!r} twice in {key}" for one in twice]
    if "" in each:
        return [f"{key} = {shown(value)} (no empty text)"]
    problem_of = _CHECKS.get(key, lambda one: "")
    return [problem for one in each if (problem := problem_of(one))]


def _problem_of_data(name: str) -> str:
    scheme, colon, address = name.partition(":")
    if colon and (scheme not in SOURCES or not address):
        return f"data {name!r} (a scheme among {', '.join(SOURCES)}, then an address)"
    return f"data {name!r}" + _reason(require_entry, name) if not colon and find_entry(name) is None else ""


def _problem_of_probe(name: str) -> str:
    reason = _reason(check_names, [name])
    return f"probe {name!r}{reason}" if reason else ""


def _problem_of_protocol(name: str) -> str:
    reason = _reason(open_protocol, name, seed=0)
    return f"protocol = {name!r}{reason}" if reason else ""


def _reason(attempt: Callable[..., object], *arguments: Any, **more: Any) -> str:
    """Return the advice of the error that an attempt raises, in brackets; "" if it succeeds."""
    try:
        attempt(*arguments, **more)
    except RequestError as error:
        return f" ({error.todo.rstrip('.')})"
    return ""


_CHECKS: Mapping[str, Callable[[Any], str]] = {
    "data": _problem_of_data,
    "probes": _problem_of_probe,
    "protocol": _problem_of_protocol,
}
