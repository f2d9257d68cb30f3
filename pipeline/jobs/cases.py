"""The cases of a job: what is predicted, which images train, choose settings and test. Each has rows of results of its own.

A job without targets, subsets and folds has one case: the labels of the data set, and its two splits. Nothing here reads an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerbank.probes import TASKS

from ..data.classes import labels_by_name, match_classes, require_groups_apart
from ..data.image_source import ImageSource
from ..data.patterns import no_such_split, read_text
from ..data.sources import open_source
from ..data.splits.parts import Part, part_of
from ..data.splits.split_record import SplitRecord
from ..data.splits.subsets import draw_order, first_of_each, fold_of_each
from ..data.table import Table, is_missing
from ..data.tables.class_column import classes_of
from ..data.tables.join import ABSENT, join_rows, open_table
from ..data.tables.split_column import WHOLE
from ..data.task_of_values import set_task
from ..errors import RequestError
from ..events import OnEvent, ignore
from ..probing.rows.results import key_of
from ..quantities import few
from .job import TrainingJob

DIVISION = {
    "labels": "--labels",
    "targets": "--target",
    "allow_missing": "--allow-missing",
    "group": "--group",
    "split_column": "--split-column",
    "val_split": "--val-split",
    "train_rows": "--train-rows",
    "test_rows": "--test-rows",
    "shots": "--shots",
    "train_fractions": "--train-fraction",
    "draws": "--draws",
    "folds": "--folds",
}
"""Fields of a job that say what is predicted and how images are divided, and their options."""

MOST_VALIDATION_SHOTS = 4
"""Images of a class that the settings of a few-shot probe are chosen by, as is usual in papers (CoOp)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """Which of several drawn subsets or folds of a case this is.

    Attributes:
        name: what all of them have in common, such as `5 shots`, `10 %` or `5 folds`.
        number: of the draw or fold, from 0.
        train, test: the parts that they are drawn from.
    """

    name: str
    number: int
    train: Part
    test: Part

    def key_value(self, known: Sequence[SplitRecord]) -> dict[str, Any]:
        """The field `part` of a row's key: name, number and the digest of the images that it is drawn from."""
        records = [part.record(known) for part in (self.train, self.test)]
        of = key_of({"parts": [[one.images.digest, one.targets_digest, *_divided_by(one)] for one in records]})
        return {"name": self.name, "number": self.number, "of": of}


def _divided_by(record: SplitRecord) -> list[str]:
    """Digests of groups and of the images that settings are chosen by, where there are any."""
    arrays = [one for one in (record.groups, record.is_validation) if one is not None]
    return [hashlib.sha256(one.tobytes()).hexdigest() for one in arrays]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One training and one test part.

    Attributes:
        target: name of the column that is predicted; None for the labels of the data set.
        subset: None where all images are trained on.
        train, test: the parts. The training part has the images that settings are chosen by, too, where they are given.
    """

    target: str | None
    subset: Subset | None
    train: Part
    test: Part


@dataclass(frozen=True, kw_only=True, eq=False)
class Cases:
    """All cases of a job, and the sources of their images."""

    sources: tuple[ImageSource, ...]
    cases: tuple[Case, ...]


def check_cases(job: TrainingJob) -> None:
    """Refuse options that contradict each other, before data are opened.

    Raises:
        RequestError: names them.
    """
    subsets = {"--shots": bool(job.shots), "--train-fraction": bool(job.train_fractions)}
    others = {**subsets, "--val-split": job.val_split is not None, "--test-rows": job.test_rows is not None}
    for option, is_given in others.items():
        if job.folds is not None and is_given:
            raise RequestError("data.options_exclude_each_other", first="--folds", second=option)
    if job.draws > 1 and not any(subsets.values()):
        raise RequestError("data.option_needs_another", option="--draws", needed="--shots or --train-fraction")
    if 0.0 in job.train_fractions:
        raise RequestError("data.bad_fraction_list", text="0%")
    if job.val_split is not None and job.val_split in (job.train_split, job.test_split):
        option = "--train-split" if job.val_split == job.train_split else "--test-split"
        raise RequestError("data.same_split_twice", option=option, split=job.val_split)


def open_cases(job: TrainingJob, data: str, on_event: OnEvent = ignore) -> Cases:
    """Open the data of a job, and divide its images.

    Args:
        job: what to predict, and how to divide.
        data: URI.
        on_event: called with the progress of copying, and with classes that only one of two parts has.

    Raises:
        RequestError: no such data, columns or splits, ids that do not match, targets that are missing, or a division that cannot
            be made.
    """
    check_cases(job)
    names = [job.train_split] if job.folds is not None else [job.train_split, job.test_split]
    names += [] if job.val_split is None else [job.val_split]
    opened = [WHOLE] if job.split_column is not None else list(dict.fromkeys(names))
    sources = tuple(open_source(data, split, on_event, pixels=job.pixels) for split in opened)
    columns = _Columns(job, data, sources)
    parts = [columns.part(name, 0 if job.split_column is not None else opened.index(name)) for name in names]
    parts = _chosen_rows(job, parts)
    if len(parts) > 2:
        require_groups_apart(parts[1], parts[2])
    cases: list[Case] = []
    for target in job.targets or (None,):
        asked = [replace(part) if target is None else columns.ask(part, target) for part in parts]
        set_task(asked[0], job.task)
        for other in asked[1:]:  # few values of another split may look like another task
            set_task(other, asked[0].task)
        for other in asked[1:]:
            match_classes(asked[0], other, on_event)
        cases += _cases_of(job, target, asked)
    return Cases(sources=sources, cases=tuple(cases))


class _Columns:
    """The columns of the images of some sources, of a table that is joined to them or of their own."""

    def __init__(self, job: TrainingJob, data: str, sources: Sequence[ImageSource]) -> None:
        self.job, self.data, self.sources = job, data, sources
        self.joined: Table | None = None
        self.rows = [np.arange(len(source)) for source in sources]
        if job.labels is not None:
            self.joined = open_table(job.labels)
            self.rows = join_rows(self.joined, sources, allow_missing=job.allow_missing)

    def table(self, source: int, option: str) -> Table:
        table = self.joined or self.sources[source].table
        if table is None:
            raise RequestError("data.no_table_of_data", option=option, data=self.data)
        return table

    def part(self, name: str, source: int) -> Part:
        """The images of a split, those that the table lists, with their groups."""
        job, part = self.job, part_of(self.sources[source], source)
        if job.split_column is not None:
            column = self.table(source, "--split-column").column(job.split_column)
            values = [
                "" if row == ABSENT or is_missing(column[row]) else str(column[row])
                for row in self.rows[source].tolist()
            ]
            is_here = np.array([value == name for value in values], dtype=bool)
            if not is_here.any():
                splits = sorted(set(values) - {""})
                raise no_such_split(self.data, name, f"rows with {name} in column {job.split_column}", splits)
            part = part.take(is_here, name)
        part = part.take(self.rows[source][part.rows] != ABSENT)
        if not len(part):
            raise RequestError("data.no_images_left", data=f"{part.name}/{part.split}", reason="the table lists")
        if job.group is not None:
            values = self.values(part, job.group, "--group")
            names = self.table(source, "--group").place
            groups = Table(names, {job.group: values}, len(values)).groups(job.group)
            part = replace(part, groups=groups)
        return part

    def values(self, part: Part, column: str, option: str) -> list[Any]:
        """The values [N] of a column, of the images of a part."""
        found: list[Any] = []
        for source, row in zip(part.sources.tolist(), part.rows.tolist(), strict=True):
            found.append((source, int(self.rows[source][row])))
        values = {number: self.table(number, option).column(column) for number in set(part.sources.tolist())}
        return [values[source][row] for source, row in found]

    def ask(self, part: Part, target: str) -> Part:
        """The same images with another target; those without a value are left out if that is allowed."""
        values = self.values(part, target, "--target")
        is_there = np.array([not is_missing(value) for value in values], dtype=bool)
        place = f"{self.table(int(part.sources[0]), '--target').place}, column {target}" if len(part) else target
        if not is_there.all() and not self.job.allow_missing:
            first = part.ids[int(np.flatnonzero(~is_there)[0])]
            counts = {"missing": int((~is_there).sum()), "count": len(part)}
            raise RequestError("data.missing_targets", place=place, first=first, **counts)
        if not is_there.any():
            raise RequestError("data.no_images_left", data=f"{part.name}/{part.split}", reason=f"have a {target}")
        chosen = part.take(is_there)
        labels, class_names = classes_of([values[place] for place in np.flatnonzero(is_there)], chosen.ids, place)
        return replace(chosen, labels=labels, class_names=class_names)


def _chosen_rows(job: TrainingJob, parts: list[Part]) -> list[Part]:
    """The images that files of ids choose: of the first part those to train on, of the second those to test on."""
    files = ((job.train_rows, "--train-rows"), (job.test_rows, "--test-rows"))
    for number, (file, option) in enumerate(files):
        if file is not None:
            parts[number] = _take_ids(parts[number], file, option)
    if job.train_rows is not None and job.test_rows is not None:
        train, test = parts[:2]
        places = [{*zip(one.sources.tolist(), one.rows.tolist(), strict=True)} for one in (train, test)]
        if both := places[0] & places[1]:
            first = next(
                id for id, *place in zip(train.ids, train.sources, train.rows, strict=True) if (*place,) in both
            )
            raise RequestError("data.rows_on_both_sides", count=len(both), first=first)
    return parts


def _take_ids(part: Part, file: Path, option: str) -> Part:
    wanted = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    reason = "" if wanted else "no id"
    if unknown := sorted(set(wanted) - set(part.ids)):
        reason = f"{len(unknown):,} that it does not have: {few(unknown, 3)}"
    if len(set(wanted)) < len(wanted):
        reason = f"{len(wanted) - len(set(wanted)):,} repeated ids"
    if reason:
        raise RequestError("data.bad_row_file", option=option, file=file, split=part.split, reason=reason)
    chosen = set(wanted)
    return part.take(np.array([id in chosen for id in part.ids], dtype=bool))


def _cases_of(job: TrainingJob, target: str | None, parts: Sequence[Part]) -> Iterator[Case]:
    """The cases of one target: all images, or every subset or fold."""
    train = parts[0]
    if job.folds is not None:
        for number, (rest, tested) in enumerate(_folds(train, job.folds)):
            subset = Subset(name=f"{job.folds} folds", number=number, train=train, test=train)
            yield Case(target=target, subset=subset, train=rest, test=tested)
        return
    test, validation = parts[1], parts[2] if len(parts) > 2 else None
    whole = train if validation is None else train.with_validation(validation)
    if not (job.shots or job.train_fractions):
        yield Case(target=target, subset=None, train=whole, test=test)
    for draw in range(job.draws):
        for name, drawn in _drawn(job, train, validation, draw):
            subset = Subset(name=name, number=draw, train=whole, test=test)
            yield Case(target=target, subset=subset, train=drawn, test=test)


def _drawn(job: TrainingJob, train: Part, validation: Part | None, draw: int) -> Iterator[tuple[str, Part]]:
    """Names and training parts of the subsets of a draw."""
    if not (job.shots or job.train_fractions):
        return
    strata = _strata_of(train)
    order = draw_order(train.ids, draw, train.groups)
    counts = np.bincount(strata[strata >= 0])
    order = order[strata[order] >= 0]
    for shots in job.shots:
        if few_of := [_name_of(train, one) for one in np.flatnonzero((counts > 0) & (counts < shots)).tolist()]:
            raise RequestError("data.too_few_for_shots", shots=shots, names=few(few_of))
        chosen = first_of_each(strata, order, np.minimum(counts, shots))
        drawn = train.take(chosen)
        if validation is None:
            drawn = drawn.with_validation(train.take(_validation_shots(train, strata, order, chosen, shots)))
        else:
            drawn = drawn.with_validation(validation)
        yield f"{shots} shot{'s' if shots > 1 else ''}", drawn
    for fraction in job.train_fractions:
        wanted = np.where(counts > 0, np.maximum(np.round(fraction * counts), 1), 0).astype(np.int64)
        drawn = train.take(first_of_each(strata, order, wanted))
        if validation is not None:
            drawn = drawn.with_validation(validation)
        elif wanted.max() < 2:
            values = {"fraction": f"{100 * fraction:g} %", "count": len(train), "num_classes": int((counts > 0).sum())}
            raise RequestError("data.too_small_fraction", **values)
        yield f"{100 * fraction:g} %", drawn


def _validation_shots(
    train: Part, strata: NDArray[np.int64], order: NDArray[np.int64], chosen: NDArray[np.int64], shots: int
) -> NDArray[np.int64]:
    """Images that are not trained on, as many of each class, at most 4, to choose settings by; of other groups."""
    is_left = np.ones(len(train), dtype=bool)
    is_left[chosen] = False
    if train.groups is not None:
        is_left &= ~np.isin(train.groups, train.groups[chosen])
    left = order[is_left[order]]
    if not len(left):
        raise RequestError(
            "data.no_images_left", data="--shots", reason="settings could be chosen by; give --val-split"
        )
    wanted = np.full(int(strata.max()) + 1, min(shots, MOST_VALIDATION_SHOTS))
    return first_of_each(strata, left, wanted)


def _folds(part: Part, num_folds: int) -> Iterator[tuple[Part, Part]]:
    """The training and the test part of each fold."""
    labels_by_name(part, part)  # there are labels, of several classes
    part = part.take(_strata_of(part) >= 0)
    strata = _strata_of(part)
    groups = part.groups
    names = np.arange(len(part)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if (count := len(np.unique(names))) < num_folds:
        kind = "images" if groups is None else "groups"
        raise RequestError("data.too_many_folds", folds=num_folds, count=count, kind=kind)
    in_groups = [len(np.unique(names[strata == one])) for one in range(int(strata.max()) + 1)]
    if alone := [_name_of(part, one) for one, number in enumerate(in_groups) if number == 1]:
        raise RequestError("data.class_in_one_group", names=few(alone))
    folds = fold_of_each(strata, num_folds, draw_order(part.ids, 0, groups), groups)
    for number in range(num_folds):
        train, test = part.take(folds != number), part.take(folds == number)
        labels_by_name(train, test)  # each class of the test images is among those that train
        yield train, test


def _strata_of(part: Part) -> NDArray[np.int64]:
    """What subsets and folds have equal shares of, [N] from 0, such as classes; NO_LABEL for images without a label."""
    task = TASKS.require(part.task).for_data(len(part.class_names), part.labels.shape[1] if part.labels.ndim > 1 else 0)
    found: NDArray[np.int64] = task.strata(torch.from_numpy(part.labels)).numpy()
    return found


def _name_of(part: Part, stratum: int) -> str:
    if not part.class_names:
        return f"part {stratum}"
    return part.class_names[stratum] if stratum < len(part.class_names) else "images without a label"
