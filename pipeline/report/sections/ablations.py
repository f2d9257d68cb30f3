"""What was varied on its own: kinds of tokens, heads, seeds."""

from __future__ import annotations

import numpy as np

from ...probing.bootstrap import seed_interval
from ...statistics.scores import Table
from ..figures.ablations import Series, draw_seeds, draw_series, heads_series, kinds_series, std_within
from ..page.blocks import Block, DataTable, Gallery, Picture, Section, Words, csv_text
from ..page.numbers import percent, span
from ..report_data import ReportData

SEED_COLUMNS = ("probe", "model", "data set", "seeds", "mean", "std", "95 % of the mean")


def section(report_data: ReportData) -> Section | None:
    """The figures whose rows are there."""
    pictures = [*_kinds(report_data), *_heads(report_data)]
    seeds, table = _seeds(report_data)
    pictures += seeds
    blocks: list[Block] = [Gallery(pictures=pictures)] if pictures else []
    if table is not None:
        blocks += [
            table,
            Words(
                texts=[
                    "An interval over so few seeds is too narrow: read it as a spread of training, not of test sets."
                ],
                quiet=True,
            ),
        ]
    return Section(anchor="ablations", title="Kinds, heads, seeds", blocks=blocks) if blocks else None


def _kinds(report_data: ReportData) -> list[Picture]:
    table = report_data.table
    bases = [base for base in table.probes if {f"{base}-cls", f"{base}-ap"} <= set(table.probes)]
    if not bases:
        report_data.lack("CLS against AP against both", "layerbank probe ... --probe alf,alf-cls,alf-ap")
    pictures = []
    for base in bases:
        part = _with_all(table, [base, f"{base}-cls", f"{base}-ap"])
        if len(part.cases):
            series = kinds_series(part, base)
            pictures.append(
                _drawn(report_data, f"kinds-{base}", series, f"Tokens of {base}: CLS, mean patch, or both.")
            )
    return pictures


def _heads(report_data: ReportData) -> list[Picture]:
    heads: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[int, str]] = {}
    for row in report_data.rows:
        if row.get("head") == "attentive" and row.get("num_heads"):
            tokens = tuple(row["levels"]), tuple(row["kinds"])
            heads.setdefault(tokens, {})[row["num_heads"]] = row["probe"]
    several = {tokens: by_heads for tokens, by_heads in heads.items() if len(by_heads) > 1}
    if not several:
        report_data.lack("Accuracy by heads", "layerbank probe ... --probe alf --num-heads 4,8,24")
    pictures = []
    for number, ((levels, kinds), by_heads) in enumerate(several.items()):
        attentive = [row for row in report_data.rows if row.get("head") == "attentive"]
        series = heads_series(attentive, levels, kinds)
        whole = np.isfinite(series.values).sum(1) > 1  # a case with one number of heads says nothing of them
        series = Series(
            varied=series.varied,
            steps=series.steps,
            cases=tuple(case for case, kept in zip(series.cases, whole, strict=True) if kept),
            values=series.values[whole],
        )
        if len(series.cases):
            name = min(by_heads.values(), key=len)
            pictures.append(_drawn(report_data, f"heads-{number}", series, f"Heads of {name}."))
    return pictures


def _drawn(report_data: ReportData, name: str, series: Series, caption: str) -> Picture:
    said = ", ".join(
        f"{step}: {np.nanmean(column):.1f} %" for step, column in zip(series.steps, series.values.T, strict=True)
    )
    return report_data.draw(
        name,
        lambda stem: draw_series(series, stem),
        alt=f"{caption} Mean balanced accuracy over {len(series.cases)} cases, by {series.varied}: {said}.",
        caption=caption,
    )


def _seeds(report_data: ReportData) -> tuple[list[Picture], DataTable | None]:
    table = report_data.main
    groups: dict[tuple[str, str], list[int]] = {}
    for line, case in enumerate(table.cases):
        groups.setdefault((case.model, case.dataset), []).append(line)
    numbers, lines = [], []
    for (model, dataset), group in groups.items():
        for probe in table.probes:
            values = table.column(probe)[group]
            if np.isfinite(values).sum() < 2:
                continue
            one, std = seed_interval(values), float(np.std(values[np.isfinite(values)], ddof=1))
            count = int(np.isfinite(values).sum())
            numbers.append((probe, model, dataset, count, one.value, std, one.low, one.high))
            lines.append((probe, model, dataset, str(count), percent(one.value, 2), percent(std, 2), span(one)))
    if not lines:
        report_data.lack("Spread over seeds", "layerbank probe ... --seed 0,1,2")
        return [], None
    probes = list(dict.fromkeys(line[0] for line in lines))
    picture = report_data.draw(
        "seeds",
        lambda stem: draw_seeds(table, stem, probes=probes),
        alt="How far each seed lies from the mean of its model and data set, a line a probe: "
        + ", ".join(f"{probe} std {percent(std_within(table, probe), 2)}" for probe in probes)
        + ".",
        caption="Every seed against the mean over seeds of its model and data set; std pooled within.",
    )
    columns = (*SEED_COLUMNS[:-1], "low", "high")
    shown = DataTable(
        id="over-seeds",
        caption="Balanced accuracy in percent over seeds; the interval is a bootstrap over seeds",
        columns=SEED_COLUMNS,
        lines=lines,
        csv=csv_text(columns, numbers),
    )
    return [picture], shown


def _with_all(table: Table, probes: list[str]) -> Table:
    """Cases that have all of some probes."""
    part = table.only(probes)
    kept = np.flatnonzero(np.isfinite(part.values).all(1)).tolist()
    return Table(cases=tuple(part.cases[line] for line in kept), probes=part.probes, values=part.values[kept])
