"""The style of every figure, and how it is written: a column wide, colour-blind safe, the same bytes every time.

`save` writes three files of one stem: SVG for the page and the paper, PNG for slides, CSV with the numbers that are drawn. Colours
are those of Okabe and Ito; no two probes differ by colour alone. matplotlib's global state is not changed, and no screen is needed.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..outputs import write_output
from .page.blocks import csv_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.3  # inches, a column of a two-column paper
PAGE = 6.9  # both columns

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

FAMILY = {"attn": VERMILION, "alf": VERMILION, "aat": GREEN, "linear": BLUE}  # of probes, by the start of their names

SETTINGS: Any = {  # a dict whose keys matplotlib types one by one, other ones in every version
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "svg.hashsalt": "layerbank",  # ids in the SVG are the same every time
    "svg.fonttype": "path",
}
DPI = 220
LONGEST = 26  # characters of a name
_FORMATS: ContextVar[tuple[str, ...]] = ContextVar("formats", default=("svg", "png"))


@contextmanager
def drawn_as(*formats: str) -> Iterator[None]:
    """A context in which `save` writes only these formats and the CSV: a page needs no PNG, which takes as long as the SVG."""
    before = _FORMATS.set(formats)
    try:
        yield
    finally:
        _FORMATS.reset(before)


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure in our style, width and height in inches; save it inside the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        yield Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save(figure: Figure, stem: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Write STEM.csv, STEM.svg and STEM.png (see `drawn_as`), each whole or not at all.

    Args:
        figure: drawn, inside its `drawing` block.
        stem: path without a suffix; a dot in the name is no suffix.
        header, lines: the numbers that are drawn; floats are written with six digits, NaN as nothing.
    """
    rounded = [[f"{one:.6g}" if isinstance(one, float) and one == one else one for one in line] for line in lines]
    write_output(stem.with_name(stem.name + ".csv"), csv_text(header, rounded).encode())
    # without the date and the version of matplotlib
    metadata: dict[str, Any] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    for suffix in _FORMATS.get():
        content = io.BytesIO()
        figure.savefig(content, format=suffix, metadata=metadata[suffix])
        write_output(stem.with_name(f"{stem.name}.{suffix}"), content.getvalue())


def drawn_name(name: str) -> str:
    """A name for use in a figure: shortened to 26 characters, and `$` starts no formula.

    >>> drawn_name("pets"), drawn_name("$"), drawn_name("a data set with a name that never ends, not even here")
    ('pets', '\\\\$', 'a data set wit…t even here')
    """
    short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2 + 1]}…{name[-(LONGEST // 2 - 2) :]}"
    return short.replace("$", r"\$")


def color_of(probe: str) -> str:
    """A probe's colour, by its family: attention over layers, over the tokens of one, linear, other."""
    return FAMILY.get(probe.split("-")[0].split("@")[0], GREY)


def short_level(level: str) -> str:
    """A level as a tick: `3` for `block.3`."""
    return level.removeprefix("block.")


def no_frame(axes: Axes) -> None:
    """Axes of a heat map: no spines, no tick marks."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def legend_of(axes: Axes, ncols: int) -> None:
    """The legend of one panel for the whole figure, below it."""
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=ncols)


def grid(axes: Axes, axis: str = "y") -> None:
    """Thin lines behind the data."""
    axes.grid(True, axis=axis)  # type: ignore[arg-type]  # a Literal there


def dots(axes: Axes, values: NDArray[np.float64], place: float, height: float, **style: Any) -> None:
    """A dot for each value along the x axis, spread over some height by the golden ratio, the same every time."""
    offsets = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * height
    axes.plot(values, place + offsets, ".", markeredgewidth=0, **style)


def beside(axes: Axes, place: float, text: str) -> None:
    """A small text to the right of the axes, at a height in data coordinates."""
    axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=6.5)


def one_line_each(axes: Axes, names: Sequence[str]) -> None:
    """Name the lines at heights 0, -1, ..., with a line at x = 0 and a grid."""
    axes.axvline(0, color=GREY, linewidth=0.7)
    axes.set_yticks(-np.arange(len(names)), [drawn_name(name) for name in names])
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.tick_params(axis="y", length=0)
    grid(axes, "x")
