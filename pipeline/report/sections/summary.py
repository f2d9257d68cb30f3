"""The answer first: which probe wins, by how much, whether that is certain, and where it is not so."""

from __future__ import annotations

import numpy as np

from ...probing.probe_spec import REFERENCE
from ...statistics.findings import sentence
from ...statistics.scores import Table, gains_of
from ...statistics.significance import Comparison, compare_gains
from ...statistics.summaries import mean_ranks, rankable, summarize
from ..figures.gains import draw_gains
from ..figures.sizes import draw_gains_by_size, size_of
from ..page.blocks import Block, Bullets, DataTable, Fold, Gallery, Picture, Section, Words, csv_text
from ..page.numbers import chance, counted, percent, points
from ..report_data import ReportData

COLUMNS = (
    "probe",
    "cases",
    "mean accuracy",
    "mean gain",
    "median",
    "min",
    "max",
    "mean rank",
    "best on",
    "p",
    "q",
)
OF_SIZE = ("linear-last", "linear-all", "aat", "alf")  # more lines than these cannot be told apart
FEW_CASES = 6  # as many sentences are read, more are folded


def section(report_data: ReportData) -> Section:
    """Sentences, one line a probe, the box plot, and who wins each case."""
    gains = gains_of(report_data.main) if REFERENCE in report_data.main.probes else None
    tests = {} if gains is None else _tests(gains)
    report_data.headlines += headlines(report_data, gains, tests)
    blocks: list[Block] = [Bullets(texts=report_data.headlines), _table(report_data, gains, tests)]
    pictures = _pictures(report_data, gains)
    if pictures:
        blocks.append(Gallery(pictures=pictures))
    cases = Bullets(texts=[sentence(one) for one in report_data.findings])
    quiet = Words(
        texts=[
            "The best probe of a case is chosen here on the test images themselves, so its gain is a little flattered. McNemar's "
            "test counts every image alike, the accuracy is balanced; q is p after Benjamini and Hochberg over the cases."
        ],
        quiet=True,
    )
    folded = len(report_data.findings) > FEW_CASES
    blocks += [Fold(title="Who wins each case", blocks=[cases, quiet])] if folded else [cases, quiet]
    return Section(anchor="summary", title="Summary", blocks=blocks)


def headlines(report_data: ReportData, gains: Table | None, tests: dict[str, Comparison]) -> list[str]:
    """What a reader in a hurry takes along."""
    table, complete = report_data.main, report_data.complete
    texts = []
    if complete:
        best = max(complete, key=lambda name: table.column(name).mean())
        text = f"{best} has the highest mean accuracy: {table.column(best).mean():.1f} % over {counted(len(table.cases), 'case')}"
        if gains is not None and best != REFERENCE and REFERENCE in complete:
            text += f", {gains.column(best).mean():+.1f} points over {REFERENCE}"
        texts.append(text + ".")
    else:
        texts.append("No probe has a result in every case, so there is no mean accuracy to compare.")
    if tests:
        texts.append(_certain(list(tests.values())))
    if "alf" in table.probes:
        texts += _where_alf_loses(report_data)
    if num := sum(row["test"] is None for row in report_data.rows):
        texts.append(f"{counted(num, 'result')} diverged at every setting.")
    for dataset, one in report_data.repeated.items():
        if one.warning:
            texts.append(f"Beware: {dataset}: {one.warning}.")
    return texts


def _certain(tests: list[Comparison]) -> str:
    over = counted(max(one.num_pairs for one in tests), "data set")
    if not any(one.decidable for one in tests):
        return f"Over {over} no test can tell these gains from chance: Wilcoxon's takes at least five."
    significant = [f"{one.probe} (q = {chance(one.q_value)})" for one in tests if one.significant]
    if not significant:
        return f"Over {over} no gain over {REFERENCE} is significant (Wilcoxon, one-sided, FDR 5 %)."
    return f"Significant gains over {REFERENCE} over {over} (Wilcoxon, one-sided, FDR 5 %): {', '.join(significant)}."


def _where_alf_loses(report_data: ReportData) -> list[str]:
    means = report_data.main.mean_over("model", "seed")
    alf = means.column("alf")
    lines = np.flatnonzero(np.isfinite(alf)).tolist()
    lost = [means.cases[line].dataset for line in lines if np.nanmax(means.values[line]) > alf[line]]
    if not lost:
        return []
    several = len({case.model for case in report_data.cases}) > 1
    over = ", by the mean over models" if several else ""
    return [f"alf does not win on {len(lost)} of {counted(len(lines), 'data set')}{over}: {', '.join(lost)}."]


def _tests(gains: Table) -> dict[str, Comparison]:
    names = [name for name in gains.probes if name != REFERENCE]
    return {one.probe: one for one in compare_gains(gains, names)} if names else {}


def _table(report_data: ReportData, gains: Table | None, tests: dict[str, Comparison]) -> DataTable:
    table = report_data.main
    means = table.mean_over("seed")
    best_of = np.nanmax(np.where(np.isfinite(means.values), means.values, -np.inf), axis=1)
    by_dataset = table.mean_over("model", "seed")
    ranked = rankable(by_dataset)
    ranks = mean_ranks(by_dataset, ranked)
    lines, numbers = [], []
    for name in table.probes:
        of_gain = summarize(gains.column(name)) if gains is not None and name != REFERENCE else None
        mean = float(table.column(name).mean())  # NaN where a case is missing
        wins = int((means.column(name) == best_of).sum())
        rank = ranks.get(name, float("nan"))
        test = tests.get(name)
        several = (of_gain.mean, of_gain.median, of_gain.min, of_gain.max) if of_gain else (float("nan"),) * 4
        p, q = (test.p_value, test.q_value) if test else (float("nan"),) * 2
        count = int(np.isfinite(table.column(name)).sum())
        lines.append(
            (
                name,
                f"{count} of {len(table.cases)}",
                percent(mean),
                *(points(value) for value in several),
                percent(rank, 2),
                str(wins),
                chance(p),
                chance(q),
            )
        )
        numbers.append((name, count, mean, *several, rank, wins, p, q))
    return DataTable(
        id="probes",
        caption=(
            "Every probe over all cases. A case is a model on a data set with a seed. Balanced accuracy in percent, gain in "
            f"points over {REFERENCE}; mean rank over data sets, among the {len(ranked)} probes that half of them or more have; "
            "p of Wilcoxon's one-sided test over data sets, q by FDR"
        ),
        columns=COLUMNS,
        lines=lines,
        csv=csv_text(COLUMNS, numbers),
    )


def _pictures(report_data: ReportData, gains: Table | None) -> list[Picture]:
    table = report_data.main
    if gains is None or len(table.probes) == 1:
        report_data.lack(
            "Gains", f"train {REFERENCE} beside another probe: layerbank probe ... --probe {REFERENCE},alf"
        )
        return []
    means = {name: summarize(gains.column(name)).mean for name in table.probes if name != REFERENCE}
    if not any(np.isfinite(mean) for mean in means.values()):
        return []
    said = ", ".join(f"{name} {points(mean, 2)}" for name, mean in means.items())
    pictures = [
        report_data.draw(
            "gains",
            lambda stem: draw_gains(table, stem),
            alt=f"Box plot. Mean gain in points over {REFERENCE}: {said}.",
            caption=f"Gain over {REFERENCE}, a dot a case; a star is significant over data sets (Wilcoxon, FDR 5 %).",
        )
    ]
    sizes = {(found[0], found[1]) for case in table.cases if (found := size_of(case.model))}
    if len({size for _, size in sizes}) > 1:
        probes = [name for name in OF_SIZE if name in table.probes] or list(table.probes[:4])
        drawn = sorted(f"{family} {size}" for family, size in sizes)
        pictures.append(
            report_data.draw(
                "gains-by-size",
                lambda stem: draw_gains_by_size(table, stem, probes=probes),
                alt=f"Mean gain over {REFERENCE} against the size of the model: {', '.join(drawn)}. The numbers are in the CSV.",
                caption="Mean gain over data sets by size of the model, with the standard error of the mean.",
            )
        )
    else:
        report_data.lack(
            "Gains by model size", "needs models of several sizes: layerbank study RECIPE with models = [...]"
        )
    return pictures
