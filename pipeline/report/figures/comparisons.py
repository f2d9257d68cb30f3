"""Probe against probe: over the images of each test set, and alf against every other over data sets."""

from __future__ import annotations

from ...statistics.significance import adjust, compare_with
from ..page.blocks import Block, Columns, DataTable, Fold, Note, table_of_values
from ..page.numbers import chance, points2
from ..report_data import ReportData, ReportFigure

PAIR_COLUMNS: Columns = {
    "probe": str,
    "other": str,
    "model": str,
    "data set": str,
    "seed": str,
    "only probe right": str,
    "only other right": str,
    "p": chance,
    "q": chance,
}
ALF_COLUMNS: Columns = {"other": str, "data sets": str, "median gain of alf": points2, "p": chance, "q": chance}
FEW_PAIRS = 20  # more are folded


def _make(data: ReportData) -> list[Block]:
    """McNemar's test of every two probes of a case; Wilcoxon's of alf."""
    blocks: list[Block] = [*_alf(data)]
    if pairs := _pairs(data):
        note = Note(
            "McNemar's exact test, two-sided: is one right on more of the images on which exactly one is right? It speaks of "
            "top-1 accuracy. q is p after Benjamini and Hochberg over all lines."
        )
        title = f"Every two probes of a case: {len(pairs.lines):,} pairs"
        blocks += [pairs, note] if len(pairs.lines) <= FEW_PAIRS else [Fold(title=title, blocks=[pairs, note])]
    return blocks


def _alf(data: ReportData) -> list[DataTable]:
    averaged = data.compared("dataset").mean_over("model", "seed")
    if "alf" not in averaged.probes or len(averaged.probes) < 2:
        return []
    others = [name for name in averaged.probes if name != "alf"]
    tests = [one for one in compare_with(averaged, "alf", others, alternative="less") if one.num_pairs]
    if not any(one.decidable for one in tests):
        return []  # the summary says that there are too few data sets
    caption = "Is alf better? Wilcoxon's test over data sets, one-sided, models and seeds averaged first; q by FDR"
    values = [(one.probe, one.num_pairs, -one.median, one.p_value, one.q_value) for one in tests]
    return [table_of_values("alf", caption, ALF_COLUMNS, values)]


def _pairs(data: ReportData) -> DataTable | None:
    main = set(data.main.probes)
    found = [
        (one, two, case, test)
        for case, tested in data.tested.items()
        for (one, two), test in tested.pairs.items()
        if {one, two} <= main
    ]
    if not found:
        return None
    q_values = adjust([test.exact for *_, test in found])
    values = [
        (one, two, *case, test.only_first, test.only_second, test.exact, q)
        for (one, two, case, test), q in zip(found, q_values, strict=True)
    ]
    return table_of_values("pairs", "Every two probes on the images of each test set (McNemar)", PAIR_COLUMNS, values)


COMPARISONS = ReportFigure(section=("comparisons", "Probe against probe"), make=_make)
