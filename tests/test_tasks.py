"""Tasks: a package adds one by a file and an entry point, and every kind of probe is trained, chosen, tested and saved by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import raises, shows
from number_task import Number
from plugins import install_plugin
from probe_runs import FEW, REQUEST, run, stores_of
from torch import Tensor

from layerbank import RequestError
from layerbank.data.sources import open_source
from layerbank.data.split_record import load_record
from layerbank.event_text import text_of
from layerbank.events import ProbeFinished, ProbeProgress
from layerbank.models.backbone import Backbone
from layerbank.probes import (
    HEADS,
    TASKS,
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    Bank,
    DataError,
    Head,
    LinearBank,
    LinearProbe,
    ModuleBank,
    Multiclass,
    SettingError,
    SimPoolProbe,
    Task,
    TrainingProtocol,
    restore_task,
    run_solver,
    run_sweep,
    stack_tokens,
)
from layerbank.probing.predict import SavedProbe, predictions_csv
from layerbank.probing.probe import row_folder
from layerbank.probing.results import results_table, results_title
from layerbank.probing.tokens.split_tokens import SplitRequest
from layerbank.report.gather import gather
from layerbank.report.verify import verify_runs

POINTS = "[layerbank.tasks]\ntoy-number = number_task:TASK\n"
TASKS_HERE = (Multiclass(num_classes=3), Number())
PROTOCOL = TrainingProtocol(lrs=(1e-1, 1e-2), weight_decays=(1e-4,), epochs=4, min_steps=60, batch_size=32)
PROBES = ("linear-cls", "attn-last", "simpool", "ridge-last")  # a linear bank, a folded one, a module bank, a solver


@pytest.fixture
def _number_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "site"
    site.mkdir()
    install_plugin(site, POINTS, name="toy_numbers")
    monkeypatch.syspath_prepend(str(site))
    TASKS.__dict__.pop("_plugins", None)
    yield
    TASKS.__dict__.pop("_plugins", None)
    TASKS._loaded.pop("toy-number", None)


def some_targets(task: Task, num_samples: int) -> Tensor:
    """Encoded targets."""
    classes = torch.arange(num_samples) % 3
    return classes if isinstance(task, Multiclass) else torch.linspace(-1, 2, num_samples)


def some_weights(num_probes: int | None, num_samples: int) -> Tensor:
    """[B], or [P, B]."""
    shape = (num_samples,) if num_probes is None else (num_probes, num_samples)
    weights = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("task", TASKS_HERE, ids=lambda task: task.type)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("each", [False, True], ids=["one weight a sample", "one a probe and sample"])
def test_loss_and_gradient_are_those_of_autograd_through_the_loss_of_each_sample(
    task: Task, batch_first: bool, each: bool
) -> None:
    num_probes, num_samples = 2, 7
    outputs = torch.randn(num_probes, num_samples, task.num_outputs, dtype=torch.float64)
    targets, weights = some_targets(task, num_samples), some_weights(num_probes if each else None, num_samples)
    with torch.enable_grad():
        leaf = outputs.clone().requires_grad_()
        losses = torch.stack([task.loss_each(one, targets) for one in leaf])  # [P, B]
        expected = (losses * weights).sum(1)
        (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    given = outputs.transpose(0, 1).contiguous() if batch_first else outputs
    loss, found = task.loss_and_grad(given, targets, weights, batch_first=batch_first)
    assert found.data_ptr() == given.data_ptr()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found.transpose(0, 1) if batch_first else found, gradient)


def bank_of(kind: str, num_probes: int, task: Task) -> Bank:
    if kind == "linear":
        linear = [LinearProbe(20, task.num_outputs, seed=seed) for seed in range(num_probes)]
        return LinearBank(linear, dtype=torch.float64)
    if kind == "folded":
        attentive = [AttentiveProbe(20, 2, task.num_outputs, seed=seed) for seed in range(num_probes)]
        return AttentiveBank(attentive, dtype=torch.float64, group_size=2)
    modules = [SimPoolProbe(20, task.num_outputs, seed=seed) for seed in range(num_probes)]
    return ModuleBank(modules, dtype=torch.float64, chunk_size=4)


@pytest.mark.parametrize("task", TASKS_HERE, ids=lambda task: task.type)
@pytest.mark.parametrize("kind", ["linear", "folded", "module"])
def test_probes_of_a_bank_may_weigh_the_samples_differently_and_equal_lone_probes(kind: str, task: Task) -> None:
    tokens = torch.randn(9, 3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = tokens[:, 0] if kind == "linear" else tokens
    targets, weights = some_targets(task, 9), some_weights(3, 9)
    bank = bank_of(kind, 3, task)
    losses = bank.compute_gradients(tokens, targets, weights, {}, task)
    for index in range(3):
        alone = bank_of(kind, 3, task)
        expected = alone.compute_gradients(tokens, targets, weights[index], {}, task)
        torch.testing.assert_close(losses[index], expected[index])
        for stack, other in zip(bank.stacks, alone.stacks, strict=True):
            if index in stack.members:
                row = stack.members.index(index)
                for name, gradient in stack.grads.items():
                    torch.testing.assert_close(gradient[row], other.grads[name][row])


def number_source(kind: str, num_samples: int, seed: int) -> ArraySource:
    """Tokens along a direction by a number around 50."""
    numbers = torch.rand(num_samples, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 20 + 40
    generator = torch.Generator().manual_seed(seed + 1)
    direction = torch.randn(4, 16, generator=torch.Generator().manual_seed(99))
    part = ((numbers - 50) / 10).float().view(-1, 1, 1)
    tokens = stack_tokens([part * direction + 1 + 0.2 * torch.randn(num_samples, 4, 16, generator=generator)])
    return ArraySource(tokens.flatten(1) if HEADS[kind].flat else tokens, numbers, Number())


@pytest.mark.parametrize("kind", ["linear", "attentive", "simpool", "ridge"])
def test_every_kind_of_head_learns_a_number_in_its_own_unit(kind: str) -> None:
    head = Head(kind=kind, num_heads=4 if HEADS[kind].has_heads else 0)
    train, test = number_source(kind, 150, 0), number_source(kind, 60, 1)
    solve = run_solver if HEADS[kind].is_solved else run_sweep
    result = solve(head, train, lambda: test, PROTOCOL)
    assert result.test is not None
    assert result.validation is not None
    assert result.validation > 0.7
    assert result.test["r2"] > 0.7
    assert result.test["mean_absolute_error"] < 4  # of numbers from 40 to 60
    task = train.task.fit(train.targets)
    assert result.test_logits is not None
    assert result.test_logits.abs().max() < 4  # the outputs are standardised ...
    assert 40 < task.predict(result.test_logits).mean() < 60  # ... the predictions are not


@pytest.mark.parametrize("kind", ["logreg", "knn"])
def test_heads_that_answer_classes_alone_refuse_another_task(kind: str) -> None:
    train = number_source(kind, 30, 0)
    with raises("probes.head_not_for_task", SettingError, head=kind, tasks="multiclass", task="toy-number"):
        run_solver(Head(kind=kind), train, lambda: train, PROTOCOL)


def test_a_task_that_is_fitted_to_rows_is_still_the_same_task_and_survives_being_saved() -> None:
    for task in TASKS_HERE:
        fitted = task.fit(torch.tensor([0, 1, 1]) if isinstance(task, Multiclass) else torch.tensor([1.0, 5.0]))
        assert fitted == task
        assert hash(fitted) == hash(task)
        assert json.loads(json.dumps(fitted.describe()))["type"] == task.type
    assert Number().restore(Number().fit(torch.tensor([1.0, 5.0])).describe()).predict(torch.ones(1)) == 5
    assert restore_task(None, 3) == restore_task({"type": "multiclass"}, 3) == Multiclass(num_classes=3)
    with raises("layerbank.unknown_part", RequestError, noun="task", name="multiclas"):
        restore_task({"type": "multiclas"}, 3)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return REQUEST.open("cpu")


@pytest.fixture(scope="module")
def stores(
    backbone: Backbone, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SplitRequest, SplitRequest]:
    return stores_of(backbone, photos, tmp_path_factory.mktemp("caches"))


def with_numbers(split: SplitRequest) -> SplitRequest:
    """The same tokens; the target is a number that the class decides."""
    numbers = np.array([2.0, 30.0, 70.0])[split.record.labels]
    record = replace(split.record, labels=numbers, class_names=(), task="toy-number")
    return replace(split, record=record)


@pytest.mark.usefixtures("_number_task")
def test_a_task_of_a_plug_in_has_rows_a_table_saved_probes_and_predictions(
    stores: tuple[SplitRequest, SplitRequest], photos: Path, tmp_path: Path
) -> None:
    train, test = splits = with_numbers(stores[0]), with_numbers(stores[1])
    rows, events = run(splits, tmp_path / "runs", PROBES, FEW)
    for row in rows:
        assert (row["task"], row["metric"]) == ("toy-number", "r2")
        assert (row["key_fields"]["task"], row["key_fields"]["metric"]) == ("toy-number", "r2")
        assert set(row["test"]) == {"r2", "mean_absolute_error"}
        assert row["validation"] == max(one["validation"] for one in row["settings"])
    linear, folded, module, ridge = (row["test"]["r2"] for row in rows)
    assert min(linear, folded, module, ridge) > 0.3
    table = results_table(rows)
    assert [line[0] for line in table] == list(PROBES)
    assert [line[3] for line in table] == [f"{row['test']['r2']:.3f}" for row in rows]
    assert table[3][4] == f"{ridge - linear:+.3f}"
    assert ": r2; " in results_title(rows, tmp_path)
    finished = [text_of(event) for event in events if isinstance(event, ProbeFinished)]
    assert any(text.endswith(f"test {linear:.3f} r2") for text in finished)
    progress = [text_of(event) for event in events if isinstance(event, ProbeProgress) and event.best is not None]
    assert progress
    assert not any("%" in text for text in progress)

    again, events = run(splits, tmp_path / "runs", PROBES, FEW)
    assert again == rows
    assert all(event.reused for event in events if isinstance(event, ProbeFinished))
    record = load_record(tmp_path / "runs" / rows[0]["images"]["train"])
    assert (record.task, record.labels.tolist()) == ("toy-number", train.record.labels.tolist())

    assert verify_runs(tmp_path / "runs").problems == ()
    source = open_source(f"folder:{photos}", "test")
    for row in rows:
        saved = SavedProbe(row_folder(tmp_path / "runs", row))
        assert saved.task == Number()
        predictions = list(saved.predict(source, num_workers=0))
        found = torch.tensor([float(one.label) for one in predictions], dtype=torch.float64)
        r2 = Number().score(found, torch.from_numpy(test.record.labels)).item()
        assert r2 == pytest.approx(row["test"]["r2"], abs=1e-2)
        assert all(one.probability is one.target is None for one in predictions)
        assert next(iter([*predictions_csv(predictions)][1:])).rstrip().endswith(b",,")

    with raises("report.no_readable_results"):
        gather(tmp_path / "runs")
    run(stores, tmp_path / "runs", ("linear-cls",))
    reported, _, notes = gather(tmp_path / "runs")
    assert [(row["probe"], "task" in row) for row in reported] == [("linear-cls", False)]
    assert len(notes) == len(rows)
    assert all(shows(note, "report.row_of_other_task") and "toy-number" in note for note in notes)


@pytest.mark.usefixtures("_number_task")
def test_probes_that_cannot_answer_a_task_and_splits_of_two_tasks_are_refused(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    splits = with_numbers(stores[0]), with_numbers(stores[1])
    for name in ("knn-cls", "attn-last-top2", "alf-smallest"):
        with raises("probing.probe_not_for_task", RequestError, probe=name, tasks="multiclass", task="toy-number"):
            run(splits, tmp_path, (name,))
    with raises("probing.different_tasks", RequestError, train_task="toy-number", test_task="multiclass"):
        run((splits[0], stores[1]), tmp_path, ("linear-cls",))


@pytest.mark.usefixtures("_number_task")
def test_targets_that_a_task_cannot_use_are_refused_before_anything_is_trained(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    unknown = with_numbers(stores[1])
    unknown.record.labels[3] = np.nan
    with pytest.raises(DataError, match="expected finite numbers, got 1 that are not"):
        run((with_numbers(stores[0]), unknown), tmp_path, ("linear-cls",))
    unlabelled = replace(stores[0].record, labels=np.full(len(stores[0].record), -1))
    with raises("probes.labels_out_of_range", DataError, last=2, least=-1):
        run((replace(stores[0], record=unlabelled), stores[1]), tmp_path, ("linear-cls",))


def test_a_saved_probe_names_its_task_and_one_that_names_none_is_multiclass(
    stores: tuple[SplitRequest, SplitRequest], photos: Path, tmp_path: Path
) -> None:
    (row,), _ = run(stores, tmp_path, ("linear-cls",))
    assert not {"task", "metric"} & (row.keys() | row["key_fields"].keys())
    file = row_folder(tmp_path, row) / "probe.json"
    about = json.loads(file.read_text())
    source = open_source(f"folder:{photos}", "test")
    before = list(SavedProbe(file.parent).predict(source, num_workers=0))
    assert about["config"].pop("task") == {"type": "multiclass"}
    file.write_text(json.dumps(about))
    saved = SavedProbe(file.parent)
    assert saved.task == Multiclass(num_classes=3)
    assert list(saved.predict(source, num_workers=0)) == before


def test_a_task_that_is_not_installed_is_named(stores: tuple[SplitRequest, SplitRequest], tmp_path: Path) -> None:
    with raises("layerbank.unknown_part", RequestError, noun="task", name="toy-number"):
        run((with_numbers(stores[0]), with_numbers(stores[1])), tmp_path, ("linear-cls",))
