"""A report of a folder of runs: one HTML page, and its tables as Markdown, CSV and LaTeX.

Rows of different protocols are never set side by side: each protocol is a section of its own. Nothing is trained or read again but
results.jsonl and the saved predictions.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cache.durable import replace_file
from pipeline.probe_names import REFERENCE
from pipeline.results import Row, found, gains

from .dataset_table import dataset_table, table_latex, table_markdown
from .figures.gains import draw_gains
from .findings import find, sentence
from .gather import Gathered, gather
from .page import Picture, Section, render_page
from .paper import beside_paper
from .scores import Table, gains_of, group_by_protocol, scores_of_rows, table_of
from .summaries import summarize

COLUMNS = (
    *("model", "data set", "seed", "probe", "found", "balanced accuracy", "gain", "parameters"),
    *("tokens read", "trainings", "key"),
)
PAPER_COLUMNS = ("model", "data set", "seed", "probe", "ours", "paper", "difference", "paper's gain")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a report says, not yet written.

    Attributes:
        html, markdown, csv, latex: whole files.
        sentences: the findings, for a terminal.
        notes: what was left out.
        num_rows: results in it.
    """

    html: str
    markdown: str
    csv: str
    latex: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    num_rows: int


def make_report(runs: Path, *, against_paper: bool = False) -> Report:
    """Read a folder of runs and say what is in it.

    Args:
        runs: what `layerbank probe --runs` was given, or a folder within it.
        against_paper: add the published numbers of the same models, data sets and probes.

    Raises:
        RequestError: no results, or two results that claim one place.
        WorkError: no result that can be read.
    """
    gathered = gather(runs)
    notes = list(gathered.notes)
    sections, tables, latex = [], [], []
    groups = list(group_by_protocol(gathered.rows).values())
    for number, rows in enumerate(groups, 1):
        title = "Results" if len(groups) == 1 else f"Protocol {number} of {len(groups)}"
        table = table_of(scores_of_rows(rows))
        sections.append(_section(title, rows, table, gathered, notes))
        means = dataset_table(table)
        tables.append(
            f"## {title}\n\n" + "".join(f"- {one}\n" for one in sections[-1].sentences) + "\n" + table_markdown(means)
        )
        latex.append(table_latex(means))
    if against_paper:
        sections += _beside(gathered.rows, notes)
    versions = [(name, version(name)) for name in ("layerbank", "numpy", "scipy", "matplotlib")]
    return Report(
        html=render_page(f"Probes of {runs.resolve().name}", sections, notes, versions),
        markdown="\n".join(tables),
        csv=_csv(COLUMNS, [line for section in sections[: len(groups)] for line in section.lines]),
        latex="\n".join(latex),
        sentences=tuple(text for section in sections for text in section.sentences),
        notes=tuple(notes),
        num_rows=len(gathered.rows),
    )


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode(), path.with_name(f".{path.name}.{os.getpid()}"))


def _section(title: str, rows: Sequence[Row], table: Table, gathered: Gathered, notes: list[str]) -> Section:
    findings = find(scores_of_rows(rows), gathered.folders, notes)
    gain_of = gains(rows)
    lines = [
        (
            row["backbone"],
            row["dataset"],
            str(row["protocol"]["seed"]),
            row["probe"],
            found(row) or "-",
            "diverged" if row["test"] is None else f"{100 * row['test']['balanced_accuracy']:.2f}",
            f"{gain_of[row['key']]:+.2f}" if row["key"] in gain_of else "-",
            f"{row['num_parameters']:,}" if "num_parameters" in row else "-",
            *(f"{row['cost'][name]:,}" if "cost" in row else "-" for name in ("tokens_read", "trainings")),
            row["key"][:8],
        )
        for row in rows
    ]
    protocol = {name: value for name, value in rows[0]["protocol"].items() if name != "seed"}
    return Section(
        title=title,
        sentences=[sentence(one) for one in findings],
        caption=f"{len(rows)} results: balanced accuracy in percent, gain in points over {REFERENCE} of the same case",
        columns=COLUMNS,
        lines=lines,
        picture=_picture(table),
        settings=[(name, json.dumps(value, ensure_ascii=False)) for name, value in protocol.items()],
    )


def _picture(table: Table) -> Picture | None:
    """Gains by probe; None without a reference, or with nothing to compare."""
    if REFERENCE not in table.probes or len(table.probes) == 1:
        return None
    over = gains_of(table)
    means = {name: summarize(over.column(name)).mean for name in table.probes if name != REFERENCE}
    if not any(np.isfinite(mean) for mean in means.values()):
        return None
    with tempfile.TemporaryDirectory() as folder:
        draw_gains(table, Path(folder, "gains"))
        svg = Path(folder, "gains.svg").read_bytes()
    said = ", ".join(
        f"{name} {mean:+.2f}" if np.isfinite(mean) else f"{name} no result" for name, mean in means.items()
    )
    return Picture(
        svg=svg,
        alt=f"Box plot. Mean gain in points over {REFERENCE}: {said}.",
        caption=f"Gain over {REFERENCE}, a dot a case; a star is significant over data sets (Wilcoxon, FDR 5 %).",
    )


def _beside(rows: Sequence[Row], notes: list[str]) -> list[Section]:
    pairs = beside_paper([one for one in scores_of_rows(rows) if np.isfinite(one.percent)])
    if not pairs:
        notes.append("Against the paper: it has none of these models, data sets and probes together.")
        return []
    lines = [
        (
            pair.ours.model,
            pair.ours.dataset,
            str(pair.ours.seed),
            pair.ours.probe,
            f"{pair.ours.percent:.2f}",
            f"{pair.published:.2f}",
            f"{pair.difference:+.2f}",
            f"{pair.published_gain:+.2f}",
        )
        for pair in pairs
    ]
    caption = f"{len(pairs)} results beside the published ones, balanced accuracy in percent"
    return [
        Section(
            title="Against the paper",
            sentences=(),
            caption=caption,
            columns=PAPER_COLUMNS,
            lines=lines,
            picture=None,
            settings=(),
        )
    ]


def _csv(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
