"""Ridge regression on numbers, one-hot for classes, solved for every penalty from one eigendecomposition.

    minimise  sum_i w_i || y_i - W x_i - b ||^2 + penalty ||W||^2        sum_i w_i = 1, b is free

With weighted centring (which removes b) and rows scaled by sqrt(w_i) the solution is (X^T X + penalty)^-1 X^T Y. The smaller of
X^T X [F, F] and X X^T [N, N] is decomposed, once; a penalty is then a division. float64 throughout: the small penalties need it.
The features themselves stay as they are: a part of them at a time is widened and centred, so beside them the solver takes about
40 min(N, F)^2 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..tasks.task import Task
from .head import HeadType
from .linear import LinearProbe, linear_solver

PART_BYTES = 64 << 20  # of features in float64


def solve_ridge(
    features: Tensor, targets: Tensor, weights: Tensor, task: Task, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Weights of a linear layer for each penalty.

    Args:
        features: [N, F], float32 or float64.
        targets: [N], encoded; the outputs approximate `Task.ridge_targets`.
        weights: [N] float64 of the samples, summing to 1.
        task: the task of the data set.
        penalties: each > 0.

    Returns:
        (weight [C, F], bias [C]) for each penalty, float64.
    """
    numbers = task.ridge_targets(targets)
    (num_samples, num_features), scale = features.shape, weights.sqrt().unsqueeze(1)
    mean_x = torch.cat([weights @ features[:, part].double() for part in _parts(num_features, num_samples)])
    mean_y = weights @ numbers
    y = (numbers - mean_y) * scale

    def columns() -> Iterator[Tensor]:
        """X, some features at a time."""
        for part in _parts(num_features, num_samples):
            yield (features[:, part].double() - mean_x[part]) * scale

    if dual := num_samples < num_features:
        gram, moments = torch.zeros(num_samples, num_samples, dtype=torch.float64), y
        for x in columns():
            gram.addmm_(x, x.T)
    else:
        gram, moments = (torch.zeros(num_features, size, dtype=torch.float64) for size in (num_features, y.shape[1]))
        for part in _parts(num_samples, num_features):
            x = (features[part].double() - mean_x) * scale[part]
            gram.addmm_(x.T, x)
            moments.addmm_(x.T, y[part])
    values, vectors = torch.linalg.eigh(gram)
    rotated = vectors.T @ moments
    solutions = []
    for penalty in penalties:
        solution = vectors @ (rotated / (values.clamp(min=0) + penalty).unsqueeze(1))
        weight = torch.cat([x.T @ solution for x in columns()]) if dual else solution  # [F, C]
        solutions.append((weight.T.contiguous(), mean_y - mean_x @ weight))
    return solutions


def _parts(length: int, width: int) -> Iterator[slice]:
    """Slices of so many rows or columns that a part has at most about PART_BYTES in float64."""
    step = max(1, PART_BYTES // (8 * width))
    return (slice(start, start + step) for start in range(0, length, step))


HEAD = HeadType(name="ridge", module=LinearProbe, flat=True, solver=linear_solver(solve_ridge))
