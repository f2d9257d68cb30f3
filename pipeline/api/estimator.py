"""A probe of arrays as a scikit-learn estimator: no images, stores or backbones."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted, validate_data

from layerbank.probes import (
    HEADS,
    TASKS,
    ArraySource,
    Head,
    HeadModule,
    Task,
    TrainingProtocol,
    concat_tokens,
    run_solver,
    run_sweep,
    stack_tokens,
)
from layerbank.probes.tasks.multilabel import UNKNOWN

from ..data.task_names import MULTICLASS, MULTILABEL, ORDINAL, REGRESSION
from ..errors import RequestError
from ..probing.protocols import open_protocol
from ..probing.task_options import check_task_options, with_options


class LayerProbe(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A probe of features [N, F] or tokens [N, T, D], with the conventions of scikit-learn.

    `fit` follows the protocol of `layerbank probe`: some rows are held out, the setting with the best score on them is chosen, and
    the probe is trained again on all. Every token is divided by its length. A head of tokens reads [N, F] as one token, a linear
    one reads tokens side by side.

    Args:
        name: a head: linear, ridge, logreg, knn, attentive, simpool, ...; `layerbank.probes.HEADS` has all.
        task: "multiclass", "multilabel" (y [N, C] of 1, 0 and -1 or NaN for unknown), "ordinal" (classes in rising order) or
            "regression" (y [N] or [N, K]).
        metric: the metric that settings are chosen by; None is the task's first.
        class_weights: "balanced", "none", or "cat=1,dog=2.5"; None is balanced.
        protocol: "quick", "paper", a TOML file, or a `TrainingProtocol`.
        num_heads: of a head that has heads; None is 1 of each token for attentive heads.
        num_levels: levels that the tokens of a head with levels are of, the same number of each.
        random_state: seed of split, initial weights, order and jitter, from 0; None is 0.

    Attributes:
        classes_: [C] the classes, of multiclass and ordinal.
        n_features_in_: F, or T.
        probe_: the trained module.
        result_: the result of the sweep: scores of all settings, the chosen one; its test is of one training row, without meaning.

    Raises:
        RequestError, ProbeError (`fit`): an unknown head, task, metric or protocol, or a head that cannot answer the task.

    >>> import numpy as np, layerbank as lb
    >>> X = np.random.default_rng(0).normal(size=(60, 8))
    >>> y = np.where(X[:, 0] > 0, "right", "left")
    >>> probe = lb.LayerProbe("ridge").fit(X[:40], y[:40])
    >>> probe.predict_proba(X[40:]).shape, bool(probe.score(X[40:], y[40:]) > 0.6)
    ((20, 2), True)
    """

    def __init__(
        self,
        name: str = "linear",
        *,
        task: str = MULTICLASS,
        metric: str | None = None,
        class_weights: str | None = None,
        protocol: str | TrainingProtocol = "quick",
        num_heads: int | None = None,
        num_levels: int = 1,
        random_state: int | None = None,
    ) -> None:
        self.name, self.task, self.metric, self.class_weights = name, task, metric, class_weights
        self.protocol, self.num_heads, self.num_levels = protocol, num_heads, num_levels
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> Self:
        """Choose a setting and train.

        Args:
            X: [N, F] or [N, T, D].
            y: [N] classes or numbers, or [N, K].
            groups: [N]; rows of one group are not divided between training and validation.
            sample_weight: [N] factors of the loss, beside those of the classes; a row of weight 0 is left out.
        """
        is_matrix = self.task in (MULTILABEL, REGRESSION)
        checks = (
            {"y_numeric": is_matrix, "multi_output": is_matrix} if self.task != MULTILABEL else {"multi_output": True}
        )
        y = _with_unknown(y) if self.task == MULTILABEL else y
        X, y = validate_data(self, X, y, allow_nd=True, dtype=np.float32, ensure_min_samples=2, **checks)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        check_consistent_length(X, groups)
        used = weights > 0
        X, y, weights = X[used], y[used], weights[used]
        groups = None if groups is None else np.unique(np.asarray(groups)[used], return_inverse=True)[1]
        source = self._source(X, *self._asked(y), groups=groups, weights=weights)
        head, protocol = self._head(X), self._protocol()
        run = run_solver if HEADS[head.kind].is_solved else run_sweep
        # the sweep ends with a test, for which there are no images here
        self.result_ = run(head, source, lambda: self._source(X[:1], source.targets[:1], source.task), protocol)
        if not isinstance(self.result_.probe, HeadModule):
            raise RequestError("api.diverged", name=self.name)
        self.probe_, self._task = self.result_.probe, source.task.fit(source.targets)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """[N] classes or numbers, or [N, K]."""
        found: NDArray[Any] = self._task_of_fit().predict(self._outputs(X)).numpy()
        return self.classes_[found] if hasattr(self, "classes_") else found

    @available_if(lambda self: self.task != REGRESSION)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """[N, C] probabilities of the classes or labels; not there for regression."""
        found = self._task_of_fit().probabilities(self._outputs(X).double())
        assert found is not None
        probabilities: NDArray[np.float64] = found.numpy()
        return probabilities

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy; of several labels that of whole rows, those without unknown labels; R2 for numbers."""
        score, found = r2_score if self.task == REGRESSION else accuracy_score, self.predict(X)
        if self.task == MULTILABEL:
            y = _with_unknown(y)
            known = (y != UNKNOWN).all(1)
            y, found = y[known], found[known]
            sample_weight = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(score(y, found, sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, RegressorTags

        tags = super().__sklearn_tags__()
        is_regressor = self.task == REGRESSION
        tags.estimator_type = "regressor" if is_regressor else "classifier"
        tags.regressor_tags = RegressorTags() if is_regressor else None
        tags.classifier_tags = None if is_regressor else ClassifierTags(multi_label=self.task == MULTILABEL)
        tags.target_tags.required = True
        tags.target_tags.multi_output = self.task in (MULTILABEL, REGRESSION)
        tags.target_tags.single_output = self.task != MULTILABEL
        tags.input_tags.three_d_array = True
        return tags

    def _asked(self, y: NDArray[Any]) -> tuple[torch.Tensor, Task]:
        """Targets and the task with its options."""
        check_task_options(self.task, self.metric)
        names: list[str] = []
        self.__dict__.pop("classes_", None)
        if self.task in (MULTICLASS, ORDINAL):
            check_classification_targets(y)
            classes, y = np.unique(y, return_inverse=True)
            self.classes_: NDArray[Any] = classes
            names = [str(one) for one in classes]
            if len(names) < 2:
                raise RequestError("api.one_class", name=names[0])
        elif self.task == REGRESSION:
            y = y.astype(np.float64)
        task = TASKS.require(self.task).for_data(len(names), y.shape[1] if y.ndim > 1 else 0)
        return torch.from_numpy(np.ascontiguousarray(y)), with_options(task, self.metric, self.class_weights, names)

    def _source(
        self,
        X: NDArray[Any],
        targets: torch.Tensor,
        task: Task,
        *,
        groups: NDArray[np.int64] | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> ArraySource:
        of_rows = [None if one is None else torch.from_numpy(one) for one in (groups, weights)]
        return ArraySource(self._tokens(X), targets, task, groups=of_rows[0], weights=of_rows[1])

    def _tokens(self, X: NDArray[Any]) -> torch.Tensor:
        tokens = torch.from_numpy(np.ascontiguousarray(X))
        tokens = tokens.unsqueeze(1) if tokens.dim() == 2 else tokens
        return concat_tokens([tokens]) if HEADS.require(self.name).flat else stack_tokens([tokens])

    def _head(self, X: NDArray[Any]) -> Head:
        kind, num_tokens = HEADS.require(self.name), X.shape[1] if X.ndim > 2 else 1
        num_heads = (num_tokens if self.num_heads is None else self.num_heads) if kind.has_heads else 0
        return Head(kind=self.name, num_heads=num_heads, num_levels=self.num_levels if kind.has_levels else 0)

    def _protocol(self) -> TrainingProtocol:
        if isinstance(self.protocol, TrainingProtocol):
            return self.protocol
        return open_protocol(self.protocol, seed=0 if self.random_state is None else int(self.random_state))

    def _task_of_fit(self) -> Task:
        check_is_fitted(self, "probe_")
        return self._task

    @torch.no_grad()
    def _outputs(self, X: Any) -> torch.Tensor:
        check_is_fitted(self, "probe_")
        X = validate_data(self, X, reset=False, allow_nd=True, dtype=np.float32)
        parts = torch.split(self._tokens(X), 1024)
        return torch.cat([self.probe_(part) for part in parts])


def _with_unknown(y: Any) -> NDArray[Any]:
    """Labels [N, C] with -1 for NaN."""
    labels = np.asarray(y)
    return np.where(np.isnan(labels), UNKNOWN, labels) if labels.dtype.kind == "f" else labels
