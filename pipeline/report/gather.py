"""Every row under a folder of runs.

The decision taken here: one bad line or file does not hide the good ones. What cannot be read is left out and named with its place;
only a folder without any usable row is an error.
`scores.table_of` decides which rows may be compared.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import RequestError, WorkError
from ..probing.rows.results import Row
from ..probing.rows.results_file import RESULTS, read_results
from ..probing.rows.row_files import row_folder, wrong_file

FILES = ("test.npz", "probe.json", "attention.csv", "attention.npz")
"""The files of a row that a report reads."""


def results_files(runs: Path) -> list[Path]:
    """Every results.jsonl of a folder, by path.

    Raises:
        RequestError: there is none.
    """
    if not runs.is_dir():
        raise RequestError("report.runs_missing", runs=runs)
    paths = sorted(runs.rglob(RESULTS))
    if not paths:
        raise RequestError("report.no_results", runs=runs)
    return paths


def gather(runs: Path) -> tuple[list[Row], dict[str, Path], list[str]]:
    """Read every results.jsonl under a folder.

    Args:
        runs: the `--runs` of `layerbank probe`, or a folder in it.

    Returns:
        The rows in the order of the paths of their files; key -> the folder of the row, which may be gone; what was left out and
        why, a sentence each. If a file has several rows with one key, the last one counts.

    Raises:
        RequestError: there is no results.jsonl.
        WorkError: no line can be used.
    """
    paths = results_files(runs)
    found: dict[str, Row] = {}
    folders: dict[str, Path] = {}
    notes: list[str] = []
    for path in paths:
        try:
            results = read_results(path)
        except WorkError as error:
            notes.append(str(error))
            continue
        notes += map(str, results.skipped)
        for row in results.rows:
            if row["key"] in folders and folders[row["key"]].parent != path.parent:
                notes.append(f"{path}: {row['probe']} is also in {folders[row['key']].parent}; the first counts.")
                continue
            folder = row_folder(path.parent, row)
            # a row whose files are gone is shown without what they hold
            there = [name for name in FILES if (folder / name).exists()]
            if reason := wrong_file(folder, row.get("files", {}), only=there):
                notes.append(str(WorkError("report.changed_row_files", folder=folder, reason=reason)))
                continue
            found[row["key"]] = row
            folders[row["key"]] = folder
    if not found:
        raise WorkError("report.no_readable_results", runs=runs, reasons=" ".join(notes) or "empty files")
    return list(found.values()), folders, notes
