"""What is installed: one package, whole, that no module of the user can hide and that hides none of theirs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from photos import TINY_MODEL, write_photos

import hatch_build

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"pipeline": "layerbank", "cache": "layerbank/cache", "probes": "layerbank/probes"}
NAMES = ("cache", "probes", "pipeline")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, what it needs, and distributions of other people named cache, probes and pipeline."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    site.joinpath("needed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    for name in NAMES:
        site.joinpath(name).mkdir()
        site.joinpath(name, "__init__.py").write_text("raise SystemExit('a distribution of other people was imported')")
        site.joinpath(f"{name}-9.0.dist-info").mkdir()
        site.joinpath(f"{name}-9.0.dist-info", "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n"
        )
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    return folder


def tracked_files() -> set[str]:
    """Files of the three folders by the names that they have in a wheel."""
    files = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return files


def test_a_wheel_holds_every_file_of_the_three_folders_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if not re.match(r"layerbank-[\d.]+\.dist-info/", name)} == tracked_files()
    assert "layerbank/py.typed" in names


def test_a_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run([*build, "-t", "sdist", "-d", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(tmp_path)], check=True)
    (folder,) = tmp_path.glob("layerbank-*/")
    subprocess.run([*build, "-t", "wheel", "-d", str(tmp_path)], cwd=folder, check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


PROGRAM = """
import glob, sys
import layerbank
from layerbank.cli import main

def run(*arguments):
    assert not main(arguments, standalone_mode=False)

assert layerbank.__file__.startswith(sys.argv[1]), layerbank.__file__
model = ("--model", sys.argv[2], "--weights", "random", "--image-size", "32", "--data", "folder:photos")
run("extract", *model, "--kinds", "cls", "--split", "train", "--split", "test", "--workers", "0")
run("probe", *model, "--probe", "linear-cls", "--protocol", "quick")
run("predict", "--probe", *glob.glob("runs/photos/*/linear-cls-*"), "--data", "images:photos/test", "--workers", "0")
assert not {"cache", "probes", "pipeline"} & set(sys.modules)
"""


def test_modules_of_the_user_and_of_other_distributions_are_never_imported(installed: Path, tmp_path: Path) -> None:
    """The working folder, first on the path of `python -c`, has a cache.py, a probes.py, a pipeline/ and a layerbank/."""
    write_photos(tmp_path / "photos", {"train": 12, "test": 5})
    for name in ("cache.py", "probes.py"):
        tmp_path.joinpath(name).write_text("raise SystemExit('a module of the user was imported')")
    for name in ("pipeline", "layerbank"):
        tmp_path.joinpath(name).mkdir()
    command = [installed / "bin/python", "-c", PROGRAM, str(installed), TINY_MODEL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images/") + done.stdout.count(".png") >= 15, done.stdout


def test_the_command_the_module_and_the_package_agree_on_the_version(installed: Path, tmp_path: Path) -> None:
    import layerbank

    version = f"layerbank, version {layerbank.__version__}"
    for command in ([installed / "bin/layerbank"], [installed / "bin/python", "-m", "layerbank"]):
        done = subprocess.run([*command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == version


def test_links_of_an_editable_install_follow_the_files_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        tmp_path.joinpath(name).mkdir()
    links = tmp_path / "build/links/layerbank"
    monkeypatch.setattr(hatch_build, "ROOT", tmp_path)
    monkeypatch.setattr(hatch_build, "LINKS", links)
    tmp_path.joinpath("pipeline/old.py").touch()
    hatch_build.link()
    assert {path.name for path in links.iterdir()} == {"old.py", "cache", "probes"}
    tmp_path.joinpath("pipeline/old.py").rename(tmp_path / "pipeline/new.py")
    hatch_build.link()
    assert {path.name for path in links.iterdir() if path.exists()} == {"new.py", "cache", "probes"}


def test_pytest_runs_every_doctest_of_the_sources_by_the_name_of_the_package() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "testpaths=", "--pyargs", "layerbank"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    collected = {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}
    assert collected == set(_doctests())


def _doctests() -> list[str]:
    """Dotted names of everything whose docstring has an example."""
    names = []
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [*package.split("/"), *path.relative_to(ROOT / folder).with_suffix("").parts]
            module = ".".join(part for part in parts if part != "__init__")
            names += [f"{module}{name}" for name in _documented(ast.parse(path.read_text(encoding="utf-8")), "")]
    return names


def _documented(node: ast.AST, prefix: str) -> list[str]:
    own = [prefix] if ">>>" in (ast.get_docstring(node) or "") else []  # type: ignore[arg-type]
    inner = [one for one in getattr(node, "body", []) if isinstance(one, ast.FunctionDef | ast.ClassDef)]
    return own + [name for one in inner for name in _documented(one, f"{prefix}.{one.name}")]
