"""Multinomial logistic regression by L-BFGS.

    minimise  sum_i w_i CE(W x_i + b, y_i) + penalty / 2 ||W||^2        sum_i w_i = 1, b is free

The problem is convex, so there is nothing to seed or schedule. Two exact changes of variables make it cheap: features
are centred (b absorbs the mean), and with more features than images, W is optimised in the span of the images, which
contains the optimum: N numbers a class instead of F. Penalties are solved in the order given, each from the solution
before it, so give the largest first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tasks.multiclass import Multiclass
from ..tasks.task import Task
from .head import HeadType
from .linear import LinearProbe, linear_solver

MAX_ITERATIONS = 1000
TOLERANCE = 1e-7  # largest element of the gradient, of a loss whose weights sum to 1
HISTORY = 20
ABSENT_BIAS = -1e4  # for a class without images, whose free bias would go to minus infinity


def solve_logreg(
    features: Tensor, labels: Tensor, weights: Tensor, task: Task, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Weights of a linear classifier for each penalty: arguments and result as in `solve_ridge`.

    A class that does not occur gets zero weights and a bias that never wins.
    """
    num_classes = task.num_outputs
    classes, targets = torch.unique(labels, return_inverse=True)
    x, basis = features.double(), None
    mean = weights @ x
    x = x - mean
    if len(x) < x.shape[1]:
        basis, triangle = torch.linalg.qr(x.T)  # x = triangle^T basis^T
        x = triangle.T.contiguous()
    weight = torch.zeros(len(classes), x.shape[1], dtype=torch.float64)
    bias = torch.zeros(len(classes), dtype=torch.float64)
    solutions = []
    for penalty in penalties:
        _minimize(x, targets, weights, penalty, weight, bias)
        full = weight if basis is None else weight @ basis.T
        whole = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
        whole[classes] = full
        offsets = torch.full((num_classes,), ABSENT_BIAS, dtype=torch.float64)
        offsets[classes] = bias - full @ mean
        solutions.append((whole, offsets))
    return solutions


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


HEAD = HeadType(
    name="logreg",
    module=LinearProbe,
    flat=True,
    solver=linear_solver(solve_logreg),
    tasks=(Multiclass.type,),
    tasks_reason="it is a softmax over classes",
)
