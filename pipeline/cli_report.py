"""The command that makes a page of results."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="[default: RUNS/report/index.html]")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="[default: none]")
@click.option(
    "--csv", type=click.Path(dir_okay=False, path_type=Path), help="Every result, a line each. [default: none]"
)
@click.option("--latex", type=click.Path(dir_okay=False, path_type=Path), help="Means, for booktabs. [default: none]")
@click.option("--compare", type=click.Choice(["paper"]), help="Add the published numbers. [default: none]")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def report(
    runs: Path,
    html: Path | None,
    markdown: Path | None,
    csv: Path | None,
    latex: Path | None,
    compare: str | None,
    as_json: bool,
) -> None:
    """Make one HTML page of all results under RUNS: who wins, by how much, every number and setting.

    The page needs no network. Results that cannot be read are left out and named.

    \b
    layerbank report runs --compare paper --csv results.csv
    """
    from .console import print_json, print_lines
    from .study.report import make_report, write_file

    made = make_report(runs, against_paper=compare == "paper")
    page = html or runs / "report" / "index.html"
    wanted = [(page, made.html), (markdown, made.markdown), (csv, made.csv), (latex, made.latex)]
    written = [(path, text) for path, text in wanted if path is not None]
    for path, text in written:
        write_file(path, text)
    files = [str(path) for path, _ in written]
    if as_json:
        print_json(
            {"num_rows": made.num_rows, "findings": list(made.sentences), "left_out": list(made.notes), "files": files}
        )
    else:
        print_lines(
            [*made.sentences, *(f"left out: {note}" for note in made.notes), *(f"wrote {path}" for path in files)]
        )
