"""Whether a folder of runs is whole and sound: every line, every file of a row, and nothing else.

A line has a digest of its own, and one of each file of its row; a record of images is named after its content. The decision taken
here: `sound` is only what is checked to be as it was written. So rows of format 1, which have no digests, are named too, and so are
folders of rows that no line refers to: of a run that was killed, or of a line that was lost. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerbank.cache.maintenance.verify import is_harmless

from ..data.splits.split_record import load_record
from ..errors import WorkError
from ..probing.rows.results import Row
from ..probing.rows.results_file import FAILURES, RESULTS, is_reusable, read_results
from ..probing.rows.row_files import row_folder, wrong_file
from ..probing.rows.row_locks import LOCKS_FOLDER
from ..statistics.predictions import accuracies, read_predictions
from .gather import results_files

_REPORT = "report"  # of `layerbank report` of this folder
_OWN = (RESULTS, f".{RESULTS}.lock", ".sweeps", LOCKS_FOLDER, _REPORT)
_OF_THE_WHOLE = (_REPORT, FAILURES)
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
    places: dict[str, Path] = {}  # key -> where its row is
    rows_in: dict[Path, list[Row]] = {}  # folder -> the last row of each key
    for path in paths:
        rows_in[path.parent] = []
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
        rows_in[path.parent] = list(rows.values())
    unknown = sorted(_unknown(runs, rows_in))
    problems += [WorkError("report.foreign_file", path=path) for path in unknown if not is_harmless(path.name)]
    return VerifiedRuns(
        num_files=len(paths),
        num_rows=len(places),
        problems=tuple(problems),
        harmless=tuple(path for path in unknown if is_harmless(path.name)),
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
    if (
        row["test"] is None or "test.npz" not in row["files"] or "task" in row
    ):  # predictions of classes are understood here
        return
    try:
        found = accuracies(read_predictions(folder)).balanced
    except WorkError as error:
        yield error
        return
    if abs(found - row["test"]["balanced_accuracy"]) > _ROUNDING:
        values = {"expected": 100 * found, "got": 100 * row["test"]["balanced_accuracy"]}
        yield WorkError("report.edited_row", path=path, probe=row["probe"], key=row["key"][:8], **values)


def _unknown(runs: Path, rows_in: Mapping[Path, Sequence[Row]]) -> Iterator[Path]:
    """What belongs to no row: in the folders above files of results, beside these, and in the folders of rows."""
    above = {folder for place in rows_in for folder in place.parents if folder == runs or runs in folder.parents}
    for folder in above | rows_in.keys():
        rows = rows_in.get(folder, ())
        known = {row_folder(folder, row) for row in rows} | above | rows_in.keys()
        names = {name for row in rows for name in row.get("images", {}).values()}
        names |= {*(_OWN if folder in rows_in else ()), *(_OF_THE_WHOLE if folder == runs else ())}
        yield from (entry for entry in folder.iterdir() if entry not in known and entry.name not in names)
        for row in filter(is_reusable, rows):
            place = row_folder(folder, row)
            entries = place.iterdir() if place.is_dir() else ()
            yield from (entry for entry in entries if entry.name not in row["files"])
