"""Keys of results: what decides them, and that a key never changes unless a result would."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_stores import with_copies, write_small_store

from layerbank.cache import Target
from layerbank.data.splits.split_record import load_record
from layerbank.probes import PAPER, QUICK, TrainingProtocol
from layerbank.probing.probe_spec import ProbeSpec, parse_probe
from layerbank.probing.rows import result_key
from layerbank.probing.rows.result_key import ALWAYS, KEY_TABLE, SPLIT_WITH_COPIES, DataKey, ResultKey, data_of
from layerbank.probing.rows.results import key_of
from layerbank.probing.tokens.split_tokens import SplitTokens

DATA = DataKey(
    model="m" * 32, tap="norm2", train_rows="a" * 32, test_rows="b" * 32, train_targets="c" * 32, test_targets="d" * 32
)


def key(
    name: str = "linear-cls", protocol: TrainingProtocol = PAPER, data: DataKey = DATA, **changed: Any
) -> ResultKey:
    return ResultKey(data=data, protocol=replace(protocol, compute="float32"), probe=parse_probe(name, 12), **changed)


def test_the_table_has_every_field_of_a_protocol_and_of_a_probe_and_each_is_frozen() -> None:
    """A changed value of this table computes saved results again: a new field gets the value that had its effect so far."""
    of_protocol = {f"protocol.{one.name}" for one in fields(TrainingProtocol)} - {"protocol.validation_fraction"}
    of_probe = {f"probe.{one.name}" for one in fields(ProbeSpec)} - {"probe.depth"}
    assert {name for name in KEY_TABLE if name.startswith("protocol.")} == of_protocol
    assert {name for name in KEY_TABLE if name.startswith("probe.")} == of_probe | {"probe.head_version"}
    assert {one.name for one in fields(DataKey)} <= set(KEY_TABLE)
    assert {name: frozen for name, frozen in KEY_TABLE.items() if frozen is not ALWAYS} == {
        "train_usable": "all",
        "test_usable": "all",
        "train_views": 0,
        "task": "classification",
        "metric": "balanced_accuracy",
        "class_weights": "balanced",
        "target": None,
        "part": None,
        "split.rule": "fraction of each class",
        "protocol.jitter_validation": False,
        "protocol.sweep": "full",
        "protocol.compute": "float32",
        "probe.head_version": 1,
        "probe.num_heads": None,
        "probe.normalize": "width",
        "probe.protocol": {},
        "probe.candidates": [],
        "probe.derived": None,
    }


@pytest.mark.parametrize(
    ("name", "protocol", "changed", "digest"),
    [
        ("linear-cls", PAPER, {}, "d6df4b3df27131935f867bd29d4730f5"),
        ("linear-cls", QUICK, {"train_views": 2}, "29861989ef3ae014f113fcd06be62ca8"),
        ("alf-h8", replace(PAPER, sweep="halving", seed=3), {}, "163e7be6480d8b8e38b73c2b40141697"),
        ("best-grid2", PAPER, {}, "8dbeca95468951a51df36886bf10153b"),
        ("alf-top3", PAPER, {}, "a0de852beec67b1af2654b6965f76368"),
        ("alf-smallest", PAPER, {}, "7bbffe1157bc280bd48693552be410b9"),
        ("aat-quarterly", PAPER, {}, "ff44d5f7a05d6d612468bf4515c6f889"),
        ("ridge-cls", PAPER, {"algorithm": 2}, "6ca313073fe435677618b16d274dabca"),
    ],
)
def test_keys_of_saved_results_stay_what_they_are(
    name: str, protocol: TrainingProtocol, changed: dict[str, Any], digest: str
) -> None:
    assert key(name, protocol, **changed).digest == digest


def test_a_field_that_is_introduced_later_changes_no_key_at_its_frozen_value(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key().digest
    monkeypatch.setattr(result_key, "KEY_TABLE", {**KEY_TABLE, "fold": None})
    assert result_key._without_frozen({**key().fields(), "fold": None}) == key().fields()
    assert key_of(result_key._without_frozen({**key().fields(), "fold": 1})) != before


def test_a_field_without_a_place_in_the_table_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="add to KEY_TABLE"):
        result_key._without_frozen({"fold": None})


def test_whatever_decides_a_result_changes_its_key() -> None:
    given = key()
    others = [
        *(replace(given, data=replace(DATA, **{one.name: "e" * 32})) for one in fields(DataKey)),
        replace(given, train_views=1),
        replace(given, algorithm=result_key.ALGORITHM + 1),
        replace(given, task="regression"),
        replace(given, metric="top1"),
        replace(given, split="column"),
        replace(given, split=SPLIT_WITH_COPIES),
        replace(given, target="age"),
        replace(given, part={"name": "5 shots", "number": 0, "of": "f" * 32}),
        *(replace(given, protocol=changed) for changed in _changed(given.protocol)),
        *(
            key(name)
            for name in ("linear@final", "linear-ap", "ridge-cls", "alf", "alf-h8", "alf-top3", "alf-top4", "best")
        ),
    ]
    digests = [one.digest for one in (given, *others)]
    assert len(set(digests)) == len(digests)
    assert all(one.digest == key_of(one.fields()) for one in others)


def _changed(protocol: TrainingProtocol) -> list[TrainingProtocol]:
    other: dict[str, Any] = {"jitter_validation": True, "sweep": "halving", "compute": "bfloat16"}
    for one in fields(protocol):
        value = getattr(protocol, one.name)
        if isinstance(value, tuple):
            other[one.name] = value[:-1]
        elif one.name not in other:
            other[one.name] = value + 1 if isinstance(value, int) else value / 2
    return [replace(protocol, **{name: value}) for name, value in other.items()]


def test_results_of_all_probes_of_a_study_have_one_setting() -> None:
    assert len({key(name).setting for name in ("linear-cls", "alf", "alf-top3", "best")}) == 1
    assert key().setting != key(protocol=replace(PAPER, seed=1)).setting


def test_targets_are_the_same_in_integers_of_any_width_and_others_by_value_order_or_name() -> None:
    def digest(labels: object, names: tuple[str, ...] = ("cat", "dog"), kind: str = "multiclass") -> str:
        return Target(values=np.asarray(labels), type=kind, class_names=names).digest

    labels = np.array([0, 1, 1])
    assert digest(labels) == digest(labels.astype(np.uint8))
    others = [
        digest(labels[::-1]),
        digest(labels, ("dog", "cat")),
        digest(labels.astype(float)),
        digest(labels[:, None]),
    ]
    assert len({digest(labels), *others, digest(labels, kind="ordinal")}) == 6


def test_groups_stay_together_with_copies_and_are_part_of_the_key(tmp_path: Path) -> None:
    tokens = write_small_store(tmp_path)
    request = tokens.request
    assert result_key.split_rule(tokens) == result_key.SPLIT
    numbers = np.arange(len(request.record), dtype=np.uint64)

    def grouped(groups: np.ndarray, copies: dict[int, int]) -> SplitTokens:
        with_them = with_copies(request, copies)
        return replace(with_them, record=replace(with_them.record, groups=groups)).open()

    alone, pairs, linked = (grouped(numbers // size, {5: 1} if size == 4 else {}) for size in (1, 2, 4))
    assert alone.groups is None
    assert result_key.split_rule(alone) == result_key.SPLIT
    assert pairs.groups is not None
    assert pairs.groups[:4].tolist() == [0, 0, 1, 1]
    assert linked.groups is not None
    assert linked.groups[:9].tolist() == [0] * 8 + [1]  # a copy links two groups
    rules = [result_key.split_rule(one) for one in (pairs, linked)]
    assert all(rule.startswith(result_key.SPLIT_WITH_GROUPS) for rule in rules)
    assert rules[0] != rules[1]
    file = tmp_path / "records" / pairs.record.save(tmp_path / "records")
    assert load_record(file).groups.tolist() == pairs.record.groups.tolist()
    assert len({record.file_name for record in (pairs.record, alone.record, request.record)}) == 3


def test_images_without_usable_tokens_are_part_of_the_key(tmp_path: Path) -> None:
    train = write_small_store(tmp_path)  # every hundredth image is skipped
    test = write_small_store(tmp_path, num_rows=90, split="test")
    data = data_of(train, test)
    assert data.train_usable != "all"
    assert data.test_usable == "all"
    assert key(data=data).digest != key(data=replace(data, train_usable="all")).digest
    assert "test_usable" not in key(data=data).fields()
