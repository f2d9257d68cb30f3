"""Python and its packages: there, new enough, importable, and made for each other."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

from .finding import OK, PROBLEM, Finding, first_line

PYTHON_FLOOR = (3, 11)
IMPORTED = ("numpy", "torch", "torchvision", "timm", "open_clip", "zarr", "numcodecs", "h5py", "PIL", "safetensors")
BROKEN = (ImportError, RuntimeError, OSError, AttributeError)  # what imports of halves that do not fit raise


def check_python() -> list[Finding]:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < PYTHON_FLOOR:
        return [Finding("python", PROBLEM, found, "Make a virtual environment with Python 3.11 or newer.")]
    return [Finding("python", OK, found)]


def check_versions(requirements: Sequence[str] | None = None) -> list[Finding]:
    """Every package that layerbank needs, against the oldest version that it works with.

    Args:
        requirements: as `name>=floor`; None is what the installed layerbank says.
    """
    if requirements is None:
        try:
            requirements = requires("layerbank") or []
        except PackageNotFoundError:
            todo = "Install it: pip install -e . in its folder."
            return [Finding("libraries", PROBLEM, "layerbank itself is not installed, only its files are here", todo)]
    findings, sound = [], []
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
            sound.append(f"{name} {installed}")
    return [*findings, Finding("libraries", OK, ", ".join(sound))]


def check_imports(modules: Sequence[str] = IMPORTED) -> list[Finding]:
    """Import what layerbank stands on."""
    findings, sound = [], []
    for name in modules:
        try:
            import_module(name)
        except BROKEN as error:
            findings.append(Finding(f"import {name}", PROBLEM, first_line(error), _todo(name, error)))
        else:
            sound.append(name)
    return [*findings, Finding("imports", OK, ", ".join(sound))]


def check_operators() -> list[Finding]:
    """torch and torchvision are two packages with compiled halves of one thing: one operator of the second is called."""
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
