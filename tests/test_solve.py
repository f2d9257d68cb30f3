"""Ridge, logistic regression and kNN are scikit-learn's, chosen by the protocol of every other probe."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from messages import raises
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import layerbank.probes.data.features
import layerbank.probes.heads.gram
import layerbank.probes.heads.ridge
from layerbank.probes import (
    HEADS,
    ArraySource,
    DataError,
    Head,
    KnnProbe,
    LinearProbe,
    NeighborSetting,
    PenaltySetting,
    Progress,
    SettingError,
    TrainingProtocol,
    balanced_accuracy,
    concat_tokens,
    l2_normalize,
    run_solver,
    run_solvers,
)
from layerbank.probes.data.features import SourceFeatures
from layerbank.probes.data.split import split_stratified
from layerbank.probes.heads.logreg import ABSENT_BIAS, solve_logreg
from layerbank.probes.heads.ridge import solve_ridge
from layerbank.probes.tasks.multiclass import Multiclass, class_weights

THREE = Multiclass(num_classes=3)
PENALTIES = (1e-1, 1e-3, 1e-5)
PROTOCOL = TrainingProtocol(penalties=PENALTIES, num_neighbors=(5, 20))
SHAPES = [(120, 24), (60, 150)]  # more images than features, and fewer
KINDS = ("ridge", "logreg", "knn")


def make_source(num_samples: int, num_features: int, seed: int = 0) -> ArraySource:
    """Three classes of 1/2, 1/3 and 1/6 of the images, that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])[torch.arange(num_samples) % 6]
    centres = torch.randn(3, num_features, generator=torch.Generator().manual_seed(99))
    tokens = torch.randn(num_samples, 1, num_features, generator=generator) + 0.4 * centres[labels].unsqueeze(1)
    return ArraySource(concat_tokens([tokens]), labels, 3)


def features_of(source: ArraySource) -> SourceFeatures:
    return SourceFeatures(source, torch.arange(len(source.targets)))


def sample_weights(labels: Tensor) -> Tensor:
    weights = class_weights(labels, 3)[labels]
    return weights / weights.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_is_that_of_scikit_learn_for_every_penalty(shape: tuple[int, int]) -> None:
    source = make_source(*shape)
    x, labels = source.tokens.double(), source.targets
    solutions = solve_ridge(features_of(source), labels, sample_weights(labels), THREE, PENALTIES)
    for penalty, (weight, bias) in zip(PENALTIES, solutions, strict=True):
        oracle = Ridge(alpha=penalty)
        oracle.fit(x.numpy(), np.eye(3)[labels.numpy()], sample_weight=sample_weights(labels).numpy())
        np.testing.assert_allclose(weight.numpy(), oracle.coef_, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(bias.numpy(), oracle.intercept_, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_logistic_regression_is_that_of_scikit_learn_for_every_penalty(shape: tuple[int, int]) -> None:
    """scikit-learn sums the losses where we average them: its C is 1 / penalty when the weights sum to 1."""
    source = make_source(*shape)
    x, labels = source.tokens.double(), source.targets
    solutions = solve_logreg(features_of(source), labels, sample_weights(labels), THREE, PENALTIES)
    for penalty, (weight, bias) in zip(PENALTIES, solutions, strict=True):
        oracle = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=20000, solver="newton-cg")
        oracle.fit(x.numpy(), labels.numpy(), sample_weight=sample_weights(labels).numpy())
        probabilities = torch.addmm(bias, x, weight.T).softmax(1)
        np.testing.assert_allclose(probabilities.numpy(), oracle.predict_proba(x.numpy()), atol=2e-4)
        scale = np.abs(oracle.coef_).max()
        np.testing.assert_allclose(weight.numpy() / scale, oracle.coef_ / scale, atol=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_logistic_regression_stands_where_its_gradient_is_zero(shape: tuple[int, int]) -> None:
    source = make_source(*shape)
    x, labels = source.tokens.double(), source.targets
    for penalty, solution in zip(
        PENALTIES, solve_logreg(features_of(source), labels, sample_weights(labels), THREE, PENALTIES), strict=True
    ):
        weight, bias = (part.requires_grad_() for part in solution)
        nll = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="none")
        loss = (nll * sample_weights(labels)).sum() + penalty / 2 * weight.square().sum()
        for gradient in torch.autograd.grad(loss, (weight, bias)):
            assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_features_that_are_read_again_give_the_bits_of_those_in_memory(
    kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerbank.probes.data.features, "PART_ROWS", 16)
    train, test = make_source(*shape), make_source(30, shape[1], seed=1)
    head = Head(kind=kind)
    needed_bytes = HEADS[kind].solver_bytes(*shape, 3, len(PROTOCOL.solved_settings(head)))
    reads: list[int] = []

    class Counted(ArraySource):
        def take(self, rows: Tensor) -> Tensor:
            reads.append(len(rows))
            return super().take(rows)

    source = Counted(train.tokens, train.targets, 3)
    held = run_solver(head, source, lambda: test, PROTOCOL)
    once, reads[:] = sum(reads), []
    again = run_solver(head, source, lambda: test, PROTOCOL, memory_bytes=needed_bytes)
    assert torch.equal(held.test_logits, again.test_logits)  # type: ignore[arg-type]
    assert held.scores == again.scores
    assert sum(reads) == once if kind == "knn" else sum(reads) >= 1.5 * once
    with raises("probes.too_little_memory", SettingError, needed=f"{math.ceil(needed_bytes / 1e6)} MB"):
        run_solver(head, source, lambda: test, PROTOCOL, memory_bytes=needed_bytes - 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_and_tiles_and_factors_change_no_solution(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(*shape)
    weights = sample_weights(source.targets)
    penalties = (*PENALTIES, 1e-18)  # the last is smaller than the rounding errors of the Gram matrix

    def solutions() -> Tensor:
        solved = solve_ridge(features_of(source), source.targets, weights, THREE, penalties)
        return torch.stack([torch.cat([weight, bias.unsqueeze(1)], 1) for weight, bias in solved])

    whole = solutions()
    monkeypatch.setattr(layerbank.probes.data.features, "PART_ROWS", 7)
    monkeypatch.setattr(layerbank.probes.heads.gram, "TILE", 10)
    torch.testing.assert_close(solutions()[:-1], whole[:-1], rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(layerbank.probes.heads.ridge, "LARGEST_EIGH", 0)
    torch.testing.assert_close(solutions()[:-1], whole[:-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_neighbors", [1, 7, 500])
def test_neighbours_vote_as_in_scikit_learn(num_neighbors: int) -> None:
    train, test = make_source(120, 24), make_source(40, 24, seed=1)
    probe = KnnProbe(l2_normalize(train.tokens), train.targets, 3, num_neighbors=num_neighbors)
    oracle = KNeighborsClassifier(
        min(num_neighbors, 120),
        algorithm="brute",
        metric="cosine",
        weights=lambda distances: np.exp((1 - distances) / 0.07),
    )
    oracle.fit(train.tokens.numpy(), train.targets.numpy())
    ours = probe(3 * test.tokens).softmax(1)  # cosines do not see lengths
    np.testing.assert_allclose(ours.numpy(), oracle.predict_proba(test.tokens.numpy()), atol=1e-4)
    assert probe(test.tokens).isfinite().all()


def test_a_class_without_images_never_wins() -> None:
    source = make_source(60, 24)
    x, labels = source.tokens.double(), source.targets
    weights = class_weights(labels, 5)[labels]
    for solve in (solve_ridge, solve_logreg):
        ((weight, bias),) = solve(
            features_of(source), labels, weights / weights.sum(), Multiclass(num_classes=5), [1e-3]
        )
        assert not weight[3:].any()
        assert (torch.addmm(bias, x, weight.T).argmax(1) < 3).all()
    assert bias[3:].tolist() == [ABSENT_BIAS] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_solver_chooses_on_held_out_images_solves_again_on_all_and_tests_once(kind: str) -> None:
    train, test = make_source(150, 24), make_source(60, 24, seed=1)
    opened, events = [], list[Progress]()

    def open_test() -> ArraySource:
        opened.append(len(events))
        return test

    result = run_solver(Head(kind=kind), train, open_test, PROTOCOL, on_event=events.append)
    assert opened == [len(events)]
    kept, held_out = split_stratified(train.targets, 0.2, 0)
    again = ArraySource(train.tokens[kept], train.targets[kept], 3)
    for score in result.scores:
        alone = TrainingProtocol(
            penalties=(getattr(score.setting, "penalty", 1.0),),
            num_neighbors=(getattr(score.setting, "num_neighbors", 1),),
        )
        probe = solve_alone(kind, again, alone)
        predictions = probe(train.tokens[held_out]).argmax(1)
        assert score.validation == balanced_accuracy(predictions, train.targets[held_out], 3).item()
    assert result.chosen == max(result.scores, key=lambda score: score.validation or 0).setting
    assert (result.selection, result.refit, result.rungs, result.diverged) == (None, None, (), False)
    assert list(result.seconds) == ["select", "validate", "refit", "test"]
    assert result.probe is not None
    assert result.test is not None
    assert result.test_logits is not None
    assert torch.equal(result.probe(test.tokens), result.test_logits)
    assert result.test["balanced_accuracy"] > 0.6
    assert result.num_parameters == (0 if kind == "knn" else 25 * 3)
    if isinstance(result.probe, KnnProbe):
        assert len(result.probe.bank) == 150


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_is_one_grid_and_its_best_is_what_it_is_alone(kind: str) -> None:
    """Three sets of tokens of the same images, the second one twice: the first of equals wins, and only it sees the test images."""
    whole, test = make_source(150, 24), make_source(60, 24, seed=1)
    columns = (slice(0, 6), slice(0, 24), slice(0, 24), slice(12, 20))
    opened: list[int] = []

    def cut(source: ArraySource, number: int) -> ArraySource:
        return ArraySource(source.tokens[:, columns[number]], source.targets, 3)

    def open_train(number: int) -> ArraySource:
        opened.append(number)
        return cut(whole, number)

    events = list[Progress]()
    family = run_solvers(
        Head(kind=kind),
        [partial(open_train, number) for number in range(4)],
        lambda number: cut(test, opened.append(-number) or number),  # type: ignore[func-returns-value]
        PROTOCOL,
        on_event=events.append,
    )
    alone = [
        run_solver(Head(kind=kind), cut(whole, number), lambda n=number: cut(test, n), PROTOCOL)  # type: ignore[misc]
        for number in range(4)
    ]
    assert family.candidate == 1
    assert alone[1].validation == max(one.validation or 0 for one in alone)
    assert opened == [0, 1, 2, 3, 1, -1]
    assert family.candidate_scores == tuple(one.scores for one in alone)
    assert (family.scores, family.chosen, family.test) == (alone[1].scores, alone[1].chosen, alone[1].test)
    assert torch.equal(family.test_logits, alone[1].test_logits)  # type: ignore[arg-type]
    assert (events[0].step, events[-1].step, events[-1].num_steps) == (
        0,
        4 * len(alone[0].scores),
        4 * len(alone[0].scores),
    )


def solve_alone(kind: str, source: ArraySource, protocol: TrainingProtocol) -> LinearProbe | KnnProbe:
    """The probe solved on every image of a source."""
    weights = sample_weights(source.targets)
    if kind == "knn":
        bank = l2_normalize(source.tokens)
        return KnnProbe(bank, source.targets, 3, num_neighbors=protocol.num_neighbors[0])
    solve = solve_ridge if kind == "ridge" else solve_logreg
    ((weight, bias),) = solve(features_of(source), source.targets, weights, THREE, protocol.penalties)
    probe = LinearProbe(24, 3)
    probe.classifier.weight.data.copy_(weight)
    probe.classifier.bias.data.copy_(bias)
    return probe


def test_the_cosines_of_knn_are_computed_once_for_all_numbers_of_neighbors() -> None:
    train, test = make_source(120, 24), make_source(60, 24)
    flops = []
    for num_neighbors in ((5,), (1, 5, 20, 50, 200)):
        with FlopCounterMode(display=False) as counter:
            run_solver(Head(kind="knn"), train, lambda: test, replace(PROTOCOL, num_neighbors=num_neighbors))
        flops.append(counter.get_total_flops())
    assert flops[1] == flops[0] > 0


def test_the_grid_of_knn_has_the_scores_of_each_number_alone() -> None:
    train, test = make_source(120, 24), make_source(60, 24)
    numbers = (1, 5, 20, 50, 200)
    alone = [
        run_solver(Head(kind="knn"), train, lambda: test, replace(PROTOCOL, num_neighbors=(number,)))
        for number in numbers
    ]
    together = run_solver(Head(kind="knn"), train, lambda: test, replace(PROTOCOL, num_neighbors=numbers))
    assert together.scores == tuple(score for one in alone for score in one.scores)


def test_the_grids_are_those_of_the_protocol() -> None:
    assert PROTOCOL.solved_settings(Head(kind="ridge")) == tuple(PenaltySetting(penalty=one) for one in PENALTIES)
    assert PROTOCOL.solved_settings(Head(kind="knn")) == (
        NeighborSetting(num_neighbors=5),
        NeighborSetting(num_neighbors=20),
    )
    with raises("probes.not_solved", SettingError, kind="linear", kinds="ridge, logreg, knn"):
        PROTOCOL.solved_settings(Head(kind="linear"))
    rules = "penalties at least one, all > 0; num_neighbors at least one, all integers >= 1"
    with raises("probes.wrong_protocol", SettingError, rules=rules):
        TrainingProtocol(penalties=(0.0,), num_neighbors=(1.5,))


def test_tokens_that_are_stacked_are_refused() -> None:
    source = ArraySource(torch.zeros(6, 2, 4), torch.arange(6) % 3, 3)
    with raises("probes.tokens_not_flat", SettingError, head="ridge", shape=(2, 4)):
        run_solver(Head(kind="ridge"), source, lambda: source, PROTOCOL)


def test_test_images_unlike_the_training_images_are_refused() -> None:
    with raises("probes.test_tokens_differ", DataError, train_shape=(24,), train_task=THREE):
        run_solver(Head(kind="knn"), make_source(60, 24), lambda: make_source(60, 20), PROTOCOL)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_not_finite_are_refused(kind: str) -> None:
    source = make_source(60, 24)
    source.tokens[7, 3] = torch.nan
    with raises("probes.tokens_not_finite", DataError, num_broken=1):
        run_solver(Head(kind=kind), source, lambda: source, PROTOCOL)


def test_a_bank_that_cannot_vote_is_refused() -> None:
    values = {"bank": [0, 4], "labels": [0], "num_neighbors": 0, "temperature": 0.07}
    with raises("probes.knn_bank", SettingError, **values):
        KnnProbe(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 3, num_neighbors=0)
    with raises("probes.labels_out_of_range", DataError, last=2, least=3, largest=3):
        KnnProbe(torch.zeros(1, 4), torch.tensor([3]), 3, num_neighbors=1)
