"""`LayerProbe`, a probe as a scikit-learn estimator."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from messages import raises
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import layerbank as lb
from layerbank import RequestError
from layerbank.probes import SettingError, TrainingProtocol

FEW = TrainingProtocol(lrs=(1e-1,), weight_decays=(1e-4,), dropouts=(0.0,), epochs=4, min_steps=40)
WEIGHTS = "the split holds out rows whatever their weight, and balanced weights count rows"


def data(task: str, *shape: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(80, *shape)).astype(np.float32)
    hidden = X.reshape(80, -1)[:, :3] + 0.01
    targets = {
        "multiclass": np.array(["left", "middle", "right"])[hidden.argmax(1)],
        "ordinal": np.searchsorted([-0.5, 0.5], hidden[:, 0]) * 10,
        "multilabel": (hidden > 0).astype(int),
        "regression": 40 + 5 * hidden[:, 0],
    }
    return X, targets[task]


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel", "regression"])
@pytest.mark.parametrize(
    ("name", "shape"), [("ridge", (8,)), ("linear", (2, 8)), ("attentive", (2, 8)), ("simpool", (8,))]
)
def test_every_task_is_fitted_on_features_and_on_tokens(task: str, name: str, shape: tuple[int, ...]) -> None:
    X, y = data(task, *shape)
    probe = lb.LayerProbe(name, task=task, protocol=FEW).fit(X, y)
    assert (is_regressor(probe), is_classifier(probe)) == (task == "regression", task != "regression")
    assert probe.predict(X).shape == y.shape
    assert probe.score(X, y) > 0.3
    if task == "regression":
        assert not hasattr(probe, "predict_proba")
    else:
        assert probe.predict_proba(X).shape == (80, 3)
        if task != "multilabel":
            np.testing.assert_allclose(probe.predict_proba(X).sum(1), 1)
            assert set(probe.predict(X)) <= set(probe.classes_.tolist())
    np.testing.assert_array_equal(clone(probe).fit(X, y).predict(X), probe.predict(X))


def test_it_works_where_scikit_learn_takes_an_estimator() -> None:
    X, y = data("multiclass", 8)
    probe = lb.LayerProbe("ridge")
    assert cross_val_score(probe, X, y, cv=3).mean() > 0.5
    assert cross_val_score(probe, X, y, cv=GroupKFold(3), groups=np.arange(80) // 4).mean() > 0.5
    search = GridSearchCV(probe, {"name": ["ridge", "logreg"], "metric": [None, "auroc"]}, cv=2).fit(X, y)
    assert search.best_params_["name"] in ("ridge", "logreg")
    assert CalibratedClassifierCV(probe, cv=2).fit(X, y).predict_proba(X).shape == (80, 3)


def test_weights_and_groups_of_rows_are_followed() -> None:
    X, y = data("multiclass", 8)
    weights = np.where(y == "left", 1.0, 50.0)
    for name in ("ridge", "linear"):
        probe = lb.LayerProbe(name, protocol=FEW, class_weights="none")
        plain, weighted = probe.fit(X, y).predict(X), clone(probe).fit(X, y, sample_weight=weights).predict(X)
        assert (weighted == "left").sum() < (plain == "left").sum()
        kept = y != "left"
        without = clone(probe).fit(X, y, sample_weight=kept.astype(float))
        np.testing.assert_array_equal(without.predict(X), clone(probe).fit(X[kept], y[kept]).predict(X))
    by_chance, both_of_each = np.random.default_rng(1).permutation(y), np.tile(np.arange(80), 2)
    nearest = lb.LayerProbe("knn", protocol=replace(FEW, num_neighbors=(1,)))
    twice = np.concatenate([X, X]), np.concatenate([by_chance, by_chance])
    apart, together = (clone(nearest).fit(*twice, groups=groups).result_.validation for groups in (None, both_of_each))
    assert together < 0.6 < apart  # a twin that trains knows the answer


def test_wrong_parameters_are_refused_by_fit() -> None:
    X, y = data("multiclass", 8)
    with raises("layerbank.unknown_part", RequestError, noun="head", name="ridg"):
        lb.LayerProbe("ridg").fit(X, y)
    with raises("probing.unknown_task", RequestError):
        lb.LayerProbe("ridge", task="regresion").fit(X, y)
    with raises("probes.head_not_for_task", SettingError, head="logreg"):
        lb.LayerProbe("logreg", task="regression").fit(*data("regression", 8))
    with raises("api.diverged", RequestError, name="linear"):
        lb.LayerProbe("linear", protocol=replace(FEW, lrs=(1e30,))).fit(X, y)
    with raises("api.one_class", RequestError, name="left"):
        lb.LayerProbe("ridge").fit(X, np.full(80, "left"))


def test_importing_layerbank_does_not_import_scikit_learn() -> None:
    code = "import sys, layerbank; print('sklearn' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def _expected_failures(estimator: Any) -> dict[str, str]:
    return {"check_sample_weight_equivalence_on_dense_data": WEIGHTS}


@parametrize_with_checks(
    [lb.LayerProbe("ridge"), lb.LayerProbe("ridge", task="regression")], expected_failed_checks=_expected_failures
)
def test_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_unknown_labels_may_be_nan_and_are_not_scored() -> None:
    X = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    y = (X[:, :3] > 0).astype(np.float64)
    unknown = np.where(np.random.default_rng(1).random(y.shape) < 0.2, np.nan, y)
    probe = lb.LayerProbe("ridge", task="multilabel").fit(X, unknown)
    whole = ~np.isnan(unknown).any(1)
    assert probe.score(X, unknown) == (probe.predict(X[whole]) == y[whole]).all(1).mean()
    integers = lb.LayerProbe("ridge", task="multilabel").fit(X, np.nan_to_num(unknown, nan=-1).astype(np.int64))
    assert np.array_equal(probe.predict(X), integers.predict(X))
