"""Whether a folder of runs is whole and sound: every line, every file of a row, and nothing else.

A line has a digest of its own, and one of each file of its row; a record of images is named after its content. The decision taken
here: `sound` is only what is checked to be as it was written. So rows of format 1, which have no digests, are named too, and so are
folders of rows that no line refers to: of a run that was killed, or of a line that was lost. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerbank.cache.maintenance.verify import is_harmless

from ..data.split_record import load_record
from ..errors import WorkError
from ..probing.results import Row
from ..probing.results_file import RESULTS, is_reusable, read_results
from ..probing.row_files import row_folder, wrong_file
from ..statistics.predictions import accuracies, read_predictions
from .gather import results_files

_OWN = (RESULTS, f".{RESULTS}.lock", ".sweeps", "report")  # `layerbank report` of this folder writes the last
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class VerifiedRuns:
    """What a folder of runs holds.

    Attributes:
        num_files: files of results.
        num_rows: rows that are believed, the last of each key.
        problems: everything that is not as it was written, or does not belong there.
        harmless: files of file managers.
    """

    num_files: int
    num_rows: int
    problems: tuple[WorkError, ...]
    harmless: tuple[Path, ...]


def verify_runs(runs: Path) -> VerifiedRuns:
    """Read every results.jsonl under a folder, and all files that its rows refer to.

    Args:
        runs: the `--runs` of `layerbank probe`, or a folder in it.

    Raises:
        RequestError: there is no results.jsonl.
    """
    paths = results_files(runs)
    problems: list[WorkError] = []
    harmless: list[Path] = []
    places: dict[str, Path] = {}  # key -> where its row is
    for path in paths:
        try:
            results = read_results(path)
        except WorkError as error:
            problems.append(error)
            continue
        problems += results.skipped
        rows = {row["key"]: row for row in results.rows}
        for key, row in rows.items():
            if key in places:
                problems.append(WorkError("report.repeated_row", path=path, probe=row["probe"], other=places[key]))
            places.setdefault(key, path)
            problems += _row_problems(path, row)
        problems += _foreign(path.parent, list(rows.values()), may_be_known=not results.skipped, harmless=harmless)
    return VerifiedRuns(
        num_files=len(paths), num_rows=len(places), problems=tuple(problems), harmless=tuple(sorted(harmless))
    )


def _row_problems(path: Path, row: Row) -> Iterator[WorkError]:
    folder = row_folder(path.parent, row)
    if not is_reusable(row):
        yield WorkError("report.unverifiable_row", path=path, probe=row["probe"], key=row["key"][:8])
        return
    if reason := wrong_file(folder, row["files"]):
        yield WorkError("probing.damaged_row_files", folder=folder, reason=reason)
        return
    for name in row["images"].values():
        try:
            load_record(path.parent / name)
        except WorkError as error:
            yield error
    if row["test"] is None or "test.npz" not in row["files"]:
        return
    try:
        found = accuracies(read_predictions(folder)).balanced
    except WorkError as error:
        yield error
        return
    if abs(found - row["test"]["balanced_accuracy"]) > _ROUNDING:
        values = {"expected": 100 * found, "got": 100 * row["test"]["balanced_accuracy"]}
        yield WorkError("report.edited_row", path=path, probe=row["probe"], key=row["key"][:8], **values)


def _foreign(folder: Path, rows: list[Row], *, may_be_known: bool, harmless: list[Path]) -> Iterator[WorkError]:
    """What lies beside the rows and belongs to none of them; `harmless` is extended."""
    files = {row_folder(folder, row): {*row.get("files", ())} for row in rows if is_reusable(row)}
    old = {row_folder(folder, row) for row in rows} - files.keys()
    records = {name for row in rows for name in row.get("images", {}).values()}
    inside = [entry for place in files if place.is_dir() for entry in place.iterdir() if entry.name not in files[place]]
    beside = [
        entry
        for entry in folder.iterdir()
        if entry.name not in _OWN and entry not in files and entry not in old and entry.name not in records
    ]
    for entry in sorted(beside + inside):
        if is_harmless(entry.name):
            harmless.append(entry)
        elif not any(entry.rglob(RESULTS)):  # a folder in a folder of runs
            if may_be_known:
                yield WorkError("report.foreign_file", path=entry)
            else:
                yield WorkError("report.lost_row", path=entry)
