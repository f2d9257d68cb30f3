"""How every figure looks and is written: a column wide, colour-blind safe, the same bytes every time, its data beside it.

`save` writes three files of one stem: SVG for the page and the paper, PNG for slides, CSV with the numbers that are drawn. Colours
are those of Okabe and Ito; no two probes differ by colour alone. Nothing touches matplotlib's global state or needs a screen.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Within, `save` writes only these formats and the CSV: each takes as long as the other, and a page has no use for PNG."""
    before = _FORMATS.set(formats)
    try:
        yield
    finally:
        _FORMATS.reset(before)


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of some inches, in our style; save it inside the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        yield Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save(figure: Figure, stem: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> Path:
    """Write STEM.csv, STEM.svg and STEM.png (see `drawn_as`), each whole or not at all.

    Args:
        figure: drawn, inside its `drawing` block.
        stem: path without a suffix; a dot in the name is no suffix.
        header, lines: the numbers that are drawn; floats are written with six digits, NaN as nothing.

    Returns:
        The path of the PNG.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in line] for line in lines)
    _write(stem.with_name(stem.name + ".csv"), text.getvalue().encode())
    # without these two fields, which say when and with which version it was drawn
    metadata: dict[str, Any] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    for suffix in _FORMATS.get():
        content = io.BytesIO()
        figure.savefig(content, format=suffix, metadata=metadata[suffix])
        _write(stem.with_name(f"{stem.name}.{suffix}"), content.getvalue())
    return stem.with_name(stem.name + ".png")


def drawn_name(name: str) -> str:
    """A name of the user's as a figure can bear it: not so long that no room is left, and a dollar is no formula.

    >>> drawn_name("pets"), drawn_name("$"), drawn_name("a data set with a name that never ends, not even here")
    ('pets', '\\\\$', 'a data set wit…t even here')
    """
    short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2 + 1]}…{name[-(LONGEST // 2 - 2) :]}"
    return short.replace("$", r"\$")


def color_of(probe: str) -> str:
    """A probe's colour, by its family: attention over layers, over the tokens of one, linear, other."""
    return FAMILY.get(probe.split("-")[0].split("@")[0], GREY)


def grid(axes: Axes, axis: str = "y") -> None:
    """Thin lines behind the data."""
    axes.grid(True, axis=axis)  # type: ignore[arg-type]  # a Literal there


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return value


def _write(path: Path, content: bytes) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
