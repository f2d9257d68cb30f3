"""Similarity of the levels of a backbone: centred kernel alignment (CKA) of their tokens.

Unbiased: HSIC is the U-statistic of Song et al. 2012 (JMLR 13, eq. 5), so CKA does not grow with the width of the tokens. The
linear kernel is exact over all images in one pass, in feature space: only [D, D] products are kept, so memory does not grow with
N. The Gaussian kernel has no such form and needs [n, n] matrices: it is computed on a seeded subset of n images, which the result
states.

    HSIC(K, L) = (tr KL + sum K sum L / ((n-1)(n-2)) - 2/(n-2) 1'KL1) / (n(n-3)),   K, L without their diagonals
    CKA(K, L)  = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

Tokens are L2-normalised first, as before any probe; the paper's sigma of 0.2 is a distance between such tokens. Without a self-HSIC
above zero (all tokens alike, say) there is no alignment: NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from ..errors import RequestError
from ..models.rounding import float_tokens
from ..probing.tokens.split_tokens import SplitTokens

FloatArray = NDArray[np.float64]
Read = Callable[[NDArray[np.int64]], NDArray[Any]]  # rows -> [n, D]

ROWS_AT_ONCE = 2048
MEMORY_BYTES = 1 << 30
SIGMA = 0.2  # a distance between tokens of unit length
SUBSET = 2000
SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarity:
    """CKA between levels.

    Attributes:
        levels: L names.
        values: [L, L] symmetric, 1 on the diagonal; at most 1, and may be a little below 0.
        kernel: `linear` or `rbf`.
        num_images: number of images used.
        seed: seed of the subset, None where all images were used.
    """

    levels: tuple[str, ...]
    values: FloatArray
    kernel: str
    num_images: int
    seed: int | None


def linear_similarity(levels: Mapping[str, Read], rows: NDArray[np.int64]) -> Similarity:
    """Unbiased linear CKA between all levels, exact over all rows.

    There are as many passes over the tokens as the [D, D] products of all pairs of levels need with MEMORY_BYTES at a time.

    Args:
        levels: name -> function that reads its tokens; see `levels_of`.
        rows: [N] which images, N >= 4, in the order in which they are read.

    Raises:
        RequestError: fewer than four images.
    """
    _require_images(len(rows))
    names = tuple(levels)
    pairs = list(combinations_with_replacement(range(len(names)), 2))
    widths = [levels[name](rows[:1]).shape[1] for name in names]
    hsic: dict[tuple[int, int], float] = {}
    while len(hsic) < len(pairs):
        part: list[tuple[int, int]] = []
        taken_bytes = 0
        for one, two in pairs[len(hsic) :]:
            taken_bytes += 8 * widths[one] * widths[two]
            if part and taken_bytes > MEMORY_BYTES:
                break
            part.append((one, two))
        hsic |= _linear_hsic([levels[name] for name in names], rows, part)
    return Similarity(levels=names, values=_cka(hsic, len(names)), kernel="linear", num_images=len(rows), seed=None)


def rbf_similarity(levels: Mapping[str, Read], rows: NDArray[np.int64], *, num_images: int = SUBSET) -> Similarity:
    """Unbiased CKA with the kernel exp(-|x - y|^2 / (2 SIGMA^2)) between all levels, on a subset of the images drawn with SEED.

    Args:
        levels: name -> function that reads its tokens.
        rows: [N] which images to draw from.
        num_images: n, how many to draw; all if there are no more. It takes 8 n^2 bytes for each level.

    Raises:
        RequestError: fewer than four images.
    """
    chosen = rows
    if num_images < len(rows):
        chosen = np.sort(np.random.default_rng(SEED).choice(rows, num_images, replace=False))
    _require_images(len(chosen))
    grams = []
    for read in levels.values():
        grams.append(np.exp(squareform(pdist(_unit(read(chosen)), "sqeuclidean")) / (-2 * SIGMA**2)))
        np.fill_diagonal(grams[-1], 0)
    pairs = combinations_with_replacement(range(len(grams)), 2)
    hsic = {(one, two): hsic_of_grams(grams[one], grams[two]) for one, two in pairs}
    return Similarity(
        levels=tuple(levels),
        values=_cka(hsic, len(grams)),
        kernel="rbf",
        num_images=len(chosen),
        seed=SEED if num_images < len(rows) else None,
    )


def levels_of(tokens: SplitTokens, kind: str, levels: Sequence[str]) -> dict[str, Read]:
    """Functions that read the tokens of one kind, level by level; several tokens of an image are concatenated.

    Raises:
        MissingArrayError: there is no such kind at a level.
    """

    def reader(level: str) -> Read:
        array = tokens.tokens(level, kind)

        def read(rows: NDArray[np.int64]) -> NDArray[Any]:
            return (
                float_tokens(array.take(tokens.positions[rows]), array.logical_dtype)
                .float()
                .numpy()
                .reshape(len(rows), -1)
            )

        return read

    return {level: reader(level) for level in levels}


def hsic_of_grams(one: FloatArray, two: FloatArray) -> float:
    """Unbiased HSIC of two [n, n] kernel matrices whose diagonals are zero, n >= 4."""
    n = len(one)
    first, second = one.sum(0), two.sum(0)
    return _hsic(n, float((one * two).sum()), float(first.sum()), float(second.sum()), float(first @ second))


def _linear_hsic(
    levels: Sequence[Read], rows: NDArray[np.int64], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """HSIC of pairs of levels in one pass. With K_ij = x_i.x_j off the diagonal, and a_i = |x_i|^2, b_i = |y_i|^2:

    tr KL  = |X'Y|^2 - sum a_i b_i
    sum K  = |sum x|^2 - sum a_i
    1'KL1  = sum_i (x_i.sx - a_i)(y_i.sy - b_i) = sx'(X'Y)sy - sx.(sum b_i x_i) - (sum a_i y_i).sy + sum a_i b_i
    """
    needed = sorted({level for pair in pairs for level in pair})
    cross: dict[tuple[int, int], FloatArray] = {}
    weighted: dict[tuple[int, int], FloatArray] = {}  # (level, other): sum over images of |other|^2 x
    both = dict.fromkeys(pairs, 0.0)  # sum over images of |x|^2 |y|^2
    sums: dict[int, FloatArray] = {}  # sum x
    squares = dict.fromkeys(needed, 0.0)  # sum |x|^2
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        tokens = {level: _unit(levels[level](part)) for level in needed}
        norms = {level: np.einsum("nd,nd->n", batch, batch) for level, batch in tokens.items()}
        for level, batch in tokens.items():
            sums[level] = sums.get(level, np.zeros(batch.shape[1])) + batch.sum(0)
            squares[level] += float(norms[level].sum())
        for one, two in pairs:
            product = tokens[one].T @ tokens[two]
            cross[one, two] = cross[one, two] + product if (one, two) in cross else product
            both[one, two] += float(norms[one] @ norms[two])
            for level, other in {(one, two), (two, one)}:
                added = norms[other] @ tokens[level]
                weighted[level, other] = weighted[level, other] + added if (level, other) in weighted else added
    hsic = {}
    for one, two in pairs:
        x, y, xy = sums[one], sums[two], cross[one, two]
        trace = float((xy**2).sum()) - both[one, two]
        through = float(x @ xy @ y - x @ weighted[one, two] - weighted[two, one] @ y + both[one, two])
        sum_x, sum_y = (float(sums[level] @ sums[level]) - squares[level] for level in (one, two))
        hsic[one, two] = _hsic(len(rows), trace, sum_x, sum_y, through)
    return hsic


def _hsic(n: int, trace: float, sum_one: float, sum_two: float, through: float) -> float:
    return (trace + sum_one * sum_two / ((n - 1) * (n - 2)) - 2 * through / (n - 2)) / (n * (n - 3))


def _cka(hsic: Mapping[tuple[int, int], float], num_levels: int) -> FloatArray:
    values = np.full((num_levels, num_levels), np.nan)
    for (one, two), value in hsic.items():
        if hsic[one, one] > 0 and hsic[two, two] > 0:
            values[one, two] = values[two, one] = value / np.sqrt(hsic[one, one] * hsic[two, two])
    return values


def _unit(tokens: NDArray[Any]) -> FloatArray:
    """Tokens scaled to unit length, zeros unchanged, as `probes` does before any head."""
    wide = tokens.astype(np.float64)
    scaled: FloatArray = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return scaled


def _require_images(count: int) -> None:
    if count < 4:
        raise RequestError("statistics.too_few_images", num_images=count)
