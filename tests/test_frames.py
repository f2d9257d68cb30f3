"""From a job to the first matrix product of a training step: a reader follows few functions, and a group is planned once."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_recipes import FAST
from torch.utils._python_dispatch import TorchDispatchMode

import layerbank as lb
import layerbank.probes.chosen
import layerbank.probes.sweep
from layerbank.events import Event, OnEvent, TrainingStarted, ignore
from layerbank.probes import plan_group
from layerbank.probing.tokens import placement

ROOT = Path(lb.__file__).parent
MOST_FRAMES = MOST_FILES = 8
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
Run = Callable[..., list[Any]]


class FirstProduct(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps our frames at the first matrix product of a training step, as (file, function)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.frames: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.frames and func.overloadpacket.__name__ in PRODUCTS:
            stack = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()]
            frames = [(path.relative_to(ROOT).as_posix(), name) for path, name in stack if path.is_relative_to(ROOT)]
            if any(name == "fit_banks" for _, name in frames):
                self.frames = frames
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the job of some probes; the tokens are computed once."""
    folder = tmp_path_factory.mktemp("frames")
    (folder / "fast.toml").write_text(FAST)

    def run(*probes: str, on_event: OnEvent = ignore) -> list[Any]:
        job = lb.ProbeJob(
            model="timm/vit_tiny_patch16_224",
            weights="random",
            image_size=32,
            data="demo:digits?train=60&test=20",
            device="cpu",
            probes=probes,
            protocol=str(folder / "fast.toml"),
            cache_root=folder / "cache",
            runs_root=folder / "-".join(probes),
        )
        return lb.run(job, on_event=on_event)

    run("ridge-cls")
    return run


@pytest.mark.parametrize("probe", ["alf", "linear-cls", "abmilp-last"])
def test_a_job_reaches_its_first_matrix_product_through_few_functions_of_few_files(run: Run, probe: str) -> None:
    with FirstProduct() as first:
        run(probe)
    frames, names = first.frames, [name for _, name in first.frames]
    assert names[0] == "run"
    assert "compute_gradients" in names
    if "forward" in names:  # of a plain module: how it computes its outputs is its own affair
        frames = frames[: names.index("forward") + 1]
    assert len(frames) <= MOST_FRAMES, frames
    assert len({file for file, _ in frames}) <= MOST_FILES, frames


def test_each_group_is_planned_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []

    def counted(candidates: Any, *rest: Any, **more: Any) -> Any:
        planned.append(len(candidates))
        return plan_group(candidates, *rest, **more)

    for module in (placement, layerbank.probes.sweep, layerbank.probes.chosen):
        monkeypatch.setattr(module, "plan_group", counted)
    events: list[Event] = []
    run("alf", "linear-cls", on_event=events.append)
    assert [event.probes for event in events if isinstance(event, TrainingStarted)] == [("alf", "linear-cls")]
    assert planned == [1, 1, 2]  # each alone, because together they have to be trained in the same way; then both
