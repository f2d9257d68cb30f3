"""The import contracts of pyproject.toml hold, in the tests too, so that nobody has to remember them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_import_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ", 0 broken" in result.stdout


@pytest.mark.parametrize("module", ["layerbank", "layerbank.cli", "layerbank.events", "layerbank.probing.probe_spec"])
def test_importing_the_command_line_imports_neither_torch_nor_zarr(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'zarr', 'timm', 'matplotlib', 'h5py') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_modules_of_the_user_hide_nothing(tmp_path: Path) -> None:
    for name in ("cache", "probes", "pipeline", "layerbank"):  # a clone is a folder named layerbank
        (tmp_path / name).mkdir()
    for name in ("cache", "probes", "pipeline"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user')")
    code = "import layerbank.cli, layerbank.cache, layerbank.probes"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("package", ["layerbank.cache", "layerbank.probes", "layerbank"])
def test_all_is_exactly_what_a_package_exports(package: str) -> None:
    module = import_module(package)
    public = {
        name for name, value in vars(module).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(module.__all__) - {"__version__"} == public - {"annotations"}
