"""A report of a folder of runs: one HTML page, its figures as files, its tables as Markdown, CSV, LaTeX and Parquet.

Rows of different protocols are never compared: each protocol is a group of sections of its own, made by the figures of the registry
(`figures`). Nothing is trained. Beside results.jsonl and the saved predictions, a report reads the content hashes of the stores,
a few test images, and with `tokens` the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..outputs import write_output
from ..probing.rows.results import Row
from ..quantities import counted
from ..statistics.dataset_table import table_latex, table_markdown
from ..statistics.scores import case_of, group_by_protocol, group_by_setting, protocol_of_rows
from .figures import FIGURES
from .figures.results import Record, csv_of, records_of
from .gather import gather
from .other_tasks import group_of, markdown_of
from .page import render_page
from .page.blocks import Block, Bullets, Gallery, Group, Picture, Section
from .report_data import ReportData, ReportOptions

_FEW = 4  # rows that a note names
_DECISIVE = {  # fields of a key that probes of one study share
    "algorithm": "the version of layerbank",
    "model": "the weights of the model",
    "tap": "the tap",
    "train_rows": "the training images",
    "test_rows": "the test images",
    "train_targets": "the labels",
    "test_targets": "the labels",
    "train_usable": "which images could be read",
    "test_usable": "which images could be read",
    "train_views": "the number of views",
    "metric": "the metric that settings are chosen by",
    "class_weights": "the weights of classes",
}

__all__ = ["Report", "ReportOptions", "make_report", "write_figures"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report in memory.

    Attributes:
        html, markdown, csv, latex: contents of whole files.
        records: every result; of a solved probe one for each matmul precision of the probes beside it.
        figures: file name without a suffix -> figure.
        headlines: the answer in a few sentences.
        findings: the winner of each case, a sentence each.
        notes: what was left out.
    """

    html: str
    markdown: str
    csv: str
    latex: str
    records: tuple[Record, ...]
    figures: dict[str, Picture]
    headlines: tuple[str, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "num_rows": len({one.key for one in self.records}),
            "summary": list(self.headlines),
            "findings": list(self.findings),
            "left_out": list(self.notes),
        }


def make_report(runs: Path, options: ReportOptions) -> Report:
    """Read a folder of runs and make its report.

    Args:
        runs: the `--runs` of `layerbank probe`, or a folder in it.
        options: what to add, and where the stores are.

    Raises:
        RequestError: no results, or two results for one probe in one case.
        WorkError: no result can be read.
    """
    found, folders, notes = gather(runs)
    every_row, others = ([row for row in found if ("task" in row) == is_other] for is_other in (False, True))
    if others:
        tasks = ", ".join(dict.fromkeys(row["task"] for row in others))
        notes.append(
            f"Results of {tasks} have a table of their own; the figures and statistics here are of multiclass."
        )
    notes += [f"The figure {name} of a plug-in: {reason}" for name, reason in FIGURES.broken.items()]
    by_protocol = [group_by_setting(rows) for rows in group_by_protocol(every_row)]
    notes += _several_settings(by_protocol)
    groups: list[Group] = []
    protocols: list[ReportData] = []
    figures: dict[str, Picture] = {}
    for number, (title, rows) in enumerate(_titled(by_protocol), 1):
        prefix = f"p{number}-" if title else ""
        data = ReportData(rows, folders, options)
        groups.append(Group(title=title, prefix=prefix, sections=_sections(data)))
        figures |= {prefix + picture.name: picture for picture in data.pictures}
        notes += data.notes
        protocols.append(data)
    records = [record for data in protocols for record in records_of(data)]
    tables = [_markdown(group.title or "Results", data) for group, data in zip(groups, protocols, strict=True)]
    headlines = list(_of_groups(groups, [data.headlines for data in protocols]))
    findings = list(_of_groups(groups, [data.findings for data in protocols]))
    if others:
        groups.append(group_of(others))
        tables.append(markdown_of(others))
    once = tuple(dict.fromkeys(notes))
    versions = [(name, version(name)) for name in ("layerbank", "numpy", "scipy", "scikit-learn", "matplotlib")]
    return Report(
        html=render_page(f"Probes of {runs.resolve().name}", _lead(records), groups, once, versions),
        markdown="\n".join(tables),
        csv=csv_of(records),
        latex="\n".join(table_latex(data.dataset_table) for data in protocols),
        records=tuple(records),
        figures=figures,
        headlines=tuple(headlines),
        findings=tuple(findings),
        notes=once,
    )


def write_figures(folder: Path, figures: Mapping[str, Picture]) -> list[Path]:
    """Write every figure as SVG and PNG, and its numbers as CSV; returns the paths."""
    written = []
    for name, picture in figures.items():
        for suffix, content in (("svg", picture.svg), ("png", picture.png), ("csv", picture.csv)):
            if content:
                written.append(folder / f"{name}.{suffix}")
                write_output(written[-1], content)
    return written


def _sections(data: ReportData) -> list[Section]:
    """Every figure of the registry in its section, and the figures without data; a plug-in that fails becomes a note."""
    blocks: dict[tuple[str, str], list[Block]] = {}
    lacking = []
    for name, figure in FIGURES.items():
        try:
            made = figure.make(data)
        except Exception as error:  # whatever a plug-in raises
            if name in FIGURES.builtin:
                raise
            data.notes.append(f"The figure {name} of a plug-in failed: {type(error).__name__}: {error}")
            continue
        if made is None:
            lacking.append(f"{figure.title}: {figure.needs}")
        blocks.setdefault(figure.section, []).extend(made or ())
    if lacking:
        blocks["not-here", "Not here yet"] = [Bullets(lacking)]
    return [
        Section(anchor=anchor, title=title, blocks=_in_one_gallery(of_section))
        for (anchor, title), of_section in blocks.items()
        if of_section
    ]


def _in_one_gallery(blocks: list[Block]) -> list[Block]:
    """The pictures of a section beside each other, at the place of the first."""
    pictures = [one for one in blocks if isinstance(one, Picture)]
    others: list[Block] = [one for one in blocks if not isinstance(one, Picture)]
    if pictures:
        others.insert(blocks.index(pictures[0]), Gallery(pictures))
    return others


def _titled(by_protocol: Sequence[Sequence[Sequence[Row]]]) -> Iterator[tuple[str, Sequence[Row]]]:
    """Every group of rows that can be compared, with its title."""
    titles = _titles([[row for rows in by_setting for row in rows] for by_setting in by_protocol])
    for title, by_setting in zip(titles, by_protocol, strict=True):
        for number, rows in enumerate(by_setting, 1):
            setting = f"setting {number} of {len(by_setting)} with the same names" if len(by_setting) > 1 else ""
            both = "; ".join(part for part in (title, setting) if part)
            yield both[:1].upper() + both[1:], rows


def _several_settings(by_protocol: Sequence[Sequence[Sequence[Row]]]) -> list[str]:
    """A note on each model and data set that has results of several settings: which rows, and in what they differ."""
    notes = []
    for by_setting in by_protocol:
        cases = dict.fromkeys(case_of(row)[:2] for rows in by_setting[1:] for row in rows)
        for model, dataset in cases:
            of_each = [[row for row in rows if case_of(row)[:2] == (model, dataset)] for rows in by_setting]
            of_each = [rows for rows in of_each if rows]
            shown = "; ".join(f"setting {number}: {_few_rows(rows)}" for number, rows in enumerate(of_each, 1))
            notes.append(
                f"{dataset} with {model} has results of several settings, which differ in {_difference(of_each)} ({shown}). They "
                "are not compared; each setting has sections of its own."
            )
    return list(dict.fromkeys(notes))


def _few_rows(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - _FEW} more" if len(rows) > _FEW else ""
    return ", ".join(f"{row['probe']} (row {row['key'][:8]})" for row in rows[:_FEW]) + more


def _difference(settings: Sequence[Sequence[Row]]) -> str:
    """What rows of several settings differ in, in words."""
    fields = [rows[0].get("key_fields") for rows in settings]
    if any(one is None for one in fields):
        return "the format of their rows, or in images, labels, weights or views"
    words = [words for name, words in _DECISIVE.items() if len({str(one.get(name)) for one in fields if one}) > 1]
    return (
        ", ".join(dict.fromkeys(words))
        or "other settings of the study, or another definition of a probe of the same name"
    )


def _titles(by_protocol: Sequence[Sequence[Row]]) -> list[str]:
    """The fields in which each protocol differs from the others; "" if there is only one protocol."""
    if len(by_protocol) == 1:
        return [""]
    protocols = [{name: _plain_text(value) for name, value in protocol_of_rows(rows).items()} for rows in by_protocol]
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    differing = [name for name in names if len({protocol.get(name) for protocol in protocols}) > 1][:3]
    return [
        f"Protocol {number} of {len(protocols)}: " + "; ".join(f"{name} {one.get(name, '-')}" for name in differing)
        for number, one in enumerate(protocols, 1)
    ]


def _plain_text(value: object) -> str:
    return json.dumps(value, allow_nan=False).strip('[]"')


def _lead(records: Sequence[Record]) -> str:
    nouns = {"model": "model", "dataset": "data set", "probe": "probe", "seed": "seed"}
    parts = [counted(len({getattr(one, field) for one in records}), noun) for field, noun in nouns.items()]
    num_results = len({one.key for one in records})
    return f"{counted(num_results, 'result')}: {', '.join(parts)}. Accuracy is balanced test accuracy."


def _of_groups(groups: Sequence[Group], texts: Sequence[Sequence[object]]) -> Iterator[str]:
    """The sentences of every group, with its title where there are several."""
    for group, of_group in zip(groups, texts, strict=True):
        yield from (f"{group.title}: {text}" if group.title else str(text) for text in of_group)


def _markdown(title: str, data: ReportData) -> str:
    findings = "".join(f"- {text}\n" for text in (*data.headlines, *data.findings))
    return f"## {title}\n\n{findings}\n{table_markdown(data.dataset_table)}"
