"""Tasks: a package adds one by a file and an entry point, and every kind of probe is trained, chosen, tested and saved by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import raises
from number_task import Number
from plugins import install_plugin
from probe_runs import FEW, REQUEST, run, stores_of
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from layerbank import RequestError
from layerbank.data.sources import open_source
from layerbank.data.splits.split_record import load_record
from layerbank.event_text import text_of
from layerbank.events import ProbeFinished, ProbeProgress
from layerbank.models.backbone import Backbone
from layerbank.probes import (
    HEADS,
    PAPER,
    TASKS,
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    Bank,
    DataError,
    Head,
    KnnProbe,
    LinearBank,
    LinearProbe,
    MemoryPlan,
    ModuleBank,
    Multiclass,
    Multilabel,
    Ordinal,
    Regression,
    SettingError,
    SimPoolProbe,
    Task,
    TrainingProtocol,
    l2_normalize,
    plan_memory,
    restore_task,
    run_solver,
    run_sweep,
    sizes_of,
    split_rows,
    stack_tokens,
)
from layerbank.probes.data.features import SourceFeatures
from layerbank.probes.heads.ridge import solve_ridge
from layerbank.probing.predict import SavedProbe, predictions_csv
from layerbank.probing.probe import row_folder
from layerbank.probing.rows.results import results_table, results_title
from layerbank.probing.tokens.split_tokens import SplitRequest
from layerbank.report.report import ReportOptions, make_report
from layerbank.report.verify import verify_runs

POINTS = "[layerbank.tasks]\ntoy-number = number_task:TASK\n"
TASKS_HERE = (
    Multiclass(num_classes=3),
    Multiclass(num_classes=3, metric="log_loss", weighting=(1.0, 2.0, 5.0)),
    Ordinal(num_classes=4),
    Multilabel(num_labels=3),
    Regression(),
    Regression(num_columns=2),
    Number(),
)
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
    targets = data_targets(task, num_samples)
    return task.fit(targets).encode(targets)


def data_targets(task: Task, num_samples: int, seed: int = 0) -> Tensor:
    """Targets of a data set."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(task, Multiclass):
        return torch.arange(num_samples) % task.num_classes
    if isinstance(task, Multilabel):
        return torch.randint(-1, 2, (num_samples, task.num_labels), generator=generator)
    columns = (task.num_columns,) if isinstance(task, Regression) and task.num_columns else ()
    return 50 + 10 * torch.randn(num_samples, *columns, dtype=torch.float64, generator=generator)


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


HEADS_OF = {  # solved and trained heads for each type of task: probes/README.md has the table
    "regression": ("linear", "attentive", "simpool", "ridge", "knn"),
    "ordinal": ("linear", "attentive", "simpool", "ridge"),
    "multilabel": ("linear", "attentive", "simpool", "ridge"),
}


def hidden_targets(task: Task, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features [N, 16] and targets that a linear map of them decides, one of the labels in ten unknown."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_samples, 16, generator=generator)
    hidden = features @ torch.randn(16, max(task.num_outputs, 1), generator=torch.Generator().manual_seed(99))
    if isinstance(task, Ordinal):
        limits = torch.tensor([-2.0, 0.0, 3.0])
        return features, torch.bucketize(hidden[:, 0].contiguous(), limits)
    if isinstance(task, Multilabel):
        unknown = torch.rand(hidden.shape, generator=generator) < 0.1
        return features, (hidden > 1).long().masked_fill(unknown, -1)
    numbers = 50 + 5 * hidden.double()
    return features, numbers if isinstance(task, Regression) and task.num_columns else numbers[:, 0]


def source_of(task: Task, kind: str, num_samples: int, seed: int) -> ArraySource:
    features, targets = hidden_targets(task, num_samples, seed)
    tokens = features.unsqueeze(1) if kind in ("attentive", "simpool") else features
    return ArraySource(
        stack_tokens([features.unsqueeze(1)]) if tokens.dim() == 3 else l2_normalize(tokens), targets, task
    )


@pytest.mark.parametrize("task", TASKS_HERE[2:6], ids=str)
def test_every_head_of_the_table_learns_every_task_and_the_others_are_refused(task: Task) -> None:
    for kind in ("linear", "attentive", "simpool", "ridge", "logreg", "knn"):
        train, test = source_of(task, kind, 300, 0), source_of(task, kind, 100, 1)
        head = Head(kind="attentive", num_heads=2) if kind == "attentive" else Head(kind=kind)
        run_one = run_solver if HEADS[kind].is_solved else run_sweep
        if kind not in HEADS_OF[task.type]:
            with raises("probes.head_not_for_task", SettingError, head=kind, task=task.type):
                run_one(head, train, lambda test=test: test, PROTOCOL)
            continue
        result = run_one(head, train, lambda test=test: test, PROTOCOL)
        assert result.test is not None
        assert set(result.test) == set(task.metrics)
        assert result.validation == pytest.approx(max(one.validation for one in result.scores))
        assert result.test[task.metric] > (0.4 if kind == "knn" else 0.7), kind
        fitted = train.task.fit(train.targets)
        assert result.test_logits is not None
        assert fitted.predict(result.test_logits).shape == test.targets.shape


def test_ridge_of_numbers_is_that_of_scikit_learn() -> None:
    task = Regression(num_columns=2)
    features, targets = hidden_targets(task, 80, 0)
    fitted, penalty = task.fit(targets), 1e-3
    ((weight, bias),) = solve_ridge(
        SourceFeatures(ArraySource(features, targets, task), torch.arange(80)),
        fitted.encode(targets).double(),
        torch.full((80,), 1 / 80, dtype=torch.float64),
        task,
        [penalty],
    )
    oracle = Ridge(alpha=penalty * 80).fit(features.double().numpy(), targets.numpy())
    ours = fitted.predict(features.double() @ weight.T + bias)
    np.testing.assert_allclose(ours, oracle.predict(features.double().numpy()), rtol=1e-5)


def test_knn_of_numbers_is_that_of_scikit_learn() -> None:
    task = Regression()
    features, targets = hidden_targets(task, 80, 0)
    train = l2_normalize(features)
    fitted = task.fit(targets)
    probe = KnnProbe(train, fitted.encode(targets), 1, num_neighbors=7)
    queries = l2_normalize(torch.randn(20, 16, generator=torch.Generator().manual_seed(3)))
    oracle = KNeighborsRegressor(7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = oracle.fit(train.numpy(), targets.numpy()).predict(queries.numpy())
    np.testing.assert_allclose(fitted.predict(probe(queries)), expected, rtol=1e-4)


def test_a_label_that_is_unknown_has_no_gradient_and_no_part_in_a_metric() -> None:
    task = Multilabel(num_labels=2)
    targets = torch.tensor([[1.0, torch.nan], [0.0, 1.0], [1.0, 0.0]])
    outputs = torch.randn(1, 3, 2)
    other = outputs.clone()
    other[0, 0, 1] += 100
    assert task.measure(outputs[0], targets) == task.measure(other[0], targets)
    weights = torch.full((3,), 1 / 3)
    loss, gradient = task.loss_and_grad(outputs.clone(), task.encode(targets), weights)
    changed, _ = task.loss_and_grad(other, task.encode(targets), weights)
    assert gradient[0, 0, 1] == 0
    assert loss == changed


def test_rare_labels_and_all_ranges_of_a_number_lie_on_both_sides_of_the_split() -> None:
    labels = torch.zeros(100, 3, dtype=torch.int64)
    labels[:, 0], labels[:4, 1], labels[4:6, 2] = 1, 1, 1
    source = ArraySource(torch.zeros(100, 4), labels, Multilabel(num_labels=3))
    for rows in split_rows(source, 0.2, seed=0):
        assert (labels[rows].sum(0) > 0).all()
    numbers = torch.arange(100, dtype=torch.float64)
    _, held_out = split_rows(ArraySource(torch.zeros(100, 4), numbers, Regression()), 0.2, seed=0)
    assert (held_out // 10).bincount().tolist() == [2] * 10


def test_a_metric_that_held_out_images_leave_undefined_is_refused_before_anything_is_trained() -> None:
    task = Multilabel(num_labels=2)
    train = ArraySource(torch.randn(20, 4), torch.zeros(20, 2, dtype=torch.int64), task)
    with raises("probes.metric_undefined", DataError, metric="map"):
        run_sweep(Head(kind="linear"), train, lambda: train, PROTOCOL)
    with raises("probes.metric_undefined", DataError, metric="map"):
        run_solver(Head(kind="ridge"), train, lambda: train, PROTOCOL)


def test_targets_of_another_shape_or_value_and_unknown_metrics_are_refused() -> None:
    tokens = torch.randn(4, 3)
    with raises("probes.targets_of_other_shape", DataError):
        ArraySource(tokens, torch.zeros(4), Multilabel(num_labels=2))
    with raises("probes.targets_of_other_shape", DataError):
        ArraySource(tokens, torch.zeros(4, 3), Regression(num_columns=2))
    with raises("probes.labels_not_binary", DataError, num_wrong=1):
        ArraySource(tokens, torch.tensor([[0, 1], [2, 1], [0, 0], [-1, 1]]), Multilabel(num_labels=2))
    with raises("probes.targets_not_finite", DataError, num_wrong=1):
        ArraySource(tokens, torch.tensor([0, 1, torch.nan, 2]), Regression())
    with raises("probes.unknown_metric", SettingError, metric="r2"):
        Multiclass(num_classes=3, metric="r2")


@pytest.mark.parametrize("metric", Multiclass.metrics)
def test_every_metric_of_classes_can_choose_settings(metric: str) -> None:
    def source(num_samples: int, seed: int) -> ArraySource:
        features, classes = hidden_targets(Ordinal(num_classes=4), num_samples, seed)
        return ArraySource(l2_normalize(features), classes, Multiclass(num_classes=4, metric=metric))

    result = run_sweep(Head(kind="linear"), source(300, 0), lambda: source(100, 1), PROTOCOL)
    assert result.test is not None
    assert set(result.test) == {"balanced_accuracy", "top1", "top5", metric}
    assert result.validation is not None
    if metric == "log_loss":
        assert result.validation < 0 < result.test[metric]


def test_the_memory_plan_counts_the_outputs_that_a_metric_needs() -> None:
    def plan(metric: str) -> MemoryPlan:
        task = Multiclass(num_classes=100, metric=metric)
        return plan_memory(sizes_of(Head(kind="linear"), (16,), task, 5000, PAPER))

    (num_probes,) = {plan(metric).probes_at_once for metric in Multiclass.metrics}
    outputs_bytes = 4 * 1000 * 100 * num_probes  # of the images held out
    more = plan("auroc").total_bytes - plan("balanced_accuracy").total_bytes
    assert more > outputs_bytes
    assert plan("kappa") == plan("balanced_accuracy")


def test_weights_of_classes_are_balanced_equal_or_as_given() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    for weighting, expected in (("balanced", [2 / 3, 2]), ("none", [1, 1]), ((1.0, 9.0), [1, 9])):
        task = Multiclass(num_classes=2, weighting=weighting).fit(labels)
        assert task.sample_weights(torch.tensor([0, 1])).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["logreg", "knn"])
def test_heads_that_answer_classes_alone_refuse_another_task(kind: str) -> None:
    train = number_source(kind, 30, 0)
    with raises("probes.head_not_for_task", SettingError, head=kind, task="toy-number"):
        run_solver(Head(kind=kind), train, lambda: train, PROTOCOL)


def test_a_task_that_is_fitted_to_rows_is_still_the_same_task_and_survives_being_saved() -> None:
    for task in TASKS_HERE:
        fitted = task.fit(data_targets(task, 9))
        assert fitted == task
        assert hash(fitted) == hash(task)
        saved = json.loads(json.dumps(fitted.describe()))
        assert saved["type"] == task.type
        outputs = torch.randn(5, task.num_outputs)
        restored = task.for_data(getattr(task, "num_classes", 0), 0).restore(saved)
        assert torch.equal(restored.predict(outputs), fitted.predict(outputs))
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

    for has_classes in (False, True):
        if has_classes:
            run(stores, tmp_path / "runs", ("linear-cls",))
        report = make_report(tmp_path / "runs", ReportOptions())
        assert [record.probe for record in report.records] == ["linear-cls"] * has_classes
        assert "Results of toy-number have a table of their own" in "".join(report.notes)
        for row in rows:
            assert f"toy-number | r2 | {row['probe']} |" in report.markdown
            assert f"{row['test']['r2']:.3f}" in report.html


@pytest.mark.usefixtures("_number_task")
def test_probes_that_cannot_answer_a_task_and_splits_of_two_tasks_are_refused(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    splits = with_numbers(stores[0]), with_numbers(stores[1])
    for name in ("knn-cls", "attn-last-top2", "alf-smallest"):
        with raises("probing.probe_not_for_task", RequestError, probe=name, task="toy-number"):
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
