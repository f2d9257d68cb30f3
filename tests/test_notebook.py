"""Progress in a Jupyter notebook, and none where output is neither a notebook nor a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from photos import TINY_MODEL, write_photos

CELL = """
import layerbank as lb
model = lb.open_model({model!r}, weights="random", image_size=32, device="cpu")
train, test = (lb.extract(model, lb.open_images("folder:{photos}", split), levels="last") for split in ("train", "test"))
results = lb.probe(train, test, probes=["linear-cls"], protocol={protocol!r}{more})
results
"""


def cell(folder: Path, more: str = "") -> str:
    photos = write_photos(folder / "photos", {"train": 20, "test": 8})
    protocol = folder / "fast.toml"
    protocol.write_text("epochs = 2\nmin_steps = 200\nlrs = [0.01]\nweight_decays = [1e-4]\ndropouts = [0.0]\n")
    return CELL.format(model=TINY_MODEL, photos=photos, protocol=str(protocol), more=more)


def test_a_notebook_shows_bars_while_it_extracts_and_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", exc_type=ImportError)
    nbformat = pytest.importorskip("nbformat", exc_type=ImportError)
    pytest.importorskip("ipykernel", exc_type=ImportError)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shown: list[str] = []

    class Watching(nbclient.NotebookClient):  # type: ignore[misc, name-defined]
        def process_message(self, message: Any, *more: Any) -> Any:
            if message["msg_type"] in ("display_data", "update_display_data"):
                shown.append(message["content"]["data"].get("text/plain", ""))
            return super().process_message(message, *more)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell(tmp_path))])
    Watching(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    bars = [line for line in shown if line.startswith(("█", "░"))]
    assert any("60/60" in line for line in bars), shown  # images
    assert any("steps" in line for line in bars), shown
    outputs = notebook.cells[0].outputs
    left = [one.data["text/plain"] for one in outputs if one.output_type == "display_data"]
    assert not any(line.startswith(("█", "░")) for line in left), "a bar is cleared when its work is done"
    assert any("extract: done" in line for line in left)
    (result,) = [one for one in outputs if one.output_type == "execute_result"]
    assert "linear-cls" in result.data["text/plain"]
    # huggingface_hub misses widgets, which we do without
    streams = [one.text for one in outputs if one.output_type == "stream"]
    assert all("TqdmWarning" in text for text in streams), streams


@pytest.mark.parametrize("more", ["", ", progress=False"])
def test_a_script_whose_output_is_a_file_gets_plain_lines(tmp_path: Path, more: str) -> None:
    code = cell(tmp_path, more).replace('levels="last"', f'levels="last"{more}')
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert done.stdout == b""
    assert not {b"\x1b", b"\r", "█".encode()} & {done.stderr[at : at + 1] for at in range(len(done.stderr))}
    assert (b"extract: done" in done.stderr) == (not more)
