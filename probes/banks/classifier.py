"""The end of every probe: BatchNorm, classifier and the loss of the task, for P probes at once, with gradients by hand.

It needs the whole batch, even where the part before runs in chunks. A BatchNorm without affine part has gain 1 and bias 0,
which are not trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tasks.task import Task
from .stack import Stack

EPS = 1e-5
MOMENTUM = 0.1


def train_classifier(
    stack: Stack, y: Tensor, offset: Tensor, targets: Tensor, weights: Tensor, task: Task, *, out: Tensor
) -> Tensor:
    """Forward and backward pass of BatchNorm, classifier and loss.

    Args:
        stack: has "bn" and "classifier"; their gradients are written, the running statistics are updated.
        y: [P, B, D]; overwritten.
        offset: [P, D], a constant part of y: BatchNorm removes it, only the running mean contains it.
        targets: [B], encoded.
        weights: [B], or [P, B], of the samples in the loss, summing to 1.
        task: its loss.
        out: [P, B, D], receives the gradient of the loss with respect to y.

    Returns:
        loss [P].
    """
    values, grads, statistics = stack.values, stack.grads, stack.statistics
    num_samples = y.shape[1]
    mean = y.mean(1)  # [P, D]
    yhat = y.sub_(mean.unsqueeze(1))
    variance = torch.linalg.vector_norm(yhat, dim=1).square_().div_(num_samples)  # var_mean: 4 times slower
    unbiased = variance * (num_samples / (num_samples - 1))
    statistics["bn.running_mean"].lerp_(mean + offset, MOMENTUM)
    statistics["bn.running_var"].lerp_(unbiased, MOMENTUM)
    rstd = (variance + EPS).rsqrt().unsqueeze(1)
    yhat.mul_(rstd)

    weight, (gain, shift) = values["classifier.weight"], _affine_part(stack)  # [P, C, D], [P, 1, D] twice
    matrix = weight * gain
    bias = torch.bmm(shift, weight.mT) + values["classifier.bias"].unsqueeze(1)
    loss, dlogits = task.loss_and_grad(torch.baddbmm(bias, yhat, matrix.mT), targets, weights)

    dbias = dlogits.sum(1)  # [P, C]
    dmatrix = torch.bmm(dlogits.mT, yhat)  # [P, C, D]
    grads["classifier.bias"].copy_(dbias)
    torch.mul(dmatrix, gain, out=grads["classifier.weight"])
    grads["classifier.weight"].addcmul_(dbias.unsqueeze(2), shift)
    dgain = dmatrix.mul_(weight).sum(1, keepdim=True)  # [P, 1, D]
    dshift = torch.bmm(dbias.unsqueeze(1), weight)
    if "bn.weight" in grads:
        grads["bn.weight"].copy_(dgain.squeeze(1))
        grads["bn.bias"].copy_(dshift.squeeze(1))

    # through BatchNorm: minus the mean of dyhat, minus yhat times the mean of dyhat * yhat, both known already
    dyhat = torch.bmm(dlogits, matrix, out=out)
    mean_dyhat, mean_dyhat_yhat = dshift * gain / num_samples, dgain * gain / num_samples
    dyhat.sub_(mean_dyhat).addcmul_(yhat, mean_dyhat_yhat, value=-1).mul_(rstd)
    return loss


def fold_batch_norm(stack: Stack) -> tuple[Tensor, Tensor]:
    """BatchNorm in evaluation mode and classifier as one affine map: matrix [P, C, D] and bias [P, 1, C]."""
    weight, statistics = stack.values["classifier.weight"], stack.statistics
    gain, shift = _affine_part(stack)
    gain = (statistics["bn.running_var"] + EPS).rsqrt().unsqueeze(1) * gain  # [P, 1, D]
    shift = shift - statistics["bn.running_mean"].unsqueeze(1) * gain
    return weight * gain, torch.bmm(shift, weight.mT) + stack.values["classifier.bias"].unsqueeze(1)


def _affine_part(stack: Stack) -> tuple[Tensor, Tensor]:
    """Gain and bias of BatchNorm, [P, 1, D] each."""
    if "bn.weight" in stack.values:
        return stack.values["bn.weight"].unsqueeze(1), stack.values["bn.bias"].unsqueeze(1)
    mean = stack.statistics["bn.running_mean"].unsqueeze(1)
    return torch.ones_like(mean), torch.zeros_like(mean)
