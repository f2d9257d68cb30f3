"""The import contracts of pyproject.toml hold, in the tests too, so that nobody has to remember them."""

from __future__ import annotations

import ast
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
    public |= set(getattr(module, "_HOMES", ()))  # names that are loaded when they are used
    assert set(module.__all__) - {"__version__"} == public - {"annotations", "TYPE_CHECKING", "Any"}


def sources() -> list[Path]:
    return [path for folder in ("cache", "probes", "pipeline") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_a_folder_is_small_and_says_what_belongs_there() -> None:
    folders = {path.parent for path in sources()}
    assert {
        folder.name: len(list(folder.glob("*.py"))) for folder in folders if len(list(folder.glob("*.py"))) > 21
    } == {}
    documented = [ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) for folder in folders]
    assert all(documented)


def test_no_function_is_longer_than_60_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []


def test_no_module_imports_the_package_it_lies_in() -> None:
    """A cycle that import-linter does not see, for a package and its modules are no siblings."""
    upward = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level and node.module is None
        for alias in node.names
        if not _is_module(path, node.level, alias.name) and alias.name != "__version__"
    ]
    assert upward == []


def _is_module(path: Path, level: int, name: str) -> bool:
    folder = path.parents[level - 1]
    return (folder / f"{name}.py").exists() or (folder / name).is_dir()


def test_no_test_file_imports_another() -> None:
    files = sorted((ROOT / "tests").glob("*.py"))
    names = {path.stem for path in files if path.stem.startswith("test_")}
    imports = [
        f"{path.name} imports {node.module}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] in names
    ]
    assert imports == []
