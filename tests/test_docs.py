"""The documentation runs: README blocks are executed, the command reference is generated, named targets exist."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_reference import README as REFERENCE
from cli_reference import with_reference
from photos import write_photos

from layerbank.probing.protocols import open_protocol

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_blocks_of_the_readme_run_one_after_the_other(tmp_path: Path) -> None:
    """Everything but the clone itself, which CI does, in a folder with a few photos."""
    write_photos(tmp_path / "photos", {"train": 12, "test": 5})
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = "".join(block for block in blocks("sh") if "git clone" not in block)
    assert shell.count("layerbank ") >= 5
    subprocess.run(["bash", "-euo", "pipefail", "-c", shell], cwd=tmp_path, env=environment, check=True)
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 16
    (python,) = blocks("python")
    subprocess.run([sys.executable, "-W", "error", "-c", python], cwd=tmp_path, env=environment, check=True)


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", README)) | set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE))
    assert named >= {"probe", "extract", "test", "check", "bench"}
    assert named <= targets


def test_every_file_that_the_reading_order_names_exists() -> None:
    tree = README[README.index("    probes/  ") : README.index("`make check` runs")]
    top = folder = ""
    names: list[str] = []
    for line in tree.splitlines():
        if match := re.match(r"    (\w+)/ ", line):
            top, folder = match[1], ""
        elif match := re.match(r"      (\w+/) ", line):
            folder = match[1]
            names.append(f"{top}/{folder}")
        elif re.match(r"      \w+\.py", line):
            folder = ""
        files = re.findall(r"\b(\w+\.py)\b", line)
        names += [f"{top}/{name}" if (ROOT / top / name).exists() else f"{top}/{folder}{name}" for name in files]
    assert len(names) > 25
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_file_and_name_of_the_contributing_guide_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:pipeline|probes|cache|tests)/[\w/]+\.py)`", text)
    names = re.findall(r"`(layerbank(?:\.\w+)+)", text[text.index("## Names of 0.1.0") :])
    assert min(len(files), len(names)) > 10
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert all(pkgutil.resolve_name(name) for name in names)


def test_the_protocol_file_of_the_command_reference_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", REFERENCE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.toml").write_text(block)
    protocol = open_protocol(str(tmp_path / "mine.toml"), seed=3)
    assert (protocol.lrs, protocol.min_steps, protocol.seed) == ((0.01, 0.001), 500, 3)


def test_the_command_reference_and_the_names_of_probes_are_what_the_code_says() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert text == with_reference(text), "run `make docs`"


@pytest.mark.parametrize("path", ["README.md", "pipeline/README.md", "cache/README.md", "probes/README.md"])
def test_links_between_the_readmes_lead_somewhere(path: str) -> None:
    folder = (ROOT / path).parent
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / path).read_text(encoding="utf-8"))
    assert [link for link in links if not (folder / link).exists()] == []
