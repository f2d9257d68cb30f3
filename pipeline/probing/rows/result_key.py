"""The key of a result: every field that decides it, by name, and the table of values that a key leaves out.

A key is the digest of its fields. The decision taken here: a field is left out of the digest only if it has the value that
`KEY_TABLE` gives it. That value is frozen when the field is introduced: results were computed with it before there was the field.
So a new field, or another default of an old one, never changes the key of a saved row, and no two settings share a key.
`tests/test_result_key.py` pins the table and some digests.

Device, memory, number of workers and paths are in no key. The name of a probe is, as it was written: a row is reported under its
name, so `linear@final` and `linear-cls` have a row each, although they are the same probe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.task_names import MULTICLASS
from ..probe_spec import ProbeSpec, SmallestLevels
from .results import key_of, plain_values

if TYPE_CHECKING:
    from layerbank.probes import TrainingProtocol

    from ..tokens.split_tokens import SplitTokens

ALGORITHM = 1
"""Raised when a change of numerics changes results; the rows before are then computed again."""

SPLIT = "fraction of each class"
SPLIT_WITH_COPIES = "fraction of each class, copies together"
"""The rule of the split where training images have copies."""

SPLIT_WITH_GROUPS = "fraction of each class, groups and copies together: "
"""The rule of the split where training images are in groups; a digest of the groups follows."""

SPLIT_WITH_VALIDATION = "images of their own: "
"""The rule of the split where validation images are given; a digest of which images they are follows."""

MULTICLASS_IN_KEYS = "classification"
"""The task `multiclass` as keys have it: they were introduced before there was another one."""

ALWAYS: Any = object()  # in the table: the field is never left out

KEY_TABLE: Mapping[str, Any] = {
    "algorithm": ALWAYS,
    "model": ALWAYS,
    "tap": ALWAYS,
    "train_rows": ALWAYS,
    "test_rows": ALWAYS,
    "train_targets": ALWAYS,
    "test_targets": ALWAYS,
    "train_usable": "all",
    "test_usable": "all",
    "train_views": 0,
    "task": MULTICLASS_IN_KEYS,
    "metric": "balanced_accuracy",
    "class_weights": "balanced",
    "target": None,
    "part": None,
    "split.rule": SPLIT,
    "split.validation_fraction": ALWAYS,
    "split.seed": ALWAYS,
    "protocol.lrs": ALWAYS,
    "protocol.weight_decays": ALWAYS,
    "protocol.dropouts": ALWAYS,
    "protocol.epochs": ALWAYS,
    "protocol.min_steps": ALWAYS,
    "protocol.batch_size": ALWAYS,
    "protocol.jitter_std": ALWAYS,
    "protocol.jitter_probability": ALWAYS,
    "protocol.jitter_validation": False,
    "protocol.clip_norm": ALWAYS,
    "protocol.min_lr": ALWAYS,
    "protocol.penalties": ALWAYS,
    "protocol.num_neighbors": ALWAYS,
    "protocol.sweep": "full",
    "protocol.compute": "float32",
    "protocol.seed": ALWAYS,
    "probe.name": ALWAYS,
    "probe.head": ALWAYS,
    "probe.head_version": 1,
    "probe.levels": ALWAYS,
    "probe.kinds": ALWAYS,
    "probe.num_heads": None,
    "probe.normalize": "width",
    "probe.protocol": {},
    "probe.candidates": [],
    "probe.derived": None,
}

_NOT_DECISIVE = ("depth",)  # of a ProbeSpec; the model decides it


@dataclass(frozen=True, kw_only=True)
class DataKey:
    """What a probe is trained and tested on, as digests.

    Attributes:
        model: the model and how its tokens are computed and stored.
        tap: where in a block the tokens are read.
        train_rows, test_rows: the rows of each split, in order.
        train_targets, test_targets: digest of the labels and class names of each split.
        train_usable, test_usable: "all", or the digest of which images have usable tokens: the others are left out.
    """

    model: str
    tap: str
    train_rows: str
    test_rows: str
    train_targets: str
    test_targets: str
    train_usable: str = "all"
    test_usable: str = "all"


@dataclass(frozen=True, kw_only=True)
class ResultKey:
    """Every field that decides a result.

    Attributes:
        data: model, rows and targets.
        train_views: views of each training image beside the centre one.
        protocol: the training protocol with its matmul precision resolved; its seed is that of the split, too.
        probe: None for what all probes of a study have in common.
        task, metric: type of the task, in the words of `KEY_TABLE`, and the score that a setting is chosen by.
        class_weights: of the loss, see `Multiclass.weighting`.
        split: how validation images are chosen.
        target: name of the column that is predicted; None for the labels of the data set.
        part: of drawn subsets and folds, `Part.key_value`; None where all images are trained on.
        algorithm: version of the numerics.
    """

    data: DataKey
    train_views: int = 0
    protocol: TrainingProtocol
    probe: ProbeSpec | None = None
    task: str = MULTICLASS_IN_KEYS
    metric: str = "balanced_accuracy"
    class_weights: str | tuple[float, ...] = "balanced"
    split: str = SPLIT
    target: str | None = None
    part: Mapping[str, Any] | None = None
    algorithm: int = ALGORITHM

    def fields(self) -> dict[str, Any]:
        """Name -> JSON value of every field that the digest does not leave out, in the order of the table."""
        protocol = asdict(self.protocol)
        values = {
            "algorithm": self.algorithm,
            **asdict(self.data),
            "train_views": self.train_views,
            "task": self.task,
            "metric": self.metric,
            "class_weights": self.class_weights,
            "target": self.target,
            "part": self.part,
            "split.rule": self.split,
            "split.validation_fraction": protocol.pop("validation_fraction"),
            "split.seed": self.protocol.seed,
            **{f"protocol.{name}": value for name, value in protocol.items()},
        }
        if self.probe is not None:
            values |= {f"probe.{name}": value for name, value in _probe_values(self.probe).items()}
        return _without_frozen(values)

    @property
    def digest(self) -> str:
        """32 hex digits: the `key` of a row."""
        return key_of(self.fields())

    @property
    def setting(self) -> str:
        """The digest of everything but the probe: results of one setting can be compared."""
        return replace(self, probe=None).digest


def data_of(train: SplitTokens, test: SplitTokens) -> DataKey:
    """The data of two splits: rows and targets without names, places and stores."""
    return DataKey(
        model=train.model.digest,
        tap=train.request.tap,
        train_rows=train.request.wanted.rows.digest,
        test_rows=test.request.wanted.rows.digest,
        train_targets=train.record.targets_digest,
        test_targets=test.record.targets_digest,
        train_usable=_usable(train),
        test_usable=_usable(test),
    )


def split_rule(train: SplitTokens) -> str:
    """How validation images are chosen of these training images."""
    if train.is_validation is not None:
        return SPLIT_WITH_VALIDATION + key_of({"rows": np.flatnonzero(train.is_validation).tolist()})
    if train.groups is None:
        return SPLIT
    if train.record.groups is None:
        return SPLIT_WITH_COPIES
    return SPLIT_WITH_GROUPS + key_of({"groups": train.groups.tolist()})


def task_in_keys(task: str) -> str:
    """A type of task in the words of `KEY_TABLE`."""
    return MULTICLASS_IN_KEYS if task == MULTICLASS else task


def _usable(tokens: SplitTokens) -> str:
    images = np.unique(tokens.images)
    if len(images) == len(tokens.record):
        return "all"
    return key_of({"images": images.tolist()})


def _probe_values(probe: ProbeSpec) -> dict[str, Any]:
    """Field -> JSON value; probes within a probe by the same table."""
    from layerbank.probes import HEADS

    values = {one.name: getattr(probe, one.name) for one in fields(probe) if one.name not in _NOT_DECISIVE}
    values["head_version"] = HEADS[probe.head].version
    values["candidates"] = [_inner(one) for one in probe.candidates]
    if probe.derived is not None:
        rule = "smallest" if isinstance(probe.derived, SmallestLevels) else "top"
        more = {one.name: getattr(probe.derived, one.name) for one in fields(probe.derived) if one.name != "base"}
        values["derived"] = {"rule": rule, **more, "base": _inner(probe.derived.base)}
    return values


def _inner(probe: ProbeSpec) -> dict[str, Any]:
    named = {f"probe.{name}": value for name, value in _probe_values(probe).items()}
    return {name.removeprefix("probe."): value for name, value in _without_frozen(named).items()}


def _without_frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values in the order of the table, without those that equal the frozen one; a field must be in the table."""
    plain = {name: plain_values(value) for name, value in values.items()}
    unknown = plain.keys() - KEY_TABLE.keys()
    assert not unknown, f"add to KEY_TABLE, with the value that had its effect so far: {sorted(unknown)}"
    kept = [name for name, frozen in KEY_TABLE.items() if name in plain and not _is_frozen(plain[name], frozen)]
    return {name: plain[name] for name in kept}


def _is_frozen(value: Any, frozen: Any) -> bool:
    return frozen is not ALWAYS and type(value) is type(frozen) and bool(value == frozen)
