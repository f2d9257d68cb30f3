"""`layerbank doctor`: check the installation and the stores."""

from __future__ import annotations

from pathlib import Path

import click

from . import options as shared


@click.command()
@shared.cache_root
@shared.as_json
def doctor(cache_root: Path, as_json: bool) -> None:
    """Check the installation, the devices, the folder of stores and the stores; say what is wrong and what to do.

    The exit code is 1 if something cannot work; warnings do not change it. Small files are written to the folder and removed.

    \b
    layerbank doctor --cache caches
    """
    from ..console import print_json, print_table
    from ..doctor import PROBLEM, examine

    findings = examine(cache_root)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        print_table(("what", "state", "found", "what to do"), findings, num_left=4)
    if any(finding.state == PROBLEM for finding in findings):
        click.get_current_context().exit(1)
