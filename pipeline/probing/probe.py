"""Stage two: train the requested probes from two stores and keep the results.

Probes that can share passes over the tokens are trained together (`probe_groups.py`). `layerbank.probes.run_sweeps` implements
the protocol: split, grid, choice on validation, refit, one test. Each probe leaves a folder and one row (`row_folder.py`). The
test store is opened by the sweep in its last step. A row that results.jsonl holds under the same key is not computed again, and an
interrupted sweep continues with the missing banks (`sweep_journal.py`). Neither the key nor the result of a probe depends on the
probes it is trained with, so a group that fails because of one probe is repeated probe by probe (`failing.py`). Probes derived
from a finished one (`derived.py`) come last, after their base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from layerbank.cache import CacheSpec, DamagedStoreError, TokenCache, verify_store
from layerbank.probes import HEADS, Candidate, TrainingProtocol, resolve_compute

from ..data.sources import ImageSource
from ..errors import RequestError
from ..events import OnEvent, ProbeFinished, ignore
from ..extraction.siblings import model_differences
from ..memory import memory_for_probes
from .derived import derive
from .failing import Fail, Failures
from .malloc_trim import KEPT_BYTES, large_blocks_returned
from .probe_groups import ProbeGroup, group_of_one, plan_groups
from .probe_spec import ProbeSpec
from .results import Row, append_row, key_of, read_rows
from .row_folder import keep_probe
from .sweep_journal import SweepJournal, clear_finished
from .tokens.token_source import require_arrays
from .training import Trained, solve_probe, train_group


class Store(NamedTuple):
    """Where a split's tokens lie, what they must be, and how many views of an image to use beside the centre one (None: all)."""

    path: Path
    spec: CacheSpec
    num_views: int | None = None

    def open(self) -> TokenCache:
        """The store, with the rows that are to be used."""
        return TokenCache.open(self.path, self.spec, num_views=self.num_views)


def run_folder(runs_root: Path, train: Store) -> Path:
    """The folder of everything learnt from a train store: RUNS/<data set>/<name of the store>."""
    return runs_root / train.spec.dataset / train.path.stem


def check_classes(train: ImageSource, test: ImageSource) -> None:
    """Raise RequestError unless the splits have labels, and both name the same classes in the same order."""
    if not train.class_names:
        raise RequestError(
            where=f"data {train.name}/{train.split}",
            expected="images with labels, to train probes on",
            got="images without",
            todo="Give labelled data: folder:DIR, wds:DIR or hdf5:FILE.",
        )
    if list(train.class_names) != list(test.class_names):
        raise RequestError(
            where=f"classes of {test.name}/{test.split}",
            expected=f"those of {train.name}/{train.split}, in order: {_few(train.class_names)}",
            got=_few(test.class_names),
            todo="Give both splits the same class folders or classnames.txt.",
        )


def check_train_views(train_views: int | None, num_views: int) -> None:
    """Raise RequestError where more views are to be trained on than there are."""
    if train_views is not None and train_views > num_views:
        raise RequestError(
            where="--train-views",
            expected=f"at most the {num_views} of --views"
            if num_views
            else "--views with a number, so that there are some",
            got=str(train_views),
            todo=f"Ask for them: --views {train_views}.",
        )


def check_one_model(train: Store, test: Store) -> None:
    """Raise RequestError unless both splits were computed by one model in one precision."""
    if different := model_differences(train.spec, test.spec):
        of_train, of_test = (
            ", ".join(f"{name} = {getattr(store.spec, name)}" for name in different) for store in (train, test)
        )
        raise RequestError(
            where=str(test.path),
            expected=f"tokens of the model that {train.path} was made with: {of_train}",
            got=of_test,
            todo="Extract both splits in one command, so that what is trained on and what is tested on come from one model.",
        )


def verify_arrays(stores: Sequence[Store], arrays: Sequence[tuple[str, str]]) -> None:
    """Read the token arrays that are about to be used, and all that belongs to every store, against their checksums.

    Raises:
        DamagedStoreError: a file is not as it was written; says which rows of which level and kind.
    """
    for path in (store.path for store in stores):
        damages = verify_store(path, only=arrays)
        if damages:
            raise DamagedStoreError(
                where=str(path),
                expected="every file as it was written",
                got="; ".join(map(str, damages[:3])) + (f" and {len(damages) - 3} more" if len(damages) > 3 else ""),
                todo=f"Mend it: layerbank cache repair {path} (only those rows are computed again).",
            )


def probe(
    train: Store,
    test: Store,
    named_probes: Sequence[ProbeSpec],
    protocol: TrainingProtocol,
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    retrain: bool = False,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    fail: Fail | None = None,
    on_event: OnEvent = ignore,
) -> list[Row]:
    """Train probes and return their rows, in the order asked for.

    Args:
        train, test: stores of the two splits, by the same backbone.
        named_probes: what to train.
        protocol: grid, schedule, seed.
        folder: where results.jsonl goes, and a folder a row.
        config: what is needed to run the backbone again, kept with every saved probe.
        retrain: compute rows again even if they are there.
        memory_bytes: what this may take of the host's memory beside what the program has already; None is 80 % of what is free.
        device: where probes are trained.
        fail: told of a probe that cannot be trained, which then has no row, while the others go on; None raises its error.
        emit: told what happens.

    Raises:
        RequestError: a store lacks a level or kind, or the two are of different models.
        CacheError: a store is incomplete, damaged, or holds something else.
        SettingError: not even one probe at a time fits into the memory, or the device cannot compute as the protocol says.
    """
    check_one_model(train, test)
    protocol = replace(protocol, compute=resolve_compute(protocol.compute, device))
    memory_bytes = memory_for_probes(None) if memory_bytes is None else memory_bytes
    device = torch.device(device)
    cache = train.open()
    setting = _setting(train, test, protocol)

    def key(named: ProbeSpec) -> str:
        # what is solved is float64 in any case
        decisive = replace(protocol, compute="float32") if HEADS[named.head].is_solved else protocol
        return key_of({**_setting(train, test, decisive), "probe": asdict(named)})

    failures = Failures(key, fail)
    for named in named_probes:
        with failures.of(named):
            require_arrays(list(cache.arrays), named, train.path)
    known = {row["key"]: row for row in read_rows(folder / "results.jsonl")}
    clear_finished(folder / ".sweeps", known.keys())  # a run may have been killed just after its last row
    wanted: list[ProbeSpec] = []
    for named in (one for one in named_probes if one not in failures):
        if key(named) in known and not retrain:
            on_event(ProbeFinished(probe=named.name, row=known[key(named)], reused=True))
        else:
            if named.derived is not None and key(named.derived.base) not in known:
                wanted.append(named.derived.base)  # it is made of a row
            wanted.append(named)

    def open_test() -> TokenCache:
        return test._replace(num_views=0).open()  # nothing is tested on a view

    def keep(trained: Trained) -> None:
        named = trained.named
        row: Row = {"key": key(named), "setting_of_study": key_of(setting), "probe": named.name}
        if cache.num_views:
            row["train_views"] = cache.num_views if train.num_views is None else train.num_views
        row |= keep_probe(trained, cache, test.spec, open_test, row_folder(folder, row), config or {})
        if named.derived is not None:  # what it is made of had to be trained, too
            of_base = known[key(named.derived.base)]["cost"]
            row["cost"] |= {name: row["cost"][name] + of_base[name] for name in ("trainings", "probe_steps")}
        known[row["key"]] = append_row(folder / "results.jsonl", row)
        clear_finished(folder / ".sweeps", known.keys())
        on_event(ProbeFinished(probe=named.name, row=known[row["key"]], reused=False))

    def make_journal(
        group: ProbeGroup, describe: Callable[[Candidate], dict[str, Any]], made: Sequence[ProbeSpec]
    ) -> SweepJournal:
        decisive = {**_setting(train, test, group.protocol), "device": device.type}
        del decisive["test"]  # nothing is chosen on it
        return SweepJournal(folder / ".sweeps", decisive, describe, [key(one) for one in made])

    def journal_of(group: ProbeGroup) -> SweepJournal:
        return make_journal(group, group.describe, group.probes)

    def journal_of_search(named: ProbeSpec, group: ProbeGroup) -> SweepJournal:
        return make_journal(group, group.describe_choice, [named])

    def train_together(group: ProbeGroup) -> None:
        with large_blocks_returned(when=_is_short(group)):
            for trained in train_group(group, open_test, device, journal_of, on_event):
                with failures.of(trained.named):
                    keep(trained)

    each = [(named, _changed(protocol, named)) for named in {key(one): one for one in wanted}.values()]
    for named, changed in each:
        if HEADS[named.head].is_solved:
            with failures.of(named):
                keep(solve_probe(named, changed, cache, open_test, on_event))
    to_train = [(named, of_one) for named, of_one in each if not HEADS[named.head].is_solved and not named.derived]
    for group in plan_groups(cache, to_train, memory_bytes, device, refuse=failures.add):
        if not failures.together(group.probes, partial(train_together, group)):
            for named in group.probes:  # what the banks of the others have scored is in the journal
                with failures.of(named):
                    train_together(group_of_one(cache, named, group.protocol, memory_bytes, device))
    for named, changed in each:
        if named.derived is not None:
            with failures.of(named):
                failures.check_base(named, named.derived.base)
                base = known[key(named.derived.base)]
                group = group_of_one(cache, named.derived.base, changed, memory_bytes, device)
                with large_blocks_returned(when=_is_short(group)):
                    keep(derive(named, base, group, open_test, device, partial(journal_of_search, named), on_event))
    return [known[key(named)] for named in named_probes if named not in failures]


def row_folder(folder: Path, row: Row) -> Path:
    """Where the probe, the predictions and the picture of a row lie: two settings of one probe never share it."""
    return folder / f"{row['probe']}-{row['key'][:8]}"


def _is_short(group: ProbeGroup) -> bool:
    """Whether what the C library may keep of dropped memory matters."""
    return group.placement.planned_bytes + KEPT_BYTES > group.placement.budget_bytes


def _changed(protocol: TrainingProtocol, named: ProbeSpec) -> TrainingProtocol:
    return replace(protocol, **named.protocol)  # type: ignore[arg-type]  # checked by TrainingProtocol


def _setting(train: Store, test: Store, protocol: TrainingProtocol) -> dict[str, Any]:
    """Everything but the probe that decides a result."""
    views = {} if train.num_views is None else {"train_views": train.num_views}
    return {"train": train.spec.fingerprint, "test": test.spec.fingerprint, "protocol": asdict(protocol)} | views


def _few(names: Sequence[str]) -> str:
    return f"{len(names)}: " + ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
