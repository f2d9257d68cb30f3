"""`layerbank runs`: what a folder of results holds."""

from __future__ import annotations

from pathlib import Path

import click

from . import options as shared


@click.group(cls=shared.CommandGroup)
def runs() -> None:
    """Check folders of results.

    \b
    layerbank runs verify runs
    """


@runs.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@shared.as_json
def verify(folder: Path, as_json: bool) -> None:
    """Read all results under FOLDER [default: runs], and list every row and file that is not as it was written.

    Exit code 1 if there is one. Nothing is changed: `layerbank probe` trains the probes of such rows again.

    \b
    layerbank runs verify runs
    """
    from ..console import print_json, print_lines
    from ..quantities import counted
    from ..report.verify import verify_runs

    found = verify_runs(folder)
    if as_json:
        problems = [
            {"where": one.where, "expected": one.expected, "got": one.got, "do": one.todo} for one in found.problems
        ]
        numbers = {"num_files": found.num_files, "num_rows": found.num_rows}
        print_json({**numbers, "problems": problems, "harmless": [str(path) for path in found.harmless]})
    else:
        state = counted(len(found.problems), "problem") if found.problems else "sound"
        print_lines([f"{folder}: {counted(found.num_rows, 'row')} in {counted(found.num_files, 'file')}, {state}"])
        print_lines(f"  {one}" for one in found.problems)
        print_lines(f"  harmless, written by a file manager: {path}" for path in found.harmless)
    if found.problems:
        click.get_current_context().exit(1)
