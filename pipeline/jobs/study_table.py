"""The rows of a study as one table for the terminal: a line a model and data set, then each probe; seeds averaged."""

from __future__ import annotations

from collections.abc import Sequence

from ..probing.results import Row, summarize

STUDY_COLUMNS = ("model", "data set", "probe", "validation", "test", "gain")


def study_table(rows: Sequence[Row]) -> list[list[str]]:
    """One line a model, data set and probe, in the order of the study; a dash where every setting diverged."""
    lines = []
    for one in summarize(rows):
        numbers = (
            (one.validation, ".1f"),
            (one.test, ".1f"),
            (one.gain, "+.1f"),
        )
        shown = ["-" if value is None else f"{value.mean:{form}}" for value, form in numbers]
        lines.append([one.rows[0]["backbone"], one.rows[0]["dataset"], one.probe, *shown])
    return lines
