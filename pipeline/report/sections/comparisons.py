"""Probe against probe: over the images of each test set, and alf against every other over data sets."""

from __future__ import annotations

from ...statistics.significance import adjust, compare_with
from ..page.blocks import Block, DataTable, Fold, Section, Words, csv_text
from ..page.numbers import chance, points
from ..report_data import ReportData

PAIR_COLUMNS = ("probe", "other", "model", "data set", "seed", "only probe right", "only other right", "p", "q")
ALF_COLUMNS = ("other", "data sets", "median gain of alf", "p", "q")


def section(report_data: ReportData) -> Section | None:
    """McNemar's test of every two probes of a case; Wilcoxon's of alf."""
    blocks: list[Block] = []
    over = _alf(report_data)
    if over is not None:
        blocks.append(over)
    pairs = _pairs(report_data)
    if pairs is not None:
        quiet = Words(
            texts=[
                "McNemar's exact test, two-sided: is one right on more of the images on which exactly one is right? It speaks of "
                "top-1 accuracy. q is p after Benjamini and Hochberg over all lines."
            ],
            quiet=True,
        )
        few = len(pairs.lines) <= 20
        blocks += (
            [pairs, quiet]
            if few
            else [Fold(title=f"Every two probes of a case: {len(pairs.lines):,} pairs", blocks=[pairs, quiet])]
        )
    return Section(anchor="comparisons", title="Probe against probe", blocks=blocks) if blocks else None


def _alf(report_data: ReportData) -> DataTable | None:
    averaged = report_data.main.mean_over("model", "seed")
    if "alf" not in averaged.probes or len(averaged.probes) < 2:
        return None
    others = [name for name in averaged.probes if name != "alf"]
    tests = [one for one in compare_with(averaged, "alf", others, alternative="less") if one.num_pairs]
    if not any(one.decidable for one in tests):
        return None  # the summary says that there are too few data sets
    lines = [
        (one.probe, str(one.num_pairs), points(-one.median, 2), chance(one.p_value), chance(one.q_value))
        for one in tests
    ]
    numbers = [(one.probe, one.num_pairs, -one.median, one.p_value, one.q_value) for one in tests]
    return DataTable(
        id="alf",
        caption="Is alf better? Wilcoxon's test over data sets, one-sided, models and seeds averaged first; q by FDR",
        columns=ALF_COLUMNS,
        lines=lines,
        csv=csv_text(ALF_COLUMNS, numbers),
    )


def _pairs(report_data: ReportData) -> DataTable | None:
    main = set(report_data.main.probes)
    found = [
        (one, two, case, test)
        for case, tested in report_data.tested.items()
        for (one, two), test in tested.pairs.items()
        if {one, two} <= main
    ]
    if not found:
        return None
    q_values = adjust([test.exact for *_, test in found])
    numbers = [
        (one, two, case.model, case.dataset, case.seed, test.only_first, test.only_second, test.exact, q)
        for (one, two, case, test), q in zip(found, q_values, strict=True)
    ]
    return DataTable(
        id="pairs",
        caption="Every two probes on the images of each test set (McNemar)",
        columns=PAIR_COLUMNS,
        lines=[(*map(str, line[:7]), *map(chance, line[7:])) for line in numbers],
        csv=csv_text(PAIR_COLUMNS, numbers),
    )
