"""Figures that are not on the page, and the command that would make each."""

from __future__ import annotations

from ..page.blocks import Bullets, Section
from ..report_data import ReportData


def section(report_data: ReportData) -> Section | None:
    """One sentence a figure; nothing where all are there."""
    if not report_data.lacking:
        return None
    return Section(anchor="not-here", title="Not here yet", blocks=[Bullets(texts=report_data.lacking)])
