"""Stage two: train the requested probes from two stores and keep the results.

Probes that can share passes over the tokens are trained together (`probe_groups.py`). `layerbank.probes.run_sweeps` implements
the protocol: split, grid, choice on validation, refit, one test. Each probe leaves a folder and one row (`row_folder.py`). The
test store is opened by the sweep in its last step. A row that results.jsonl has under the same key is not computed again while
its files are as they were written, one that another process trains is awaited (`row_locks.py`), and an interrupted sweep continues
with the missing banks (`sweep_journal.py`). Neither the key
nor the result of a probe depends on the probes it is trained with, so a group that fails because of one probe is repeated probe by
probe (`failing.py`). Post-hoc probes (`post_hoc.py`) come last, after their base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerbank.cache import DamagedStoreError, verify_store
from layerbank.probes import HEADS, DataError, TrainingProtocol, num_moved, resolve_compute, run_sweeps

from ..data.task_names import MULTICLASS
from ..errors import RequestError, WorkError
from ..events import CopiesTogether, OnEvent, ProbeAwaited, ProbeFinished, ResultSkipped, ignore
from ..memory import memory_for_probes
from .failing import CAUGHT, Fail, Failures
from .post_hoc import train_post_hoc
from .probe_groups import ProbeGroup, make_group, plan_groups
from .probe_spec import ProbeSpec
from .row_folder import keep_probe
from .rows.result_key import ResultKey, data_of, split_rule, task_in_keys
from .rows.results import Row
from .rows.results_file import RESULTS, append_row, is_reusable, read_results
from .rows.row_files import row_folder, wrong_file
from .rows.row_locks import RowLocks
from .sweep_journal import SweepJournal, clear_finished
from .tokens.split_tokens import SplitRequest, SplitTokens
from .tokens.streaming import StreamedTokens
from .training import Trained, large_blocks_returned, open_tokens, open_training, relay, solve_probe, trained_of


def run_folder(runs_root: Path, train: SplitRequest) -> Path:
    """The folder of all results of a model and a data set: RUNS/<data set>/<model>-<first 8 of its digest>."""
    return runs_root / train.record.dataset / train.model.folder("").name


def check_train_views(train_views: int | None, num_views: int) -> None:
    """Raise RequestError where more views are to be trained on than there are."""
    if train_views is not None and train_views > num_views:
        if not num_views:
            raise RequestError("probing.no_views", train_views=train_views)
        raise RequestError("probing.too_few_views", train_views=train_views, num_views=num_views)


def check_one_model(train: SplitRequest, test: SplitRequest) -> None:
    """Raise RequestError unless both splits are of one model in one precision, of one tap and of one task."""
    different = [one.field for one in train.model.difference(test.model)]
    both = [{name: getattr(one.model, name) for name in different} for one in (train, test)]
    if train.tap != test.tap:
        both = [values | {"tap": one.tap} for values, one in zip(both, (train, test), strict=True)]
    if both[0]:
        of_train, of_test = (", ".join(f"{name} = {value}" for name, value in values.items()) for values in both)
        names = {"train": train.name, "test": test.name}
        raise RequestError("probing.different_models", **names, train_model=of_train, test_model=of_test)
    if train.record.task != test.record.task:
        tasks = {"train_task": train.record.task, "test_task": test.record.task}
        raise RequestError("probing.different_tasks", train=train.name, test=test.name, **tasks)


def verify_tokens(splits: Sequence[SplitRequest]) -> None:
    """Read the token arrays that are about to be used, and all that belongs to their stores, against the checksums.

    Raises:
        MissingRowsError: some images have no tokens.
        DamagedStoreError: a file is not as it was written; names the rows of each level and kind.
    """
    for store in dict.fromkeys(store for split in splits for store in split.open().stores):
        damages = verify_store(store, only=splits[0].arrays)
        if damages:
            shown = "; ".join(map(str, damages[:3])) + (f" and {len(damages) - 3} more" if len(damages) > 3 else "")
            raise DamagedStoreError("probing.damaged_store", store=store, damages=shown)


def probe(
    train: SplitRequest,
    test: SplitRequest,
    named_probes: Sequence[ProbeSpec],
    protocol: TrainingProtocol,
    folder: Path,
    *,
    target: str | None = None,
    part: Mapping[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    retrain: bool = False,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    before_training: Callable[[], object] = lambda: None,
    fail: Fail | None = None,
    on_event: OnEvent = ignore,
) -> list[Row]:
    """Train probes and return their rows, in the given order.

    Args:
        train, test: the two splits, of the same model.
        named_probes: what to train.
        protocol: grid, schedule, seed.
        folder: where results.jsonl goes, and one folder per row.
        target: name of the column that is predicted; None for the labels of the data set.
        part: which of several drawn subsets or folds this is, for the keys; None if it is none.
        config: what is needed to run the backbone again, kept with every saved probe.
        retrain: compute rows again even if they are there.
        memory_bytes: what this may take of the host's memory beside what the program has already; None is 80 % of what is free.
        device: where probes are trained.
        before_training: called if there is anything to train: the check of the stored tokens, which takes long.
        fail: called with a probe that cannot be trained, which then has no row, while the others go on; None raises its error.
        on_event: called with what happens.

    Raises:
        RequestError: the two splits are of different models or tasks, or a probe cannot answer the task.
        CacheError: some images have no tokens, or a store is damaged.
        DataError: targets that the task cannot use.
        SettingError: not even one probe at a time fits into the memory, or the device cannot compute as the protocol says.
        WorkError: results.jsonl cannot be read, or none of the test images.
    """
    check_one_model(train, test)
    protocol = replace(protocol, compute=resolve_compute(protocol.compute, device))
    memory_bytes = memory_for_probes(None) if memory_bytes is None else memory_bytes
    run = _Run(train, test, protocol, folder, target, part, config or {}, fail, on_event)
    missing = run.find_missing(named_probes, retrain=retrain)
    if missing:
        before_training()
    while missing:
        with RowLocks(folder) as locks:
            claimed = run.claim(missing, locks)
            run.train_all([named for named in claimed if not run.reuse(named)], memory_bytes, torch.device(device))
        missing = [named for named in missing if named not in claimed]
    return [run.rows[run.key(named)] for named in named_probes if named not in run.failures]


class _Run:
    """One call of `probe`.

    Attributes:
        cache: the tokens of the training split.
        rows: those of results.jsonl that may be reused, by key; a probe that is finished adds its own.
        failures: probes that have failed.
    """

    def __init__(
        self,
        train: SplitRequest,
        test: SplitRequest,
        protocol: TrainingProtocol,
        folder: Path,
        target: str | None,
        part: Mapping[str, Any] | None,
        config: dict[str, Any],
        fail: Fail | None,
        on_event: OnEvent,
    ) -> None:
        self._train, self._test, self._protocol, self._folder = train, test, protocol, folder
        self._config, self._on_event = config, on_event
        self.cache = train.open()
        self._opened_test: SplitTokens | None = None
        self._are_saved = False
        self._keys: dict[str, tuple[ProbeSpec, str]] = {}  # by the name of the probe
        if not len(self.open_test().images):
            raise WorkError("probing.no_test_images", data=test.name, num_images=len(test.record))
        self.failures = Failures(fail)
        for split in (self.cache, self.open_test()):
            split.task.check(targets := torch.from_numpy(split.targets))
            split.task.check_scored(targets)
        self._of_study = ResultKey(
            data=data_of(self.cache, self.open_test()),  # which test images have tokens, not what they are
            train_views=train.num_views,
            protocol=protocol,
            task=task_in_keys(self.cache.task.type),
            metric=self.cache.task.metric,
            class_weights=getattr(self.cache.task, "weighting", "balanced"),
            split=split_rule(self.cache),
            target=target,
            part=part,
        )
        self.rows: dict[str, Row] = {}
        self._stale: set[str] = set()  # digests of rows that are damaged or to be trained again
        self._to_train: set[str] = set()  # keys
        for error in self._read_rows():
            self._report_skipped(error)

    def _read_rows(self) -> Sequence[WorkError]:
        """Read results.jsonl; return why lines were skipped."""
        results = read_results(self._folder / RESULTS)
        last = {row["key"]: row for row in results.rows if is_reusable(row)}
        self.rows = {key: row for key, row in last.items() if row["digest"] not in self._stale}
        return results.skipped

    def result_key(self, named: ProbeSpec) -> ResultKey:
        """Everything that decides a probe's row."""
        # solved heads compute in float64 by any protocol
        protocol = replace(self._protocol, compute="float32") if HEADS[named.head].is_solved else self._protocol
        return replace(self._of_study, protocol=protocol, probe=named)

    def key(self, named: ProbeSpec) -> str:
        """The key of a probe's row."""
        known = self._keys.get(named.name)
        if known is None or known[0] != named:
            known = self._keys[named.name] = named, self.result_key(named).digest
        return known[1]

    def protocol_of(self, named: ProbeSpec) -> TrainingProtocol:
        """The protocol with what a probe changes of it."""
        return replace(self._protocol, **named.protocol)  # type: ignore[arg-type]  # checked by TrainingProtocol

    def open_test(self) -> SplitTokens:
        """The tokens of the test split, the centre view of each image alone; searched for once."""
        if self._opened_test is None:
            self._opened_test = self._test.with_views(0).open()
        return self._opened_test

    @cached_property
    def _records(self) -> dict[str, str]:
        """Names of the records of both splits."""
        return {"train": self._train.record.file_name, "test": self._test.record.file_name}

    def _save_records(self) -> None:
        """Write the records of both splits beside the rows, once in a run."""
        if not self._are_saved:
            for split in (self._train, self._test):
                split.record.save(self._folder)
            self._are_saved = True

    def find_missing(self, probes: Sequence[ProbeSpec], *, retrain: bool) -> list[ProbeSpec]:
        """Probes to train, each once, the base of a post-hoc probe before it; rows that are there are reported as reused.

        If there are any, the copies among their training images are reported.
        """
        missing: dict[str, ProbeSpec] = {}  # by key
        for named in probes:
            with self.failures.of(named):
                self._check_arrays(named)
                self._check_task(named)
        if retrain:
            for key in map(self.key, probes):
                self._drop_row(key)
        for named in probes:
            key = self.key(named)
            if named in self.failures or self.reuse(named):
                continue
            if named.derived is not None and not self._has_row(base_key := self.key(named.derived.base)):
                missing.setdefault(base_key, named.derived.base)
            missing.setdefault(key, named)
        self._to_train = set(missing)
        self.clear_journal()  # a run may have been killed just after its last row
        if missing:
            self._report_copies()
        return list(missing.values())

    def _check_arrays(self, named: ProbeSpec) -> None:
        """Raise RequestError if a probe reads tokens that the splits were not opened with."""
        missing = ["/".join(array) for array in named.arrays if array not in self._train.arrays]
        if missing:
            raise RequestError(
                "probing.missing_arrays",
                probe=named.name,
                data=self._train.name,
                arrays=", ".join(missing),
                num_arrays=len(self._train.arrays),
                kinds=",".join(dict.fromkeys(kind for _, kind in named.arrays)),
            )

    def _check_task(self, named: ProbeSpec) -> None:
        """Raise RequestError if a probe cannot answer the task of the splits."""
        task, head = self.cache.task.type, HEADS[named.head]
        tasks, reason = head.tasks, head.tasks_reason
        if named.derived is not None:
            tasks, reason = (MULTICLASS,), "it is made of hits and misses, or of class probabilities"
        if tasks is not None and task not in tasks:
            values = {"tasks": ", ".join(tasks), "reason": reason and f": {reason}", "task": task}
            raise RequestError("probing.probe_not_for_task", probe=named.name, **values)

    def reuse(self, named: ProbeSpec) -> bool:
        """Take the row of a probe from results.jsonl, if it is there, and report it; restore the records that it refers to."""
        key = self.key(named)
        if not self._has_row(key):
            return False
        if self.rows[key].get("images") == self._records:
            self._save_records()
        self._to_train.discard(key)
        self._on_event(ProbeFinished(probe=named.name, row=self.rows[key], reused=True))
        return True

    def claim(self, missing: Sequence[ProbeSpec], locks: RowLocks) -> list[ProbeSpec]:
        """Lock the rows that no other process trains, or, if it trains all, wait for the first; then read what others wrote.

        A post-hoc probe is left to the next call while another process trains its base.
        """
        claimed: list[ProbeSpec] = []
        others = set(map(self.key, missing))
        for named in missing:
            has_base = named.derived is None or self.key(named.derived.base) not in others
            if has_base and locks.take(self.key(named)):
                claimed.append(named)
                others.remove(self.key(named))
        if not claimed:
            first = self.key(missing[0])
            self._on_event(ProbeAwaited(probe=missing[0].name, owner=str(locks.owner(first) or "another process")))
            locks.take(first, wait=True)
            claimed.append(missing[0])
        self._read_rows()
        return claimed

    def _has_row(self, key: str) -> bool:
        """Whether there is a row of this key whose files are as they were written; one whose are not is dropped."""
        if key not in self.rows:
            return False
        place = row_folder(self._folder, self.rows[key])
        if reason := wrong_file(place, self.rows[key]["files"]):
            self._drop_row(key)
            self._report_skipped(WorkError("probing.damaged_row_files", folder=place, reason=reason))
        return key in self.rows

    def _drop_row(self, key: str) -> None:
        if key in self.rows:
            self._stale.add(self.rows.pop(key)["digest"])

    def _report_skipped(self, error: WorkError) -> None:
        self._on_event(ResultSkipped(where=error.where, expected=error.expected, got=error.got, todo=error.todo))

    def _report_copies(self) -> None:
        """Report the training images that the validation split keeps together."""
        cache, protocol = self.cache, self._protocol
        if (
            cache.groups is None or cache.record.groups is not None or cache.is_validation is not None
        ):  # whoever names groups expects them to be kept together
            return
        centre = np.unique(cache.images, return_index=True)[1]
        groups = torch.from_numpy(cache.groups[centre])
        with suppress(DataError):  # nothing to hold out: every probe raises it
            strata = cache.task.strata(torch.from_numpy(cache.targets[centre]))
            self._on_event(
                CopiesTogether(
                    dataset=cache.record.dataset,
                    split=cache.record.split,
                    num_images=int((groups.bincount()[groups] > 1).sum()),
                    num_moved=num_moved(strata, protocol.validation_fraction, protocol.seed, groups),
                )
            )

    def train_all(self, probes: Sequence[ProbeSpec], memory_bytes: int, device: torch.device) -> None:
        """Train probes, those that can share passes together, and keep what comes of them."""
        for named in (named for named in probes if HEADS[named.head].is_solved):
            with self.failures.of(named):
                self.keep(
                    solve_probe(
                        named, self.protocol_of(named), self.cache, self.open_test, memory_bytes, self._on_event
                    )
                )
        trained = [named for named in probes if not HEADS[named.head].is_solved and named.derived is None]
        wanted, num_test = [(named, self.protocol_of(named)) for named in trained], len(self.open_test().targets)
        refuse, alone = self.failures.add, list[ProbeGroup]()
        groups = iter(plan_groups(self.cache, wanted, memory_bytes, device, num_test=num_test, refuse=refuse))
        while (group := alone.pop(0) if alone else next(groups, None)) is not None:
            try:
                with large_blocks_returned(group.placement.spare_bytes):
                    opened, tokens = open_training(group, self._on_event)
                    results = run_sweeps(
                        opened.sweeps,
                        tokens,
                        partial(self._open_test_of, opened),
                        opened.protocol,
                        plan=opened.placement.plan,
                        device=opened.placement.device,
                        journal=self._journal(opened),
                        on_event=relay(opened.names, self._on_event, opened.cache.task.metric),
                    )
                    del tokens  # what is kept needs other memory
                    self._keep_all(trained_of(opened, results))
            except CAUGHT as error:
                if not self.failures.add_of_group(group.probes, error):  # any of several probes may be the cause
                    for named in group.probes:  # scores of finished banks are in the journal
                        with self.failures.of(named):
                            alone.append(
                                make_group(self.cache, [named], group.protocol, memory_bytes, device, num_test=num_test)
                            )
            if not alone:
                self.clear_journal()
        for named in (named for named in probes if named.derived is not None):
            with self.failures.of(named):
                self.train_post_hoc(named, memory_bytes, device)

    def _open_test_of(self, group: ProbeGroup) -> StreamedTokens:
        return open_tokens(self.open_test(), group)

    def _keep_all(self, results: Sequence[Trained]) -> None:
        for trained in results:
            with self.failures.of(trained.named):
                self.keep(trained)

    def train_post_hoc(self, named: ProbeSpec, memory_bytes: int, device: torch.device) -> None:
        """Make a post-hoc probe of its base, which has been trained."""
        assert named.derived is not None
        base = named.derived.base
        self.failures.check_base(named, base)
        group = make_group(self.cache, [base], self.protocol_of(named), memory_bytes, device)
        with large_blocks_returned(group.placement.spare_bytes):
            journal_of = partial(self._journal, search=named)
            self.keep(
                train_post_hoc(named, self.rows[self.key(base)], group, self.open_test, journal_of, self._on_event)
            )
        self.clear_journal()

    def keep(self, trained: Trained) -> None:
        """Write the folder and the row of a probe."""
        named = trained.named
        key = self.result_key(named)
        row: Row = {"key": key.digest, "setting_of_study": self._of_study.setting, "key_fields": key.fields()}
        row["probe"] = named.name
        if key.train_views:
            row["train_views"] = key.train_views
        folder = row_folder(self._folder, row)
        test = self.open_test()
        self._save_records()
        row["images"] = dict(self._records)
        row["stores"] = {"train": self.cache.store_names, "test": test.store_names}
        row |= keep_probe(trained, self.cache, test, folder, self._config | {"images": row["images"]})
        if named.derived is not None:  # its base had to be trained, too
            of_base = self.rows[self.key(named.derived.base)]["cost"]
            row["cost"] |= {name: row["cost"][name] + of_base[name] for name in ("trainings", "probe_steps")}
        row = append_row(self._folder / RESULTS, row)
        self.rows[row["key"]] = row
        self._to_train.discard(row["key"])
        self._on_event(ProbeFinished(probe=named.name, row=row, reused=False))

    def _journal(self, group: ProbeGroup, search: ProbeSpec | None = None) -> SweepJournal:
        """The journal of a group's sweeps, or of the search of a post-hoc probe by the group of its base."""
        decisive = replace(self._of_study, protocol=group.protocol).fields() | {"device": group.placement.device.type}
        # nothing is chosen on the test split
        decisive = {name: value for name, value in decisive.items() if not name.startswith("test_")}
        describe = group.describe_choice if search else group.describe
        rows = [self.key(named) for named in ([search] if search else group.probes)]
        return SweepJournal(self._folder / ".sweeps", decisive, describe, rows)

    def clear_journal(self) -> None:
        """Remove the files of sweeps all of whose rows are written."""
        clear_finished(self._folder / ".sweeps", self.rows.keys() - self._to_train)
