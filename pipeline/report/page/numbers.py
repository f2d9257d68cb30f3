"""How numbers are written on the page: the same everywhere, a dash for None and NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial


def percent(value: float | None, digits: int = 1) -> str:
    """An accuracy in percent, or any other number without a sign.

    >>> percent(95.04), percent(float("nan"))
    ('95.0', '-')
    """
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "-"


def points(value: float | None, digits: int = 1) -> str:
    """A difference in points, with its sign.

    >>> points(7.06), points(-0.04), points(float("nan"))
    ('+7.1', '-0.0', '-')
    """
    return f"{value:+.{digits}f}" if value is not None and math.isfinite(value) else "-"


percent2, points2 = partial(percent, digits=2), partial(points, digits=2)


def chance(value: float) -> str:
    """A p or q value.

    >>> chance(0.0312), chance(3e-9), chance(float("nan"))
    ('0.031', '3e-09', '-')
    """
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def span(low: float | None, high: float | None, write: Callable[[float], str] = percent) -> str:
    """The ends of an interval.

    >>> span(1.0, 5.0, points)
    '+1.0 to +5.0'
    """
    if low is None or high is None or not math.isfinite(low):
        return "-"
    return f"{write(low)} to {write(high)}"


def integer(value: int | None) -> str:
    """A count.

    >>> integer(1234), integer(None)
    ('1,234', '-')
    """
    return "-" if value is None else f"{value:,}"


def accuracy(value: float | None) -> str:
    """An accuracy in percent, or that every setting diverged."""
    return "diverged" if value is None else f"{value:.2f}"
