"""The rooms keep to themselves, and importing the tool costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline import RequestError

ROOT = Path(pipeline.__file__).parent.parent


def test_the_contracts_between_the_rooms_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("module", ["pipeline", "pipeline.cli", "pipeline.events", "pipeline.probing.probe_names"])
def test_importing_the_tool_imports_neither_torch_nor_zarr(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'zarr', 'timm', 'matplotlib', 'h5py') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_foreign_package_named_cache_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "cache"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pipeline"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert RequestError.__name__ in result.stderr
    assert "package 'cache': expected layerbank's own" in result.stderr
    assert "Rename or uninstall" in result.stderr


@pytest.mark.parametrize("room", ["cache", "probes", "pipeline"])
def test_all_is_exactly_what_the_room_offers(room: str) -> None:
    module = __import__(room)
    public = {name for name, value in vars(module).items() if not name.startswith("_") and not _is_module(value)}
    public -= {"annotations", "find_spec", "Path"}
    assert set(module.__all__) == public
    assert len(module.__all__) == len(set(module.__all__))


def _is_module(value: object) -> bool:
    return type(value).__name__ == "module"
