"""Ridge regression on one-hot targets, solved for every penalty from one eigendecomposition.

    minimise  sum_i w_i || y_i - W x_i - b ||^2 + penalty ||W||^2        sum_i w_i = 1, b is free

With weighted centring (which removes b) and rows scaled by sqrt(w_i) the solution is (X^T X + penalty)^-1 X^T Y. The smaller of
X^T X [F, F] and X X^T [N, N] is decomposed, once; a penalty is then a division. float64 throughout: the small penalties need it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .head import HeadType
from .linear import LinearProbe, linear_solver


def solve_ridge(
    features: Tensor, labels: Tensor, weights: Tensor, num_classes: int, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Weights of a linear classifier for each penalty.

    Args:
        features: [N, F] float64.
        labels: [N] int64; the targets are 1 for the class and 0 for the others.
        weights: [N] float64 of the samples, summing to 1.
        num_classes: C.
        penalties: each > 0.

    Returns:
        (weight [C, F], bias [C]) for each penalty, float64.
    """
    targets = torch.nn.functional.one_hot(labels, num_classes).double()
    mean_x, mean_y = weights @ features, weights @ targets
    scale = weights.sqrt().unsqueeze(1)
    x, y = (features - mean_x) * scale, (targets - mean_y) * scale
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
