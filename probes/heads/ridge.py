"""Ridge regression on numbers, one-hot for classes, solved for every penalty from one eigendecomposition.

    minimise  sum_i w_i || y_i - W x_i - b ||^2 + penalty ||W||^2        sum_i w_i = 1, b is free

With weighted centring (which removes b) and rows scaled by sqrt(w_i) the solution is (X^T X + penalty)^-1 X^T Y. The smaller of
X^T X [F, F] and X X^T [N, N] is decomposed, once; a penalty is then a division. float64 throughout: the small penalties need it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tasks.task import Task
from .head import HeadType
from .linear import LinearProbe, linear_solver


def solve_ridge(
    features: Tensor, targets: Tensor, weights: Tensor, task: Task, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Weights of a linear layer for each penalty.

    Args:
        features: [N, F] float64.
        targets: [N], encoded; the outputs approximate `Task.ridge_targets`.
        weights: [N] float64 of the samples, summing to 1.
        task: the task of the data set.
        penalties: each > 0.

    Returns:
        (weight [C, F], bias [C]) for each penalty, float64.
    """
    numbers = task.ridge_targets(targets)
    mean_x, mean_y = weights @ features, weights @ numbers
    scale = weights.sqrt().unsqueeze(1)
    x, y = (features - mean_x) * scale, (numbers - mean_y) * scale
    dual = len(x) < x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if dual else x.T @ x)
    rotated = vectors.T @ (y if dual else x.T @ y)
    solutions = []
    for penalty in penalties:
        solution = vectors @ (rotated / (values.clamp(min=0) + penalty).unsqueeze(1))
        weight = (x.T @ solution if dual else solution).T.contiguous()  # [C, F]
        solutions.append((weight, mean_y - weight @ mean_x))
    return solutions


HEAD = HeadType(name="ridge", module=LinearProbe, flat=True, solver=linear_solver(solve_ridge))
