"""The data of a report: the rows of one protocol, and everything that is read for them; `ReportFigure`.

Figures read tables, predictions, saved settings and stores from here, and draw here. What should be there and cannot be read
becomes a note. Nothing is trained.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LayerbankError
from ..events import OnEvent, ignore
from ..probing.rows.results import Row
from ..quantities import counted
from ..statistics.dataset_table import DatasetTable, dataset_table
from ..statistics.duplicates import accuracies_without
from ..statistics.findings import Finding, find
from ..statistics.scores import GIVEN_LEVEL, Case, Score, Table, case_of, compared, scores_of_rows, table_of
from ..statistics.tested import Tested, read_tested
from .page.blocks import Block, Note, Picture
from .style import drawn_as

if TYPE_CHECKING:
    from ..data.duplicates import Duplicates
    from ..data.splits.split_record import SplitRecord
    from ..probing.tokens.split_tokens import SplitRequest

NUM_SHOWN = 12  # cases of which images are shown; with 24 of 4 KB each they come to 1.5 MB of the page


_CONFIG_TYPES: Mapping[str, type] = {"model": dict, "versions": dict, "class_names": list, "data": str}


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A figure or table of the report, or several that belong together: an entry of the registry `layerbank.figures`.

    Attributes:
        section: anchor and heading of its section; all figures with the same section share it, and their pictures share a gallery.
        make: from the data of one protocol to the blocks of the page; [] shows nothing, and None says that its data do not exist.
        title: its name under "Not here yet", where `make` returns None.
        needs: what would make it: a command, or data.
    """

    section: tuple[str, str]
    make: Callable[[ReportData], Sequence[Block] | None]
    title: str = ""
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        cache_root: folder of all stores, for content hashes and tokens; it need not exist.
        images: show small copies of test images.
        tokens: also read tokens: similarity of levels, accuracy on training images, accuracy with few tokens.
        against_paper: add the published numbers.
        png: draw figures as PNG too, which takes twice as long and which the page does not need.
        on_event: callback for progress.
    """

    cache_root: Path = Path("caches")
    images: bool = True
    tokens: bool = False
    against_paper: bool = False
    png: bool = False
    on_event: OnEvent = ignore


class ReportData:
    """The rows of one protocol.

    Args:
        rows: rows of one protocol.
        folders: key -> folder of a row.
        options: options of the report.

    Attributes:
        scores, table: scores of the rows, and their table.
        cases: in the order of the rows.
        row, rows_of: (case, probe) -> its row; case -> probe -> its row.
        tested: case -> the predictions of its probes.
        headlines: the answer in sentences, for the terminal too; the summary writes them.
        notes: what was left out.
        pictures: every figure that was drawn, in order.

    Raises:
        RequestError: two rows for one probe in one case.
    """

    def __init__(self, rows: Sequence[Row], folders: dict[str, Path], options: ReportOptions) -> None:
        self.rows, self.options = list(rows), options
        self.scores = scores_of_rows(rows)
        self.table = table_of(self.scores)
        self.cases = self.table.cases
        self.row = {(case_of(row), row["probe"]): row for row in rows}
        self.rows_of: dict[Case, dict[str, Row]] = {}
        for (case, probe), row in self.row.items():
            self.rows_of.setdefault(case, {})[probe] = row
        self.headlines: list[str] = []
        self.notes: list[str] = []
        self.pictures: list[Picture] = []
        self._folders = folders
        self._unreadable: set[Path] = set()
        self.tested: dict[Case, Tested] = {}
        ids_of: dict[str, NDArray[np.str_]] = {}  # of a data set: every model has the same, which take memory once
        for case in self.cases:
            finished = {
                name: folders[row["key"]] for name, row in self.rows_of[case].items() if row["test"] is not None
            }
            keep = sum(bool(one.hits) for one in self.tested.values()) < NUM_SHOWN
            tested = read_tested(case, finished, self.notes, keep_answers=keep)
            if np.array_equal(ids_of.setdefault(case.dataset, tested.sample_ids), tested.sample_ids):
                tested = replace(tested, sample_ids=ids_of[case.dataset])
            self.tested[case] = tested
        self.notes.extend(self._other_images())

    def label(self, case: Case) -> str:
        """The shortest text that distinguishes a case from the others."""
        several = [len({getattr(one, name) for one in self.cases}) > 1 for name in ("model", "seed")]
        return ", ".join([case.dataset] + [case.model] * several[0] + [f"seed {case.seed}"] * several[1])

    def shown_cases(self, most: int) -> tuple[list[Case], list[Block]]:
        """The first cases with predictions, and a note on how many more there are."""
        cases = [case for case in self.cases if self.tested[case].hits]
        rest = counted(len(cases) - most, "case")
        note = Note(f"{rest} more: layerbank report RUNS/DATASET/MODEL shows one model's.")
        return cases[:most], [note] if len(cases) > most else []

    def folder(self, case: Case, probe: str) -> Path:
        """The folder of a row, with its probe and predictions."""
        return self._folders[self.row[case, probe]["key"]]

    @cached_property
    def main(self) -> Table:
        """The table without probes on a given level, which have a figure of their own; all of it if there are no others."""
        kept = [probe for probe in self.table.probes if not GIVEN_LEVEL.fullmatch(probe)]
        return self.table.only(kept) if kept else self.table

    def compared(self, *fields: str) -> Table:
        """The main table reduced by `scores.compared`, separately for cases that differ in one of these fields of a case; all of it
        if it has one probe only.
        """
        if len(self.main.probes) == 1:
            return self.main
        groups: dict[tuple[object, ...], list[Score]] = {}
        for score in self.scores:
            if score.probe in self.main.probes:
                groups.setdefault(tuple(getattr(score.case, field) for field in fields), []).append(score)
        return table_of(score for group in groups.values() for score in compared(group))

    @cached_property
    def findings(self) -> list[Finding]:
        """The winner of each case."""
        return find([score for score in self.scores if score.probe in self.main.probes], self.tested)

    @cached_property
    def dataset_table(self) -> DatasetTable:
        """Means by data set over the cases that compare, with marks by test and warnings of duplicate images."""
        table = self.compared("dataset")
        case_of_dataset = {case.dataset: case for case in table.cases}
        alone = len(case_of_dataset) == len(table.cases)  # one model, one seed: McNemar can decide

        def compare(dataset: str, best: str, other: str) -> float:
            return self.tested[case_of_dataset[dataset]].mcnemar(best, other)

        warnings = {dataset: found.warning for dataset, (found, _) in self.duplicates.items()}
        means = table.mean_over("model", "seed")
        shown = [probe for probe in means.probes if np.isfinite(means.column(probe)).any()]
        made = dataset_table(table, shown, compare=compare if alone else None, warnings=warnings)
        return replace(made, note=" ".join([made.note, *self._fewer_cases(table)]))

    def _fewer_cases(self, table: Table) -> Iterator[str]:
        """A sentence on each data set of which a table has not all cases."""
        every, shown = (Counter(case.dataset for case in one.cases) for one in (self.main, table))
        for dataset, number in every.items():
            if not shown[dataset]:
                yield f"{dataset} has no two probes to compare."
            elif shown[dataset] < number:
                yield f"{dataset}: over {shown[dataset]} of {counted(number, 'case')}, those that have every probe of its line."

    @cached_property
    def duplicates(self) -> dict[str, tuple[Duplicates, dict[tuple[Case, str], tuple[float, float]]]]:
        """Data set -> test images that are training images, and accuracies without them; not for runs of format 1."""
        from ..data.duplicates import duplicates_of

        found = {}
        for dataset in dict.fromkeys(case.dataset for case in self.cases):
            cases = [case for case in self.cases if case.dataset == dataset]
            for case in cases:
                train, test = (self.record(case, split) for split in ("train", "test"))
                if train is None or test is None:
                    continue
                # another model may have been given other images under the same name
                alike = {one: self.tested[one] for one in cases if self._images(one) == self._images(case)}
                of_splits = duplicates_of(train, test)
                found[dataset] = of_splits, accuracies_without(of_splits, alike)
                break
        return found

    def config(self, case: Case, probe: str) -> dict[str, Any]:
        """`config` in a row's probe.json: data, classes, stores, model and versions; {} if the file is gone.

        A value of another type than `layerbank probe` writes is left out.
        """
        try:
            file = self.folder(case, probe) / "probe.json"
            text = file.read_text(encoding="utf-8") if file.is_file() else ""  # a pipe would be waited for
            saved = json.loads(text, parse_constant=lambda name: None)
            config: dict[str, Any] = saved["config"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        if not isinstance(config, dict):
            return {}
        return {name: value for name, value in config.items() if isinstance(value, _CONFIG_TYPES.get(name, object))}

    def config_of_case(self, case: Case) -> dict[str, Any]:
        """The config of the first probe of a case that has one: data, classes and stores are common to all."""
        return next((found for probe in self.rows_of[case] if (found := self.config(case, probe))), {})

    def class_names(self, case: Case, num_classes: int) -> list[str]:
        """Class names of one case; numbers if the names are gone."""
        known = self.config_of_case(case).get("class_names", [])
        return [str(known[label]) if label < len(known) else str(label) for label in range(num_classes)]

    def record(self, case: Case, split: str, probe: str | None = None) -> SplitRecord | None:
        """The images of a case's `train` or `test` split; None for runs of format 1, and where the file is gone.

        Args:
            case: the case.
            split: `train` or `test`.
            probe: the images of this probe; None takes the first probe whose images are known.
        """
        from ..data.splits.split_record import (
            load_record,  # and with it zarr, which a report without tokens does without
        )

        for row in [self.row[case, probe]] if probe else self.rows_of[case].values():
            file = self._folders[row["key"]].parent / row.get("images", {}).get(split, "")
            if file.is_file() and file not in self._unreadable:
                try:
                    return load_record(file)
                except LayerbankError as error:
                    self._unreadable.add(file)
                    self.notes.append(f"The images of {case.dataset}/{split} are not known: {error}")
        return None

    def split(self, case: Case, split: str) -> SplitRequest | None:
        """The tokens of a case's `train` or `test` split that its probes read; None where they cannot be looked for."""
        from ..probing.predict import trained_model
        from ..probing.tokens.split_tokens import SplitRequest

        record, config = self.record(case, split), self.config_of_case(case)
        if record is None or "tap" not in config:
            return None
        arrays = {
            (level, kind)
            for row in self.rows_of[case].values()
            for level in row.get("levels", [])
            for kind in row.get("kinds", [])
        }
        return SplitRequest(
            cache_root=self.options.cache_root,
            model=trained_model(config),
            tap=config["tap"],
            record=record,
            rule=None,
            arrays=tuple(sorted(arrays, key=_by_depth)),
        )

    def draw(self, name: str, draw: Callable[[Path], None], *, alt: str, caption: str) -> Picture:
        """Draw a figure and keep it.

        Args:
            name: name of its files, without a suffix.
            draw: writes STEM.svg, STEM.csv and, if figures are written as files, STEM.png.
            alt: what it shows, with its numbers.
            caption: under it.
        """
        formats = ("svg", "png") if self.options.png else ("svg",)
        with tempfile.TemporaryDirectory() as folder, drawn_as(*formats):
            draw(Path(folder, "figure"))
            svg, csv = (Path(folder, f"figure.{suffix}").read_bytes() for suffix in ("svg", "csv"))
            png = Path(folder, "figure.png").read_bytes() if self.options.png else b""
        self.pictures.append(Picture(name=name, svg=svg, png=png, csv=csv, alt=alt, caption=caption))
        return self.pictures[-1]

    def _other_images(self) -> Iterator[str]:
        """Notes on data sets that have different images for different models."""
        given: dict[str, dict[tuple[str, ...], list[str]]] = {}  # data set -> digests -> models
        for case in self.cases:
            digests = tuple(self._images(case))
            if case.model not in digests:
                given.setdefault(case.dataset, {}).setdefault(digests, []).append(case.model)
        for dataset, models in given.items():
            if len(models) > 1:
                groups = "; ".join(", ".join(dict.fromkeys(names)) for names in models.values())
                yield (
                    f"{dataset} is not the same images for all models (the same for: {groups}): probes of one model compare, "
                    "models do not. Extract it again for all of them from one copy of the images."
                )

    def _images(self, case: Case) -> list[str]:
        """Digests of the images of both splits; the model's name if they are not known, so that it equals no other's."""
        fields = next((row["key_fields"] for row in self.rows_of[case].values() if "key_fields" in row), None)
        if fields is not None:
            return [str(fields.get(f"{split}_rows", case.model)) for split in ("train", "test")]
        config = self.config_of_case(case)
        caches = [config.get(name) for name in ("cache", "test_cache")]
        return [str(one.get("manifest", case.model)) if isinstance(one, dict) else case.model for one in caches]


def _by_depth(array: tuple[str, str]) -> tuple[bool, int, str]:
    level, kind = array
    number = level.rpartition(".")[2]
    return not number.isdigit(), int(number) if number.isdigit() else 0, kind  # `final` is the last
