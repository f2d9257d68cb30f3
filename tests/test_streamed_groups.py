"""Probes whose tokens do not fit the memory train together all the same: one pass over the store, rows as alone, memory kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import starved
import torch
from small_stores import ALF, GRID, LINEAR, QUIRK, write_small_store
from token_stores import without_fsync  # noqa: F401

import layerbank.probing.tokens.placement
from layerbank.events import Event, MemoryPlanned, TrainingStarted
from layerbank.probes import TrainingProtocol
from layerbank.probing.probe import probe
from layerbank.probing.probe_groups import ProbeGroup, candidates_of, plan_groups
from layerbank.probing.probe_spec import ProbeSpec
from layerbank.probing.tokens.placement import place_tokens
from layerbank.probing.tokens.split_tokens import SplitRequest, SplitTokens
from layerbank.probing.tokens.streaming import StreamedTokens
from layerbank.probing.tokens.token_source import CachedTokens

CPU = torch.device("cpu")
NUM_ROWS = 1000
ROOMY, TIGHT = 10**9, 18_000_000
PROTOCOL = TrainingProtocol(
    lrs=(1e-2,), weight_decays=(1e-4,), dropouts=(0.0, 0.3), epochs=1, min_steps=3, batch_size=350
)
OF_THE_ZOO = [
    ProbeSpec(name=kind, head=kind, levels=("block.0",), kinds=("cls", "grid2"), num_heads=2)
    for kind in ("cae", "aim", "simpool", "map")  # by hand, with BatchNorm, in chunks, with an MLP
]
ALL = [LINEAR, ALF, GRID, QUIRK, *OF_THE_ZOO]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[SplitRequest, SplitRequest]:
    root = tmp_path_factory.mktemp("caches")
    train = write_small_store(root, num_rows=NUM_ROWS)
    return train.request, write_small_store(root, num_rows=120, split="test", first_image=NUM_ROWS).request


@pytest.fixture(autouse=True)
def a_store_that_fits_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones, but every placement takes them for a terabyte; buffers are smaller than the store."""
    monkeypatch.setattr(CachedTokens, "stored_bytes", property(lambda self: 10**12))
    monkeypatch.setattr(layerbank.probing.tokens.placement, "MOST_BUFFER_ROWS", 256)


def run(
    stores: tuple[SplitRequest, SplitRequest], runs: Path, probes: Sequence[ProbeSpec], memory_bytes: int = ROOMY
) -> tuple[list[dict[str, Any]], list[Event]]:
    events: list[Event] = []
    rows = probe(*stores, probes, PROTOCOL, runs, memory_bytes=memory_bytes, on_event=events.append)
    return rows, events


def groups_of(
    stores: tuple[SplitRequest, SplitRequest], probes: Sequence[ProbeSpec], memory_bytes: int
) -> list[ProbeGroup]:
    return list(plan_groups(stores[0].open(), [(one, PROTOCOL) for one in probes], memory_bytes, CPU))


def test_a_row_is_the_same_whatever_its_probe_was_streamed_together_with(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    """Linear, attentive, padded, normalised over tokens, and heads of other studies."""
    together, events = run(stores, tmp_path / "together", ALL)
    assert [len(event.probes) for event in events if isinstance(event, TrainingStarted)] == [len(ALL)]
    assert {event.tokens for event in events if isinstance(event, MemoryPlanned)} == {"streamed"}
    assert {row["memory"]["buffer_rows"] for row in together} == {256}
    for named, row in zip(ALL, together, strict=True):
        (alone,), _ = run(stores, tmp_path / named.name, [named])
        may_differ = {"seconds": None, "digest": None}
        assert row | may_differ == alone | may_differ


def test_the_store_is_read_once_for_all(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    stream = StreamedTokens.stream

    def counted(self: StreamedTokens, batches: Any) -> Any:
        for rows, tokens in stream(self, batches):
            read.append(len(rows))
            yield rows, tokens

    monkeypatch.setattr(StreamedTokens, "stream", counted)
    counts = []
    for name, probes in (("one", [ALF]), ("many", [LINEAR, ALF, GRID, OF_THE_ZOO[0]])):
        _, events = run(stores, tmp_path / name, probes)
        assert [event.num_passes for event in events if isinstance(event, TrainingStarted)] == [1]
        counts.append(sum(read))
        read.clear()
    # the attention of each attentive probe is looked at on the test images afterwards
    num_attentive = {"one": 1, "many": 3}
    num_tested = 119
    assert counts[1] - counts[0] == (num_attentive["many"] - num_attentive["one"]) * num_tested


def test_the_order_does_not_depend_on_what_is_read_of_a_row(stores: tuple[SplitRequest, SplitRequest]) -> None:
    cache = stores[0].open()
    rows, orders = torch.arange(0, 900, 2), []
    for probes in ([LINEAR], [ALF], [LINEAR, ALF, GRID]):
        placed = place(cache, probes, ROOMY)
        source = placed.open(CachedTokens(cache, probes))
        assert isinstance(source, StreamedTokens)
        orders.append(source.order(rows, 0, 0))
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def place(cache: SplitTokens, probes: Sequence[ProbeSpec], memory_bytes: int) -> Any:
    candidates = [one for named in probes for one in candidates_of(cache, named)]
    return place_tokens(CachedTokens(cache, probes), candidates, PROTOCOL, memory_bytes, CPU)


@pytest.mark.parametrize("memory_bytes", [TIGHT, 2 * TIGHT, 4 * TIGHT, ROOMY])
def test_groups_keep_within_the_memory_and_change_nothing_for_any_probe(
    stores: tuple[SplitRequest, SplitRequest], memory_bytes: int
) -> None:
    groups = groups_of(stores, ALL, memory_bytes)
    assert [named for group in groups for named in group.probes] == ALL
    for group in groups:
        assert group.placement.planned_bytes <= memory_bytes
        assert group.placement.host_bytes <= memory_bytes
        alone = [groups_of(stores, [named], memory_bytes)[0] for named in group.probes]
        for named, own in zip(group.probes, alone, strict=True):
            (candidate,) = candidates_of(group.cache, named)
            assert group.describe(candidate) == own.describe(candidate)
        assert group.read_bytes <= sum(own.read_bytes for own in alone)


def test_where_a_group_would_read_the_store_more_often_probes_train_alone(
    stores: tuple[SplitRequest, SplitRequest],
) -> None:
    """In little memory every bank has a pass of its own, and in a group that pass would read what its probe does not need."""
    assert [len(group.probes) for group in groups_of(stores, [LINEAR, GRID], ROOMY)] == [2]
    assert [len(group.probes) for group in groups_of(stores, [LINEAR, GRID], TIGHT)] == [1, 1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_DATA")
def test_memory_of_a_group_stays_under_the_budget_for_a_store_ten_times_larger(tmp_path: Path) -> None:
    budget_bytes = 125_000_000
    answer = starved.train(tmp_path, ["linear", "simpool"], budget_bytes, 10 * budget_bytes // starved.ROW_BYTES)
    assert answer["tokens"] == ["streamed"] * 2
    assert answer["groups"] == [["linear", "simpool"]]
    assert 0 < answer["peak_bytes"] <= answer["planned_bytes"] <= budget_bytes
