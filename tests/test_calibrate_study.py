"""Hours of a plan: measured on the real models and the real trainer, for moments, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from commands import run
from study_recipes import arguments, write_recipe

from layerbank.jobs.study_plan import num_trainings
from layerbank.models.request import ModelRequest
from layerbank.planning.calibrate_study import image_seconds, step_seconds
from layerbank.probes import QUICK, Head
from layerbank.probing.probe_spec import parse_probe

FEW = replace(QUICK, lrs=(1e-2, 1e-3), weight_decays=(1e-4,), dropouts=(0.0, 0.5), batch_size=32, compute="float32")


def test_duplicate_settings_are_counted_once() -> None:
    duplicates = replace(FEW, weight_decays=(1e-6, 1e-5, 1e-2))  # 1e-3 by 1e-6 and 1e-5: no decay at all

    def count(name: str) -> int:
        return num_trainings(parse_probe(name, 12), duplicates, lambda level, kind: (192,))

    assert count("linear-cls") == 5 + 1
    assert count("alf") == 5 * 2 + 1
    assert count("ridge-cls") == 0


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (Head(kind="linear"), (32,)),
        (Head(kind="attentive", num_heads=4), (6, 32)),
        (Head(kind="simpool"), (6, 32)),
    ],
)
def test_a_step_takes_time_and_one_of_many_images_and_settings_more(head: Head, shape: tuple[int, ...]) -> None:
    """The larger one is extrapolated from steps of few settings and images."""
    many = replace(FEW, lrs=tuple(1e-3 * (1 + number) for number in range(500)), batch_size=100_000)
    assert 0 < step_seconds(head, shape, 3, FEW, "cpu") < step_seconds(head, shape, 3, many, "cpu")


@pytest.mark.parametrize(
    "request_",
    [
        ModelRequest(model="timm/vit_tiny_patch16_224", image_size=32),
        ModelRequest(model="demo/vit-s-focus", image_size=28),
    ],
)
def test_a_forward_pass_is_timed_without_weights(request_: ModelRequest) -> None:
    assert 0 < image_seconds(request_, [("block.3", "cls"), ("final", "ap")], "cpu") < 60


def test_a_calibrated_plan_says_how_long_and_leaves_no_file(two_sets: list[str], tmp_path: Any) -> None:
    recipe = write_recipe(tmp_path, two_sets, ["linear-cls", "alf", "alf-top2", "ridge-cls"])
    before = sorted(tmp_path.rglob("*"))
    result = run(*arguments(recipe, tmp_path), "--dry-run", "--calibrate")
    assert result.exit_code == 0
    assert "; estimated for this machine, one process: " in result.stdout
    assert " ? " not in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    assert "; hours: --calibrate" in run(*arguments(recipe, tmp_path), "--dry-run").stdout
