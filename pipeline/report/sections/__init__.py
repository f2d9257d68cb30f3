"""The sections of a report, one file each, in the order of the page.

A section is a function of the `ReportData` of one protocol: it returns what is to be shown, or None where it has nothing to show.
To add one, write a file with such a function and enter it below; contents, figures and files follow.
"""

from __future__ import annotations

from collections.abc import Callable

from ..page.blocks import Section
from ..report_data import ReportData
from . import (
    ablations,
    attention,
    by_dataset,
    choices,
    classes,
    comparisons,
    duplicates,
    images,
    lacking,
    levels,
    paper,
    results,
    settings,
    summary,
    tokens,
)

__all__ = ["SECTIONS"]

SECTIONS: tuple[Callable[[ReportData], Section | None], ...] = (
    summary.section,
    by_dataset.section,
    paper.section,
    results.section,
    choices.section,
    comparisons.section,
    duplicates.section,
    attention.section,
    levels.section,
    ablations.section,
    tokens.section,
    images.section,
    classes.section,
    settings.section,
    lacking.section,  # last: the others say there what they had no data for
)
