"""The benchmark of what a GPU owes us runs, at tiny sizes, where there is none; and says so where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    import gpu

    return gpu


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


SMOKE = ["--device", "cpu", "--smoke"]


def test_every_section_runs_at_tiny_sizes_without_a_gpu(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.jsonl"
    assert gpu.main([*SMOKE, "--in-process", "--out", str(out)]) == 0
    figures = lines(out)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")] == figures
    assert list(dict.fromkeys(figure["section"] for figure in figures)) == list(gpu.SECTIONS)

    def of(section: str) -> list[dict[str, Any]]:
        return [figure for figure in figures if figure["section"] == section]

    steps = [figure for figure in of("step") if "group_size" in figure]
    assert {figure["way"] for figure in steps} == {"eager", "graph of gradients", "graph of all"}
    assert all(figure["as_eager"] for figure in steps)
    assert all(figure["num_settings"] == 63 for figure in of("sweep") if "compute" in figure)
    assert of("tokens")[-3]["difference"] == 0
    assert {figure["way"] for figure in of("forward") if "way" in figure} == {"bare", "taps"}
    assert any(figure.get("timeline") and (tmp_path / figure["timeline"]).exists() for figure in of("extraction"))


def test_what_the_device_computes_equals_float64_on_the_cpu(gpu: ModuleType) -> None:
    """On a GPU if there is one, at its sizes: z has more than 2^31 numbers there."""
    on_gpu = torch.cuda.is_available()
    sizes = gpu.FULL if on_gpu else gpu.SMOKE
    measured = gpu.Measured(device=torch.device("cuda" if on_gpu else "cpu"), sizes=sizes, folder=None)
    figures = list(gpu.SECTIONS["truth"].measure(measured))
    assert [figure for figure in figures if "error" in figure] == []
    assert len(figures) >= 32


def test_a_wrong_gradient_is_found(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.gpu_truth.LARGEST_ERROR, "bfloat16", 1e-6)
    assert [
        figure["check"]
        for figure in gpu.gpu_truth.bank_checks(gpu.Measured(device=torch.device("cpu"), sizes=gpu.SMOKE, folder=None))
        if "error" in figure and "linear" in figure["check"]
    ] == ["bank linear, bfloat16, worst logits"]


def test_an_error_in_one_section_is_told_and_loses_nothing_of_the_others(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(measured: object) -> Any:
        yield {"first": 1}
        raise RuntimeError("no memory left")

    monkeypatch.setitem(gpu.SECTIONS, "sweep", gpu.Section(fail, 10))
    out = tmp_path / "gpu.jsonl"
    sections = ["--sections", "sweep", "peak", "--out", str(out)]
    assert gpu.main([*SMOKE, "--in-process", *sections]) == 1
    figures = lines(out)
    assert [figure["error"] for figure in figures if "error" in figure] == ["RuntimeError: no memory left"]
    assert {"section": "sweep", "first": 1} in figures
    assert any("copy_bytes_per_s" in figure for figure in figures)

    monkeypatch.undo()
    assert gpu.finished_sections(out) == {"peak"}
    num_lines = len(lines(out))
    assert gpu.main([*SMOKE, "--in-process", "--sections", "peak", "--out", str(out)]) == 0
    assert len(lines(out)) == num_lines


def test_a_section_that_hangs_or_dies_is_ended_and_the_next_one_runs(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.jsonl"
    script = tmp_path / "gpu.py"
    script.write_text(
        "import os, sys, time\n"
        "section = sys.argv[sys.argv.index('--sections') + 1]\n"
        "time.sleep(600) if section == 'truth' else os.abort() if section == 'peak' else None\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "SHORTEST_S", 0)
    monkeypatch.setitem(gpu.SECTIONS, "truth", gpu.Section(gpu.SECTIONS["truth"].measure, 1))
    assert gpu.main([*SMOKE, "--sections", "truth", "peak", "tokens", "--out", str(out)]) == 1
    assert [(line["section"], line["error"]) for line in lines(out)] == [
        ("truth", "ended after 1 s"),
        ("peak", "its process ended with -6"),
    ]
    assert gpu.main([*SMOKE, "--sections", "tokens", "--limit", "-1", "--out", str(out)]) == 1
    assert lines(out)[-1]["error"].startswith("not begun")


def test_without_a_gpu_it_says_what_to_do(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == (
        f"gpu.py: --device cuda: expected a GPU that torch can use, got none (torch {torch.__version__}). "
        "Run it where one is, or see that it works: --device cpu --smoke.\n"
    )


def test_a_cpu_is_not_given_the_work_of_a_gpu(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        "gpu.py: --device cpu: expected --smoke with it, got sizes of a GPU. "
        "Add --smoke: a CPU would take days, and its figures come from the other benchmarks.\n"
    )
