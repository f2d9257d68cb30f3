"""Hours of a plan: what is counted is what a study does, and what is timed is timed once."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from commands import run
from probe_runs import FEW
from study_recipes import arguments, write_recipe

from layerbank.models.request import ModelRequest
from layerbank.planning import forecast_training
from layerbank.planning.forecast_forward import image_seconds
from layerbank.planning.forecast_training import TrainingForecast, num_trained
from layerbank.probes import Head, StepCost, TrainingProtocol, fit_banks, measure_step
from layerbank.probing.probe_spec import parse_probe, parse_probes


def row_shape(level: str, kind: str) -> tuple[int, ...]:
    return (4, 192) if kind == "grid2" else (192,)


class Timed:
    """Stands for the measurement; remembers what was asked."""

    def __init__(self, cost: StepCost) -> None:
        self.cost = cost
        self.asked: list[tuple[Head, tuple[int, ...], int]] = []

    def __call__(self, head: Head, shape: tuple[int, ...], num_classes: int, *rest: Any, **more: Any) -> StepCost:
        self.asked.append((head, shape, num_classes))
        return self.cost


def test_each_head_and_shape_is_timed_once_at_the_fewest_and_the_most_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(StepCost(step_s=1.0, row_s=0.0, probe_s=0.0, image_s=0.0))
    monkeypatch.setattr(forecast_training, "measure_step", timed)
    forecast = TrainingForecast([10, 47, 1000], "cpu")
    probes = parse_probes(["linear@every", "linear-cls", "ridge-cls", "alf", "alf-top2"], 12)
    for num_classes in (10, 47, 1000):
        forecast.seconds(probes, row_shape, FEW, num_images=500, num_classes=num_classes)
    assert len(timed.asked) == len(set(timed.asked)) == 4
    assert {(head.kind, num_classes) for head, _, num_classes in timed.asked} == {
        (kind, num_classes) for kind in ("linear", "attentive") for num_classes in (10, 1000)
    }


def test_what_lies_between_the_fewest_and_the_most_classes_is_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(head: Head, shape: tuple[int, ...], num_classes: int, *rest: Any, **more: Any) -> StepCost:
        return StepCost(step_s=0.0, row_s=0.0, probe_s=float(num_classes), image_s=0.0)

    monkeypatch.setattr(forecast_training, "measure_step", cost)
    forecast, alf = TrainingForecast([10, 110], "cpu"), [parse_probe("alf", 12)]
    few, between, many = (
        forecast.seconds(alf, row_shape, FEW, num_images=500, num_classes=count) for count in (10, 60, 110)
    )
    assert many == pytest.approx(11 * few)
    assert between == pytest.approx((few + many) / 2)


def test_settings_that_are_the_same_bits_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        forecast_training, "measure_step", Timed(StepCost(step_s=0.0, row_s=0.0, probe_s=1.0, image_s=0.0))
    )
    duplicates = replace(
        FEW, lrs=(1e-2, 1e-3), weight_decays=(1e-6, 1e-5, 1e-2)
    )  # 1e-3 by 1e-6 and 1e-5: no decay at all
    alf = parse_probe("alf", 12)
    assert num_trained(Head(kind="linear"), duplicates) == 5
    assert num_trained(Head(kind="attentive", num_heads=4), duplicates) == 5 * len(FEW.dropouts)
    forecast = TrainingForecast([10], "cpu")

    def seconds(protocol: TrainingProtocol) -> float:
        return forecast.seconds([alf], row_shape, protocol, num_images=500, num_classes=10)

    one, six = (seconds(replace(duplicates, lrs=lrs, weight_decays=(1e-2,))) for lrs in ((1e-2,), (1e-2, 1e-3)))
    assert seconds(duplicates) == pytest.approx(one + 4 * (six - one))


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (Head(kind="linear"), (32,)),
        (Head(kind="attentive", num_heads=4), (6, 32)),
        (Head(kind="simpool"), (6, 32)),
    ],
)
def test_a_measured_step_takes_time_and_more_work_no_less(head: Head, shape: tuple[int, ...]) -> None:
    cost = measure_step(head, shape, 3, replace(FEW, dropouts=(0.1,)))
    assert cost.seconds(1, 16) > 0
    assert min(cost.step_s, cost.row_s, cost.probe_s, cost.image_s) >= 0
    assert cost.seconds(8, 1000) >= cost.seconds(1, 16)


def test_what_a_first_step_sets_up_is_not_counted_and_four_sizes_give_four_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that says what a training costs: a hundred seconds to set up, then steps by the formula."""
    now_s, real = [0.0], fit_banks

    def fit(bank_runs: Any, source: Any, rows: Any, protocol: Any, *, max_steps: int) -> Any:
        now_s[0] += 100 + max_steps * wanted.seconds(bank_runs[0].bank.num_probes, protocol.batch_size)
        return real(bank_runs, source, rows, protocol, max_steps=max_steps)

    wanted = StepCost(step_s=0.03, row_s=0.0001, probe_s=0.02, image_s=0.0002)
    monkeypatch.setattr("layerbank.probes.step_cost.fit_banks", fit)
    monkeypatch.setattr("layerbank.probes.step_cost.time.perf_counter", lambda: now_s[0])
    cost = measure_step(Head(kind="linear"), (8,), 3, FEW)
    assert asdict(cost) == pytest.approx(asdict(wanted))


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
    recipe = write_recipe(tmp_path, two_sets, ["linear-cls", "alf"])
    before = sorted(tmp_path.rglob("*"))
    result = run(*arguments(recipe, tmp_path), "--dry-run", "--calibrate")
    assert result.exit_code == 0
    assert "; forecast for this machine, one process: " in result.stdout
    assert " ? " not in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    assert "; hours: --calibrate" in run(*arguments(recipe, tmp_path), "--dry-run").stdout


def test_hours_are_of_a_plan_and_of_nothing_else(two_sets: list[str], tmp_path: Any) -> None:
    recipe = write_recipe(tmp_path, two_sets, ["linear-cls"])
    result = run(*arguments(recipe, tmp_path), "--calibrate")
    assert result.exit_code == 2
    assert "--calibrate" in result.stderr
    assert "plan first" in result.stderr
