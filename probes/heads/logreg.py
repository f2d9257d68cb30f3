"""Multinomial logistic regression by L-BFGS.

    minimise  sum_i w_i CE(W x_i + b, y_i) + penalty / 2 ||W||^2        sum_i w_i = 1, b is free

The problem is convex, so there is nothing to seed or schedule. Two exact changes of variables make it cheap: features
are centred (b absorbs the mean), and with more features than images, W is optimised in the span of the images, which
contains the optimum: at most N numbers a class instead of F, in the basis of the eigenvectors of X X^T. Penalties are solved in
the order given, each from the solution before it, so give the largest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..tasks.multiclass import Multiclass
from ..tasks.task import Task
from .features import Features, part_bytes
from .gram import CentredFeatures
from .head import HeadType
from .linear import LinearProbe, linear_solver

MAX_ITERATIONS = 1000
TOLERANCE = 1e-7  # largest element of the gradient, of a loss whose weights sum to 1
HISTORY = 20
ABSENT_BIAS = -1e4  # for a class without images, whose free bias would go to minus infinity


def solve_logreg(
    features: Features, labels: Tensor, weights: Tensor, task: Task, penalties: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weights of a linear classifier for each penalty: arguments and what is yielded as of `solve_ridge`.

    A class that does not occur gets zero weights and a bias that never wins.
    """
    num_classes = task.num_outputs
    classes, targets = torch.unique(labels, return_inverse=True)
    centred = CentredFeatures(features, weights)
    if in_span := centred.shape[0] < centred.shape[1]:
        x, to_factors = _span_of_rows(centred)
    else:
        x = torch.cat([part for _, part in centred.parts()])
    weight = torch.zeros(len(classes), x.shape[1], dtype=torch.float64)
    bias = torch.zeros(len(classes), dtype=torch.float64)
    for penalty in penalties:
        _minimize(x, targets, weights, penalty, weight, bias)
        whole = torch.zeros(num_classes, centred.shape[1], dtype=torch.float64)
        whole[classes] = centred.combine(to_factors @ weight.T).T if in_span else weight
        offsets = torch.full((num_classes,), ABSENT_BIAS, dtype=torch.float64)
        offsets[classes] = bias - whole[classes] @ centred.mean
        yield whole, offsets


def _span_of_rows(centred: CentredFeatures) -> tuple[Tensor, Tensor]:
    """Coordinates [N, R] of the rows in an orthonormal basis of their span, and the basis as combinations [N, R] of them."""
    values, vectors = torch.linalg.eigh(centred.gram_of_rows())
    is_there = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
    lengths, vectors = values[is_there].sqrt(), vectors[:, is_there]
    return vectors * lengths, vectors / lengths


def _minimize(x: Tensor, labels: Tensor, weights: Tensor, penalty: float, weight: Tensor, bias: Tensor) -> None:
    """Move weight and bias to the optimum, in place; the gradient by hand, as in the banks."""
    loss_and_grad = Multiclass(num_classes=len(bias)).loss_and_grad
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        loss, dlogits = loss_and_grad(torch.addmm(bias, x, weight.T).unsqueeze(0), labels, weights)
        weight.grad = (dlogits[0].T @ x).add_(weight, alpha=penalty)
        bias.grad = dlogits[0].sum(0)
        return loss[0] + 0.5 * penalty * weight.square().sum()

    optimizer.step(evaluate)  # type: ignore[no-untyped-call]


def _bytes(num_rows: int, num_features: int, num_outputs: int, num_settings: int) -> int:
    """An upper bound of what `solve_logreg` takes beside the features."""
    smaller = min(num_rows, num_features)
    matrix = 5 * smaller**2 if num_rows < num_features else num_rows * num_features
    of_class = (2 * HISTORY + 6) * smaller + 6 * num_rows + 3 * num_features + num_settings * num_features
    return 8 * (2 * matrix + num_outputs * of_class) + part_bytes(num_features)


HEAD = HeadType(
    name="logreg",
    module=LinearProbe,
    flat=True,
    solver=linear_solver(solve_logreg),
    solver_bytes=_bytes,
    tasks=(Multiclass.type,),
    tasks_reason="it is a softmax over classes",
)
