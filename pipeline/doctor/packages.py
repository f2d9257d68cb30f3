"""Python and its packages: present, new enough, importable, and built for each other; plug-ins of the registries."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pkgutil import resolve_name

from ..errors import first_line
from .finding import OK, PROBLEM, WARNING, Finding

IMPORTED = ("numpy", "torch", "torchvision", "timm", "open_clip", "zarr", "numcodecs", "h5py", "PIL", "safetensors")
REGISTRIES = (
    "layerbank.data.sources:SOURCES",
    "layerbank.models.families:MODEL_FAMILIES",
    "layerbank.probes.heads.registry:HEADS",
    "layerbank.probes.tasks.registry:TASKS",
    "layerbank.report.figures:FIGURES",
)
BROKEN = (ImportError, RuntimeError, OSError, AttributeError)  # raised by packages that were built for other versions


def check_versions(requirements: Sequence[str] | None = None) -> list[Finding]:
    """Report the version of Python, and compare each package that layerbank needs with the oldest version that works.

    Args:
        requirements: as `name>=floor`; None is those of the installed layerbank.
    """
    findings, working = [Finding("python", OK, f"{sys.version.split()[0]} at {sys.executable}")], []
    try:
        requirements = requires("layerbank") or [] if requirements is None else requirements
    except PackageNotFoundError:
        todo = "Install it: pip install -e . in its folder."
        return [*findings, Finding("packages", PROBLEM, "layerbank is not installed, only its files are here", todo)]
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)\s*>=\s*([\w.]+)", requirement)
        if match is None:  # of an extra: not needed
            continue
        name, floor = match.groups()
        try:
            installed = version(name)
        except PackageNotFoundError:
            findings.append(Finding(name, PROBLEM, "not installed", f"Install it: pip install '{name}>={floor}'."))
            continue
        if _numbers(installed) < _numbers(floor):
            todo = f"{floor} is the oldest that works: pip install --upgrade '{name}>={floor}'."
            findings.append(Finding(name, PROBLEM, installed, todo))
        else:
            working.append(f"{name} {installed}")
    return [*findings, Finding("packages", OK, ", ".join(working))]


def check_imports(modules: Sequence[str] = IMPORTED) -> list[Finding]:
    """Import the large packages that layerbank needs."""
    findings, working = [], []
    for name in modules:
        try:
            import_module(name)
        except BROKEN as error:
            findings.append(Finding(f"import {name}", PROBLEM, first_line(error), _todo(name, error)))
        else:
            working.append(name)
    return [*findings, Finding("imports", OK, ", ".join(working))]


def check_operators() -> list[Finding]:
    """Call one compiled operator of torchvision: it works only with the torch that it was built for."""
    name = "torch with torchvision"
    try:
        import torch
        import torchvision  # type: ignore[import-untyped]
        from torchvision.ops import nms  # type: ignore[import-untyped]

        kept = nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except BROKEN as error:
        return [Finding(name, PROBLEM, first_line(error), _todo("torchvision", error))]
    found = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    return [Finding(name, OK if kept.tolist() == [0] else PROBLEM, found)]


def check_plugins(registries: Sequence[str] = REGISTRIES) -> list[Finding]:
    """List plug-ins that cannot be used.

    Args:
        registries: every `Registry`, as `module:name`.
    """
    todo = "Repair or uninstall its package; everything else works without it."
    findings = [
        Finding(f"plug-in {name}", WARNING, f"{registry.noun}: {reason}", todo)
        for registry in map(resolve_name, registries)
        for name, reason in registry.broken.items()
    ]
    return findings or [Finding("plug-ins", OK, "none is broken")]


def _todo(name: str, error: BaseException) -> str:
    if name == "torchvision" and ("torchvision::" in str(error) or "undefined symbol" in str(error)):
        return (
            "The two were built for different versions of each other: install both anew, in one command and from one place: "
            "pip install --force-reinstall torch torchvision."
        )
    if isinstance(error, ModuleNotFoundError):
        return f"Install what is missing: pip install {error.name}."
    if "numpy" in str(error).lower():
        return f"{name} and numpy do not fit: pip install --force-reinstall {name} numpy."
    return f"Install it anew: pip install --force-reinstall {name}."


def _numbers(text: str) -> tuple[int, ...]:
    """
    >>> _numbers("2.14.1+cpu") > _numbers("2.6"), _numbers("0.30rc1") < _numbers("0.31")
    (True, True)
    """
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[+a-z]", text)[0]))
