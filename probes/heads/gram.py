"""Gram matrices of features that are read a part at a time, in float64.

Features are centred by their weighted mean and scaled by a factor each row: x_i = s_i (f_i - sum_j w_j f_j). Of the symmetric
matrices only the lower triangle is computed, and only it is meant.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .features import Features

TILE = 2048  # columns that are multiplied together: of the tiles above the diagonal, none is computed


class CentredFeatures:
    """Features x [N, F] float64 without their mean, scaled; they are computed a part at a time and not kept.

    Args:
        features: as they are.
        weights: [N] float64 that sum to 1.
        scale: [N] float64, or 1.

    Attributes:
        mean: [F] float64.
    """

    def __init__(self, features: Features, weights: Tensor, scale: Tensor | None = None) -> None:
        self._features, self._scale = features, scale
        self.shape = features.shape
        self.mean = torch.zeros(self.shape[1], dtype=torch.float64)
        for place, part in features.parts():
            self.mean += weights[place] @ part.double()

    def parts(self, stop: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Places of some rows, and their features [b, F]."""
        for place, part in self._features.parts(stop):
            x = part.double().sub_(self.mean)
            yield place, x if self._scale is None else x.mul_(self._scale[place].unsqueeze(1))

    def gram_of_rows(self) -> Tensor:
        """X X^T [N, N]."""
        gram = torch.zeros(self.shape[0], self.shape[0], dtype=torch.float64)
        for number, (place, x) in enumerate(self.parts()):
            for other, z in self.parts(number):
                torch.mm(x, z.T, out=gram[place, other])
            torch.mm(x, x.T, out=gram[place, place])
        return gram

    def gram_of_features(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """X^T X [F, F] and X^T y [F, C], of y [N, C]."""
        num_features = self.shape[1]
        gram = torch.zeros(num_features, num_features, dtype=torch.float64)
        moments = torch.zeros(num_features, y.shape[1], dtype=torch.float64)
        for place, x in self.parts():
            for start in range(0, num_features, TILE):
                stop = min(start + TILE, num_features)
                gram[start:stop, :stop].addmm_(x[:, start:stop].T, x[:, :stop])
            moments.addmm_(x.T, y[place])
        return gram, moments

    def combine(self, factors: Tensor) -> Tensor:
        """X^T factors [F, C], of factors [N, C]."""
        combined = torch.zeros(self.shape[1], factors.shape[1], dtype=torch.float64)
        for place, x in self.parts():
            combined.addmm_(x.T, factors[place])
        return combined
