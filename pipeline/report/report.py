"""A report of a folder of runs: one HTML page, its figures as files, its tables as Markdown, CSV, LaTeX and Parquet.

Rows of different protocols are never set side by side: each protocol is a group of sections of its own (`sections/`). Nothing is
trained; what is read beside results.jsonl and the saved predictions is the content hashes of the stores, small copies of a few
test images, and the tokens if asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from layerbank.cache.atomic_files import replace_file

from ..probing.results import Row
from ..statistics.dataset_table import table_latex, table_markdown
from ..statistics.findings import sentence
from ..statistics.scores import group_by_protocol
from .gather import gather
from .page import render_page
from .page.blocks import Group, Page, Picture
from .page.numbers import counted
from .records import Record, csv_of, records_of
from .report_data import ReportData, ReportOptions
from .sections import SECTIONS

__all__ = ["Report", "ReportOptions", "make_report", "write_figures", "write_file"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a report says, not yet written.

    Attributes:
        html, markdown, csv, latex: whole files.
        records: every result.
        figures: folder-safe name -> figure.
        headlines: the answer in a few sentences.
        sentences: who wins each case.
        notes: what was left out.
    """

    html: str
    markdown: str
    csv: str
    latex: str
    records: tuple[Record, ...]
    figures: dict[str, Picture]
    headlines: tuple[str, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]


def make_report(runs: Path, options: ReportOptions) -> Report:
    """Read a folder of runs and say what is in it.

    Args:
        runs: what `layerbank probe --runs` was given, or a folder within it.
        wishes: what else to read, and what to add.

    Raises:
        RequestError: no results, or two results that claim one place.
        WorkError: no result that can be read.
    """
    gathered = gather(runs)
    notes = list(gathered.notes)
    groups: list[Group] = []
    report_datas: list[ReportData] = []
    figures: dict[str, Picture] = {}
    by_protocol = list(group_by_protocol(gathered.rows).values())
    titles = _titles(by_protocol)
    for number, (title, rows) in enumerate(zip(titles, by_protocol, strict=True), 1):
        prefix = f"p{number}-" if title else ""
        report_data = ReportData(rows, gathered.folders, options)
        sections = [made for section in SECTIONS if (made := section(report_data)) is not None]
        groups.append(Group(title=title, prefix=prefix, sections=sections))
        figures |= {prefix + picture.name: picture for picture in report_data.pictures}
        notes += report_data.notes
        report_datas.append(report_data)
    records = [record for report_data in report_datas for record in records_of(report_data)]
    page = Page(
        title=f"Probes of {runs.resolve().name}",
        lead=_lead(records),
        groups=groups,
        notes=tuple(dict.fromkeys(notes)),
        versions=[(name, version(name)) for name in ("layerbank", "numpy", "scipy", "scikit-learn", "matplotlib")],
    )
    return Report(
        html=render_page(page),
        markdown="\n".join(
            _markdown(group.title or "Results", one) for group, one in zip(groups, report_datas, strict=True)
        ),
        csv=csv_of(records),
        latex="\n".join(table_latex(report_data.dataset_table) for report_data in report_datas),
        records=tuple(records),
        figures=figures,
        headlines=tuple(text for report_data in report_datas for text in report_data.headlines),
        sentences=tuple(sentence(one) for report_data in report_datas for one in report_data.findings),
        notes=tuple(page.notes),
    )


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    _write(path, text.encode())


def write_figures(folder: Path, figures: dict[str, Picture]) -> list[Path]:
    """Write every figure as SVG, as PNG if it was wished, and its numbers as CSV; returns the paths."""
    written = []
    for name, picture in figures.items():
        for suffix, content in (("svg", picture.svg), ("png", picture.png), ("csv", picture.csv)):
            if not content:
                continue
            written.append(folder / f"{name}.{suffix}")
            _write(written[-1], content)
    return written


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content, path.with_name(f".{path.name}.{os.getpid()}"))


def _titles(by_protocol: Sequence[Sequence[Row]]) -> list[str]:
    """What each protocol has that others have not; "" where there is only one."""
    if len(by_protocol) == 1:
        return [""]
    protocols = [
        {name: json.dumps(value).strip('[]"') for name, value in rows[0]["protocol"].items() if name != "seed"}
        for rows in by_protocol
    ]
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    differing = [name for name in names if len({protocol.get(name) for protocol in protocols}) > 1][:3]
    return [
        f"Protocol {number} of {len(protocols)}: " + "; ".join(f"{name} {one.get(name, '-')}" for name in differing)
        for number, one in enumerate(protocols, 1)
    ]


def _lead(records: Sequence[Record]) -> str:
    models, datasets, probes, seeds = (
        len({getattr(one, name) for one in records}) for name in ("model", "dataset", "probe", "seed")
    )
    parts = [counted(models, "model"), counted(datasets, "data set"), counted(probes, "probe"), counted(seeds, "seed")]
    return f"{counted(len(records), 'result')}: {', '.join(parts)}. Accuracy is balanced test accuracy."


def _markdown(title: str, report_data: ReportData) -> str:
    said = [*report_data.headlines, *(sentence(one) for one in report_data.findings)]
    findings = "".join(f"- {text}\n" for text in said)
    return f"## {title}\n\n{findings}\n{table_markdown(report_data.dataset_table)}"
