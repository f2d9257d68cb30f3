"""Ridge regression on numbers, one-hot for classes, solved for every penalty from one Gram matrix.

    minimise  sum_i w_i || y_i - W x_i - b ||^2 + penalty ||W||^2        sum_i w_i = 1, b is free

With weighted centring (which removes b) and rows scaled by sqrt(w_i) the solution is (X^T X + penalty)^-1 X^T Y. The smaller of
X^T X [F, F] and X X^T [N, N] is summed over parts of the features, in float64: the small penalties need it. Up to LARGEST_EIGH
it is decomposed once, and a penalty is a division; above, where that takes longer than a Cholesky factor for each penalty, there
is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..tasks.task import Task
from .features import Features, part_bytes
from .gram import CentredFeatures
from .head import HeadType
from .linear import LinearProbe, linear_solver

LARGEST_EIGH = 4096


def solve_ridge(
    features: Features, targets: Tensor, weights: Tensor, task: Task, penalties: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weights of a linear layer for each penalty.

    Args:
        features: of N rows.
        targets: [N], encoded; the outputs approximate `Task.ridge_targets`.
        weights: [N] float64 of the samples, summing to 1.
        task: the task of the data set.
        penalties: each > 0.

    Yields:
        (weight [C, F], bias [C]) for each penalty, float64.
    """
    numbers = task.ridge_targets(targets)
    scale = weights.sqrt()
    x = CentredFeatures(features, weights, scale)
    mean_y = weights @ numbers
    y = (numbers - mean_y) * scale.unsqueeze(1)
    if dual := x.shape[0] < x.shape[1]:
        gram, moments = x.gram_of_rows(), y
    else:
        gram, moments = x.gram_of_features(y)
    for solution in _solve(gram, moments, penalties):
        weight = x.combine(solution) if dual else solution  # [F, C]
        yield weight.T.contiguous(), mean_y - x.mean @ weight


def _solve(gram: Tensor, moments: Tensor, penalties: Sequence[float]) -> Iterator[Tensor]:
    """(gram + penalty)^-1 moments for each penalty."""
    if len(gram) > LARGEST_EIGH:
        for number, penalty in enumerate(penalties):
            factor = gram.clone()
            factor.diagonal().add_(penalty)
            _, failed = torch.linalg.cholesky_ex(factor, out=(factor, torch.empty((), dtype=torch.int32)))
            if failed:  # the penalty is smaller than the rounding errors of the matrix
                del factor
                yield from _solve_by_eigenvalues(gram, moments, penalties[number:])
                return
            yield torch.cholesky_solve(moments, factor)
    else:
        yield from _solve_by_eigenvalues(gram, moments, penalties)


def _solve_by_eigenvalues(gram: Tensor, moments: Tensor, penalties: Sequence[float]) -> Iterator[Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    rotated = vectors.T @ moments
    for penalty in penalties:
        yield vectors @ (rotated / (values.clamp(min=0) + penalty).unsqueeze(1))


def _bytes(num_rows: int, num_features: int, num_outputs: int, num_settings: int) -> int:
    """An upper bound of what `solve_ridge` takes beside the features."""
    smaller = min(num_rows, num_features)
    copies = 5 if smaller <= LARGEST_EIGH else 3
    outputs = 8 * num_outputs * ((4 + num_settings) * num_features + 4 * num_rows)
    return 8 * copies * smaller**2 + outputs + part_bytes(num_features)


HEAD = HeadType(name="ridge", module=LinearProbe, flat=True, solver=linear_solver(solve_ridge), solver_bytes=_bytes)
