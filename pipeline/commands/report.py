"""`layerbank report`: one HTML page of all results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from . import options as shared

FEW = 12


@click.command()
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--html", type=shared.OUTPUT, help="[default: RUNS/report/index.html]")
@click.option(
    "--figures",
    type=shared.OutputFolder(),
    help="Every figure as SVG, PNG and CSV, into this folder. [default: none]",
)
@click.option("--markdown", type=shared.OUTPUT, help="Findings and means. [default: none]")
@click.option("--csv", type=shared.OUTPUT, help="Every result, a line each. [default: none]")
@click.option("--parquet", type=shared.OUTPUT, help="The same as Parquet; needs layerbank[parquet]. [default: none]")
@click.option("--latex", type=shared.OUTPUT, help="Means, for booktabs. [default: none]")
@click.option("--compare", type=click.Choice(["paper"]), help="Add the published numbers. [default: none]")
@shared.cache_root
@click.option(
    "--tokens",
    is_flag=True,
    help="Also read tokens: similarity of levels, training accuracy, accuracy with few tokens. Takes minutes.",
)
@click.option(
    "--images/--no-images", default=True, show_default=True, help="Put small copies of a few test images on the page."
)
@shared.as_json
def report(
    runs: Path,
    html: Path | None,
    figures: Path | None,
    markdown: Path | None,
    csv: Path | None,
    parquet: Path | None,
    latex: Path | None,
    compare: str | None,
    cache_root: Path,
    tokens: bool,
    images: bool,
    as_json: bool,
) -> None:
    """Make one HTML page of all results under RUNS: who wins, by how much, every number, figure and setting.

    The page needs no network. Results that cannot be read are left out and named. One of the files may be -, standard output; the
    findings then go to standard error.

    \b
    layerbank report runs --compare paper --figures figures --csv results.csv
    """
    from ..console import Listener, print_json, print_lines
    from ..outputs import STDOUT, check_different, check_output, write_output
    from ..report.figures.results import require_parquet, write_parquet
    from ..report.report import ReportOptions, make_report, write_figures

    page = html or runs / "report" / "index.html"
    check_output(page, "--html")
    named = {"--html": page, "--markdown": markdown, "--csv": csv, "--parquet": parquet, "--latex": latex}
    check_different({**named, "--json": STDOUT if as_json else None})
    if parquet is not None:
        require_parquet()
    with Listener(quiet=as_json) as listener:
        options = ReportOptions(
            cache_root=cache_root,
            images=images,
            tokens=tokens,
            against_paper=compare == "paper",
            png=figures is not None,
            on_event=listener.show,
        )
        made = make_report(runs, options)
    texts = {page: made.html, markdown: made.markdown, csv: made.csv, latex: made.latex}
    written = [path for path in texts if path is not None]
    for path in written:
        write_output(path, texts[path].encode())
    if parquet is not None:
        write_parquet(parquet, made.records)
        written.append(parquet)
    drawn = [] if figures is None else write_figures(figures, made.figures)
    if as_json:
        print_json(made.to_dict() | {"files": [str(path) for path in (*written, *drawn)]})
        return
    left_out = [f"left out: {note}" for note in made.notes]
    with shared.answers_beside(*named.values()):
        print_lines([*made.headlines, *_few(made.findings), *_few(left_out), *(f"wrote {path}" for path in written)])
        if figures is not None:
            print_lines([f"wrote {len(made.figures)} figures, each as SVG, PNG and CSV, to {figures}"])


def _few(lines: Sequence[str]) -> list[str]:
    """The first lines, for a terminal; all are on the page."""
    more = len(lines) - FEW
    return [*lines[:FEW], f"... and {more} more, on the page"] if more > 1 else list(lines)
