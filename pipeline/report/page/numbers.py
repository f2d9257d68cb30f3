"""How numbers are written on the page: the same everywhere, a dash for what is not there."""

from __future__ import annotations

import math

from ...probing.bootstrap import Interval


def percent(value: float, digits: int = 1) -> str:
    """An accuracy in percent, or any other number without a sign.

    >>> percent(95.04), percent(float("nan"))
    ('95.0', '-')
    """
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def points(value: float, digits: int = 1) -> str:
    """A difference in points, with its sign.

    >>> points(7.06), points(-0.04), points(float("nan"))
    ('+7.1', '-0.0', '-')
    """
    return f"{value:+.{digits}f}" if math.isfinite(value) else "-"


def span(interval: Interval | None, *, signed: bool = False) -> str:
    """The ends of an interval.

    >>> span(Interval(value=3.0, low=1.0, high=5.0), signed=True)
    '+1.0 to +5.0'
    """
    if interval is None or not math.isfinite(interval.low):
        return "-"
    write = points if signed else percent
    return f"{write(interval.low)} to {write(interval.high)}"


def chance(value: float) -> str:
    """A p or q value.

    >>> chance(0.0312), chance(3e-9), chance(float("nan"))
    ('0.031', '3e-09', '-')
    """
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "model"), counted(1200, "image"), counted(2, "class", "classes")
    ('1 model', '1,200 images', '2 classes')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
