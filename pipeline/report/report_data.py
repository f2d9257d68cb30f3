"""What a section of the report is made of: the rows of one protocol, and all that can be read for them.

Sections ask here for tables, predictions, saved settings and stores, draw their figures here, and say here what is not there:
`leave_out` for what should have been, `lack` for a figure whose data nobody has made. Nothing is trained.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import CacheError, TokenCache

from ..events import OnEvent, ignore
from ..probing.results import Row
from ..statistics.dataset_table import DatasetTable, dataset_table
from ..statistics.findings import Finding, find
from ..statistics.repeated import Repeated, find_repeated
from ..statistics.scores import Case, Table, scores_of_rows, table_of
from ..statistics.tested import Tested, read_tested
from .figures.style import drawn_as
from .page.blocks import Picture

NUM_SHOWN = 12  # cases of which images are shown; with 24 of 4 KB each they come to 1.5 MB of the page
GIVEN_LEVEL = re.compile(r"(.+)@(\d+|final)")  # and not linear@best, which is one probe a case as any other


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What was asked of a report.

    Attributes:
        cache_root: folder of all stores, where content hashes and tokens are read if they are there.
        images: show small copies of test images.
        tokens: read tokens too: similarity of levels, accuracy on training images, and with few tokens.
        against_paper: add the published numbers.
        png: draw figures as PNG too, which takes twice as long and which the page has no use for.
        emit: told what takes long.
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
        rows: of one protocol.
        folders: key -> folder of a row.
        wishes: what was asked.

    Attributes:
        scores, table: of the rows.
        cases: in the order of the rows.
        row: (case, probe) -> its row.
        tested: case -> what its probes said of the test images.
        headlines: the answer in sentences, for the terminal too; the section of the summary writes them.
        notes: what was left out, extended by sections.
        lacking: figures without data, and what would make them.
        pictures: every figure that was drawn, in order.

    Raises:
        RequestError: two rows that claim one place.
    """

    def __init__(self, rows: Sequence[Row], folders: dict[str, Path], options: ReportOptions) -> None:
        self.rows, self.options = list(rows), options
        self.scores = scores_of_rows(rows)
        self.table = table_of(self.scores)
        self.cases = self.table.cases
        self.row = {(Case(row["backbone"], row["dataset"], row["protocol"]["seed"]), row["probe"]): row for row in rows}
        self._of_case: dict[Case, dict[str, Row]] = {}
        for (case, probe), row in self.row.items():
            self._of_case.setdefault(case, {})[probe] = row
        self.headlines: list[str] = []
        self.notes: list[str] = []
        self.lacking: list[str] = []
        self.pictures: list[Picture] = []
        self._folders = folders
        self.tested: dict[Case, Tested] = {}
        ids_of: dict[str, NDArray[np.str_]] = {}  # of a data set: every model has the same, which take memory once
        for case in self.cases:
            finished = {
                name: folders[row["key"]] for name, row in self.of_case(case).items() if row["test"] is not None
            }
            keep = sum(bool(one.hits) for one in self.tested.values()) < NUM_SHOWN
            tested = read_tested(case, finished, self.notes, keep_answers=keep)
            if np.array_equal(ids_of.setdefault(case.dataset, tested.sample_ids), tested.sample_ids):
                tested = replace(tested, sample_ids=ids_of[case.dataset])
            self.tested[case] = tested
        self.notes.extend(self._other_images())

    def of_case(self, case: Case) -> dict[str, Row]:
        """Probe -> row of one case."""
        return self._of_case[case]

    def words(self, case: Case) -> str:
        """A case in as few words as tell it from the others."""
        several = [len({getattr(one, name) for one in self.cases}) > 1 for name in ("model", "seed")]
        return ", ".join([case.dataset] + [case.model] * several[0] + [f"seed {case.seed}"] * several[1])

    def folder(self, case: Case, probe: str) -> Path:
        """Where the row keeps its probe and predictions."""
        return self._folders[self.row[case, probe]["key"]]

    @cached_property
    def main(self) -> Table:
        """The table without probes on a given level, which have a figure of their own; all of it if there are no others."""
        kept = [probe for probe in self.table.probes if not GIVEN_LEVEL.fullmatch(probe)]
        return self.table.only(kept) if kept else self.table

    @cached_property
    def findings(self) -> list[Finding]:
        """Who wins each case."""
        return find([score for score in self.scores if score.probe in self.main.probes], self.tested)

    @cached_property
    def dataset_table(self) -> DatasetTable:
        """Means by data set, with marks by test and warnings of repeated images."""
        by_dataset = {case.dataset: case for case in self.cases}
        alone = len(by_dataset) == len(self.cases)  # one model, one seed: McNemar can decide

        def compare(dataset: str, best: str, other: str) -> float:
            return self.tested[by_dataset[dataset]].mcnemar(best, other)

        warnings = {dataset: one.warning for dataset, one in self.repeated.items()}
        means = self.main.mean_over("model", "seed")
        shown = [probe for probe in means.probes if np.isfinite(means.column(probe)).any()]
        return dataset_table(self.main, shown, compare=compare if alone else None, warnings=warnings)

    @cached_property
    def repeated(self) -> dict[str, Repeated]:
        """Data set -> its test images that are training images; without data sets whose stores are not there."""
        found = {}
        for dataset in dict.fromkeys(case.dataset for case in self.cases):
            cases = [case for case in self.cases if case.dataset == dataset]
            for case in cases:
                train, test = self.store(case, "train"), self.store(case, "test")
                if train is None or test is None:
                    continue
                # another model may have been given other images under the same name
                alike = [one for one in cases if self._manifests(one) == self._manifests(case)]
                try:
                    found[dataset] = find_repeated(train, test, {one: self.tested[one] for one in alike})
                except CacheError as error:
                    self.notes.append(f"Images of {dataset} in both splits were not looked for: {error}")
                break
        return found

    def about(self, case: Case, probe: str) -> dict[str, Any]:
        """What a row keeps of how it was made (`config` of probe.json); {} where that is gone."""
        try:
            saved = json.loads((self.folder(case, probe) / "probe.json").read_text(encoding="utf-8"))
            config: dict[str, Any] = saved["config"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return config

    def about_case(self, case: Case) -> dict[str, Any]:
        """The same of the first probe of a case that has it: data, classes and stores are common to all."""
        return next((found for probe in self.of_case(case) if (found := self.about(case, probe))), {})

    def class_names(self, case: Case, num_classes: int) -> list[str]:
        """Of one case; numbers where the names are gone."""
        names = self.about_case(case).get("class_names", [])
        return [str(names[label]) if label < len(names) else str(label) for label in range(num_classes)]

    def store(self, case: Case, split: str) -> Path | None:
        """The store of a case's `train` or `test` split under the folder of stores, None if it is not there whole."""
        return next(
            (self._stores.get(row.get(f"{split}_fingerprint", "")) for row in self.of_case(case).values()), None
        )

    def draw(self, name: str, draw: Callable[[Path], object], *, alt: str, caption: str) -> Picture:
        """Draw a figure and keep it.

        Args:
            name: of its files, without a suffix.
            draw: writes STEM.svg, STEM.png and STEM.csv, the second only if it was wished.
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

    def lack(self, what: str, how: str) -> None:
        """Say what is not on the page, and the command that would make it."""
        self.lacking.append(f"{what}: {how}")

    @cached_property
    def complete(self) -> list[str]:
        """Probes of the main table that have a result in every case: only their means and ranks compare."""
        return [probe for probe in self.main.probes if np.isfinite(self.main.column(probe)).all()]

    @cached_property
    def _stores(self) -> dict[str, Path]:
        """Fingerprint -> store, of all rows."""
        wanted = {row.get(f"{split}_fingerprint", "") for row in self.rows for split in ("train", "test")} - {""}
        found = {}
        for path in sorted(self.options.cache_root.glob("*/*/*.zarr")):
            if any(path.stem.endswith(f"-{fingerprint[:8]}") for fingerprint in wanted):
                try:
                    found[TokenCache.open(path, num_views=0).spec.fingerprint] = path
                except CacheError as error:
                    self.notes.append(f"A store was not read: {error}")
        return found

    def _other_images(self) -> Iterator[str]:
        """Of data sets whose name stood for other images when, or where, another model was extracted."""
        given: dict[str, dict[tuple[str, ...], list[str]]] = {}  # data set -> manifests -> models
        for case in self.cases:
            digests = tuple(self._manifests(case))
            if case.model not in digests:
                given.setdefault(case.dataset, {}).setdefault(digests, []).append(case.model)
        for dataset, models in given.items():
            if len(models) > 1:
                told = "; ".join(", ".join(dict.fromkeys(names)) for names in models.values())
                yield (
                    f"{dataset} is not the same images for all models (the same for: {told}): probes of one model compare, models "
                    "do not. Extract it anew for all of them from one copy of the images."
                )

    def _manifests(self, case: Case) -> list[str]:
        """Digests of the images of both splits; the model's name where they are gone, so that it is like no other's."""
        about = self.about_case(case)
        return [about.get(name, {}).get("manifest", case.model) for name in ("cache", "test_cache")]
