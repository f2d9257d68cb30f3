"""The figures and tables of a report, in the order of the page: the registry `layerbank.figures`.

Functions `draw_...` draw plain tables a column wide, and need no report. To add a figure, write a file with a `ReportFigure` and
enter it below, or in the entry points of a package of your own; its place on the page, its files of `--figures` and its line under
"Not here yet" follow.
"""

from __future__ import annotations

from ...registry import Registry
from ..report_data import ReportFigure

__all__ = ["FIGURES"]

_FILES = {
    "summary": "summary:SUMMARY",
    "gains": "gains:GAINS",
    "gains-by-size": "gains:GAINS_BY_SIZE",
    "winners": "summary:WINNERS",
    "by-dataset": "by_dataset:BY_DATASET",
    "paper": "paper:PAPER",
    "results": "results:RESULTS",
    "choices": "choices:CHOICES",
    "comparisons": "comparisons:COMPARISONS",
    "duplicates": "duplicates:DUPLICATES",
    "attention": "attention:ATTENTION",
    "levels": "levels:LEVELS",
    "kinds": "ablations:KINDS",
    "heads": "ablations:HEADS",
    "seeds": "ablations:SEEDS",
    "tokens": "tokens:TOKENS",
    "images": "images:IMAGES",
    "classes": "classes:CLASSES",
    "settings": "settings:SETTINGS",
}

FIGURES = Registry(
    "layerbank.figures", "figure", ReportFigure, {name: f"{__name__}.{place}" for name, place in _FILES.items()}
)
