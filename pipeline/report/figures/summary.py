"""The answer first: which probe wins, by how much, whether that is certain, and where it is not so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ...probing.probe_spec import REFERENCE
from ...quantities import counted
from ...statistics.scores import Table, gains_of, mean_ranks, rankable, summarize
from ...statistics.significance import Comparison, compare_gains
from ..page.blocks import Block, Bullets, Columns, DataTable, Fold, Note, table_of_values
from ..page.numbers import chance, percent, percent2, points
from ..report_data import ReportData, ReportFigure

SECTION = ("summary", "Summary")
FEW_CASES = 6  # more sentences are folded
NOTE = (
    "The best probe of a case is chosen here on the test images themselves, so its gain is a little flattered. McNemar's "
    "test counts every image alike, the accuracy is balanced; q is p after Benjamini and Hochberg over the cases."
)


def _make(data: ReportData) -> list[Block]:
    """Sentences, and one line for each probe."""
    gains = gains_of(data.main) if REFERENCE in data.main.probes else None
    names = [name for name in data.main.probes if name != REFERENCE]
    tests = {one.probe: one for one in compare_gains(gains, names)} if gains is not None and names else {}
    data.headlines += _headlines(data, tests)
    return [Bullets(data.headlines), _table(data, gains, tests)]


def _headlines(data: ReportData, tests: Mapping[str, Comparison]) -> list[str]:
    texts = _best(data)
    if tests:
        texts.append(_certainty(list(tests.values())))
    if "alf" in data.main.probes:
        texts += _where_alf_loses(data)
    if num := sum(row["test"] is None for row in data.rows):
        texts.append(f"{counted(num, 'result')} diverged at every setting.")
    warnings = {dataset: found.warning for dataset, (found, _) in data.duplicates.items()}
    return texts + [f"Beware: {dataset}: {warning}." for dataset, warning in warnings.items() if warning]


def _best(data: ReportData) -> list[str]:
    """Which probe has the highest mean, over the cases that all compared probes have; which probes are not compared."""
    table, num_cases = data.compared(), len(data.main.cases)
    if len(data.main.probes) == 1:
        return [f"{data.main.probes[0]} is the only probe, so there is nothing to compare it with."]
    if not table.probes:
        return ["No case has results of two probes, so there is no mean accuracy to compare."]
    others = [probe for probe in data.main.probes if probe not in table.probes]
    not_compared = [f"Not compared, because results are missing in these cases: {', '.join(others)}."] if others else []
    finished = [probe for probe in table.probes if np.isfinite(table.column(probe)).all()]
    if not finished:  # a probe must not look better for having diverged in some case
        return ["No probe has a result in every case, so there is no mean accuracy to compare.", *not_compared]
    best = max(finished, key=lambda name: table.column(name).mean())
    percents = table.column(best)
    over = f"over {counted(len(table.cases), 'case')}"
    if len(table.cases) < num_cases:
        over = f"over the {len(table.cases)} of {num_cases} cases that have all of {', '.join(table.probes)}"
    gain = ""
    if best != REFERENCE and REFERENCE in finished:
        gain = f", {(percents - table.column(REFERENCE)).mean():+.1f} points over {REFERENCE}"
    return [f"{best} has the highest mean accuracy: {percents.mean():.1f} % {over}{gain}.", *not_compared]


def _certainty(tests: list[Comparison]) -> str:
    over = counted(max(one.num_pairs for one in tests), "data set")
    if not any(one.decidable for one in tests):
        return f"Over {over} no test can tell these gains from chance: Wilcoxon's takes at least five."
    significant = [f"{one.probe} (q = {chance(one.q_value)})" for one in tests if one.significant]
    if not significant:
        return f"Over {over} no gain over {REFERENCE} is significant (Wilcoxon, one-sided, FDR 5 %)."
    return f"Significant gains over {REFERENCE} over {over} (Wilcoxon, one-sided, FDR 5 %): {', '.join(significant)}."


def _where_alf_loses(data: ReportData) -> list[str]:
    means = data.compared("dataset").mean_over("model", "seed")
    if "alf" not in means.probes:
        return []
    alf = means.column("alf")
    lines = np.flatnonzero(np.isfinite(alf)).tolist()
    lost = [means.cases[line].dataset for line in lines if np.nanmax(means.values[line]) > alf[line]]
    if not lost:
        return []
    over = ", by the mean over models" if len({case.model for case in data.cases}) > 1 else ""
    return [f"alf does not win on {len(lost)} of {counted(len(lines), 'data set')}{over}: {', '.join(lost)}."]


def _table(data: ReportData, gains: Table | None, tests: Mapping[str, Comparison]) -> DataTable:
    nan = float("nan")
    table, compared = data.main, data.compared()
    wins = _wins(data.compared("model", "dataset").mean_over("seed"))
    by_dataset = data.compared("dataset").mean_over("model", "seed")
    ranked = rankable(by_dataset)
    ranks = mean_ranks(by_dataset, ranked)
    values = []
    for name in table.probes:
        column, over, p_and_q = table.column(name), (nan,) * 4, (nan,) * 2
        if gains is not None and name != REFERENCE:
            gain = summarize(gains.column(name))
            over = (gain.mean, gain.median, gain.min, gain.max)
        if test := tests.get(name):
            p_and_q = (test.p_value, test.q_value)
        # NaN where it diverged in a case
        mean = float(compared.column(name).mean()) if name in compared.probes else nan
        numbers = (int(np.isfinite(column).sum()), mean, *over, ranks.get(name, nan), wins[name])
        values.append((name, *numbers, *p_and_q))
    caption = (
        "Every probe over all cases. A case is a model on a data set with a seed. Balanced accuracy in percent, gain in "
        f"points over {REFERENCE}. The mean accuracy is over the {counted(len(compared.cases), 'case')} that all probes with "
        f"a mean have; mean rank over data sets, among the {len(ranked)} probes that half of them or more have; "
        "p of Wilcoxon's one-sided test over data sets, q by FDR"
    )
    columns: Columns = {
        "probe": str,
        "cases": lambda count: f"{count} of {len(table.cases)}",
        "mean accuracy": percent,
        **dict.fromkeys(("mean gain", "median", "min", "max"), points),
        "mean rank": percent2,
        "best on": str,
        "p": chance,
        "q": chance,
    }
    return table_of_values("probes", caption, columns, values)


def _wins(means: Table) -> Counter[str]:
    """On how many of the cases with two values or more each probe has the highest one, equals included."""
    several = means.lines(np.flatnonzero(np.isfinite(means.values).sum(1) > 1).tolist())
    best = np.nanmax(several.values, axis=1, initial=-np.inf)
    return Counter({name: int((several.column(name) == best).sum()) for name in several.probes})


def _winners(data: ReportData) -> list[Block]:
    blocks: list[Block] = [Bullets([str(one) for one in data.findings]), Note(NOTE)]
    return [Fold(title="Who wins each case", blocks=blocks)] if len(data.findings) > FEW_CASES else blocks


SUMMARY = ReportFigure(section=SECTION, make=_make)
WINNERS = ReportFigure(section=SECTION, make=_winners)
