"""Figures that are not on the page, and the command that would make each."""

from __future__ import annotations

from ..page.blocks import Bullets, Section
from ..report_data import Material


def section(material: Material) -> Section | None:
    """One sentence a figure; nothing where all are there."""
    if not material.lacking:
        return None
    return Section(anchor="not-here", title="Not here yet", blocks=[Bullets(texts=material.lacking)])
