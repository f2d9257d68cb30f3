"""Tokens that lie on the device as they are stored: the bits of the map, read once in order, and no batch waits for the GPU."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import starved
import torch
from absent_gpu import absent_gpu
from messages import raises
from small_stores import ALF, GRID, LINEAR, NUM_ROWS, PROTOCOL, QUIRK, small_request, write_small_store
from token_stores import without_fsync  # noqa: F401

import layerbank.probing.probe_groups
import layerbank.probing.tokens.placement
import layerbank.probing.tokens.resident
from layerbank.events import Event, MemoryPlanned, UploadFailed
from layerbank.probes import (
    AttentiveBank,
    AttentiveProbe,
    BankRun,
    Reading,
    Setting,
    SettingError,
    SweepResult,
    fit_banks,
    run_sweeps,
)
from layerbank.probes.tasks.multiclass import Multiclass
from layerbank.probing.probe import probe
from layerbank.probing.probe_groups import candidates_of, open_group, plan_groups
from layerbank.probing.probe_spec import ProbeSpec, TopSettings
from layerbank.probing.tokens.placement import Placement, place_tokens
from layerbank.probing.tokens.resident import ResidentTokens
from layerbank.probing.tokens.split_tokens import SplitTokens
from layerbank.probing.tokens.streaming import StreamedTokens
from layerbank.probing.tokens.token_source import CachedTokens

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> SplitTokens:
    return write_small_store(tmp_path_factory.mktemp("caches"))


def some_rows(count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))[:300]


def names_of(probes: Sequence[ProbeSpec]) -> str:
    return "+".join(probe.name for probe in probes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float16,cls=float32"])
@pytest.mark.parametrize("probes", [(LINEAR,), (GRID, LINEAR, ALF), (ALF, QUIRK)], ids=names_of)
def test_rows_are_those_of_the_map_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, probes: Sequence[ProbeSpec]
) -> None:
    """Of every storage dtype, also where kinds differ in it."""
    monkeypatch.setattr(layerbank.probing.tokens.resident, "UPLOAD_BYTES", 20_000)  # several on the way
    tokens = CachedTokens(write_small_store(tmp_path, dtype), probes)
    held = ResidentTokens(tokens, CPU)
    assert held.size_bytes == tokens.stored_bytes
    assert (held.token_shape, held.blocks, held.task) == (tokens.token_shape, tokens.blocks, Multiclass(num_classes=3))
    assert len(held.targets) == NUM_ROWS - 6
    rows = some_rows(len(held.targets))
    assert torch.equal(held.take(rows), tokens.take(rows))
    assert torch.equal(held.take(rows[:7]), tokens.take(rows[:7]))
    assert torch.equal(held.take(rows), tokens.in_memory().take(rows))


def test_rows_of_one_probe_are_its_own_tokens_stacked_and_padded(cache: SplitTokens) -> None:
    """What the trainer reads of shared rows is what a lone `CachedTokens` gives."""
    tokens = CachedTokens(cache, [GRID, QUIRK, ALF, LINEAR])
    held = ResidentTokens(tokens, CPU)
    rows = some_rows(len(held.targets))
    for named in (GRID, QUIRK, ALF, LINEAR):
        (candidate,) = candidates_of(cache, named)
        assert held.blocks is not None
        reading = Reading(held.blocks, candidate.blocks, flat=named.head == "linear")
        read = reading.read(held.take(rows), layerbank.probing.tokens.resident.Workspace(torch.float32, CPU))
        assert torch.equal(read, CachedTokens(cache, named).take(rows)), named.name


def test_views_are_held_beside_their_images(tmp_path: Path) -> None:
    write_small_store(tmp_path, num_views=2)
    cache = small_request(tmp_path, num_views=2).with_views(1).open()
    tokens = CachedTokens(cache, [ALF])
    held = ResidentTokens(tokens, CPU)
    assert torch.equal(held.images, tokens.images)
    assert held.images.bincount().max() == 2
    rows = some_rows(len(held.targets))
    assert torch.equal(held.take(rows), tokens.take(rows))


def test_a_store_is_read_once_in_order_through_one_small_buffer(
    cache: SplitTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = CachedTokens(cache, [ALF])
    seen: list[tuple[str, int, int]] = []
    stored = tokens.stored_rows
    gather = tokens.gather

    def watched(rows: torch.Tensor) -> object:
        seen.append(("gather", int(rows[0]), int(rows[-1])))
        assert torch.equal(rows, torch.arange(int(rows[0]), int(rows[-1]) + 1))
        return gather(rows)

    monkeypatch.setattr(tokens, "gather", watched)
    monkeypatch.setattr(
        tokens, "will_need", lambda rows: seen.append(("ahead", int(stored[rows[0]]), int(stored[rows[-1]])))
    )
    monkeypatch.setattr(
        tokens, "release", lambda rows: seen.append(("release", int(stored[rows[0]]), int(stored[rows[-1]])))
    )
    monkeypatch.setattr(layerbank.probing.tokens.resident, "UPLOAD_BYTES", 100 * tokens.stored_row_bytes)
    ResidentTokens(tokens, CPU)
    read = [(first, last) for what, first, last in seen if what == "gather"]
    assert read == [(start, min(start + 100, 594) - 1) for start in range(0, 594, 100)]
    assert [what for what, *_ in seen] == ["ahead", "gather", "release"] * 5 + ["gather", "release"]
    assert seen[0] == ("ahead", 101, 201)  # beyond the first hundred, one of which could not be read
    assert seen[-1] == ("release", 505, 598)  # of the store, which has rows that could not be read


def scattered(tokens: CachedTokens) -> CachedTokens:
    """The same store, whose rows are wanted in another order, some of them twice, and are read in a third."""
    generator = torch.Generator().manual_seed(2)
    chosen = torch.randint(len(tokens.targets), (len(tokens.targets),), generator=generator)
    tokens.stored_rows, tokens.targets = tokens.stored_rows[chosen], tokens.targets[chosen]
    tokens.reading_order = torch.randperm(len(chosen), generator=generator)
    return tokens


def test_rows_may_lie_anywhere_and_be_read_in_any_order(cache: SplitTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """In no order of their own, and two equal images in one place; a row stays the row of its number."""
    monkeypatch.setattr(layerbank.probing.tokens.resident, "UPLOAD_BYTES", 20_000)
    plain, tokens = CachedTokens(cache, [ALF, LINEAR]), scattered(CachedTokens(cache, [ALF, LINEAR]))
    where = {position: row for row, position in enumerate(plain.stored_rows.tolist())}
    wanted = plain.take(torch.tensor([where[position] for position in tokens.stored_rows.tolist()]))
    rows = torch.arange(len(wanted))
    assert torch.equal(tokens.take(rows), wanted)
    assert torch.equal(tokens.in_memory().tokens, wanted)
    assert torch.equal(ResidentTokens(tokens, CPU).take(rows), wanted)
    for read, batch in StreamedTokens(tokens, buffer_rows=64).stream(rows.split(50)):
        assert torch.equal(batch, wanted[read])


def sweep(cache: SplitTokens, open_train: Callable[[CachedTokens], object]) -> list[SweepResult]:
    tokens = CachedTokens(cache, [LINEAR, ALF])
    sweeps = [candidates_of(cache, named) for named in (LINEAR, ALF)]
    source = open_train(tokens)
    return run_sweeps(sweeps, source, lambda: tokens, PROTOCOL)  # type: ignore[arg-type]


def test_training_on_them_is_training_on_float32_tokens_bit_for_bit(cache: SplitTokens) -> None:
    held = sweep(cache, lambda tokens: ResidentTokens(tokens, CPU))
    for one, other in zip(held, sweep(cache, CachedTokens.in_memory), strict=True):
        assert one.scores == other.scores
        assert one.probe is not None
        assert other.probe is not None
        wanted = other.probe.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in one.probe.state_dict().items())
        assert torch.equal(one.test_logits, other.test_logits)  # type: ignore[arg-type]


def train(bank: AttentiveBank, source: ResidentTokens, num_steps: int) -> None:
    settings = [Setting(lr=0.1, weight_decay=0.1), Setting(lr=0.1, weight_decay=0.1, dropout=0.3)]
    assert source.blocks is not None
    bank_run = BankRun(
        bank=bank, reading=Reading(source.blocks, flat=False), settings=settings
    )  # padded: jitter there too
    protocol = replace(PROTOCOL, epochs=4, min_steps=0)
    fit_banks([bank_run], source, torch.arange(len(source.targets)), protocol, max_steps=num_steps)


def test_a_step_on_a_gpu_that_holds_the_tokens_waits_for_nothing(
    cache: SplitTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gathering, widening, normalising and jitter are there; waits are those of the beginning and the end."""
    waits = []
    for num_steps in (1, 4):
        with absent_gpu(monkeypatch) as gpu:
            source = ResidentTokens(CachedTokens(cache, [ALF]), GPU)
            assert len(gpu.waits) == 1  # for the upload of the one buffer that all fits into
            bank = AttentiveBank([AttentiveProbe(24, 4, 3)] * 2, [0.0, 0.3], device=GPU)
            gpu.waits.clear()
            assert source.take(torch.arange(50)).device.type == "cuda"
            assert not gpu.waits
            train(bank, source, num_steps)
            waits.append(gpu.waits)
    assert waits[1] == waits[0] == ["aten._to_copy.default from the GPU"] * 3  # which diverged, the losses, the curves


def test_on_a_gpu_tokens_lie_in_its_memory_where_they_fit_and_are_streamed_where_they_do_not(
    cache: SplitTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much memory the host has, or has not."""
    free_bytes = 10**9
    monkeypatch.setattr(layerbank.probing.tokens.placement, "free_device_bytes", lambda device: free_bytes)
    tokens, (candidate,) = CachedTokens(cache, [ALF]), candidates_of(cache, ALF)

    def place(host_bytes: int) -> Placement:
        placed = place_tokens(tokens, [candidate], PROTOCOL, host_bytes, GPU)
        assert placed.planned_bytes <= placed.budget_bytes == free_bytes
        assert placed.host_bytes <= host_bytes
        return placed

    held = place(10**7)
    assert held.tokens == "resident"
    assert held.training_bytes <= free_bytes - tokens.stored_bytes
    with absent_gpu(monkeypatch):
        opened = held.open(tokens)
        assert isinstance(opened, ResidentTokens)
        assert opened.device == GPU
    stored_bytes = 499_000_000  # as of a larger store: half of the GPU, whatever training would like to have
    monkeypatch.setattr(CachedTokens, "stored_bytes", property(lambda self: stored_bytes))
    assert place(10**7).tokens == "resident"
    stored_bytes = free_bytes
    streamed = place(10**10)
    assert streamed.tokens == "streamed"
    assert streamed.training_bytes == free_bytes  # buffers lie in the host's
    free_bytes = 10**6
    with raises("probing.too_little_gpu_memory", SettingError, device="cuda", given="1 MB") as refused:
        place(10**10)
    free_bytes = int(refused.error.values["needed"].removesuffix(" MB")) * 10**6
    assert place(10**10).training_bytes == free_bytes


def no_room(*arguments: object, **more: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB free.")


def test_tokens_that_no_longer_fit_the_gpu_are_streamed_and_those_that_were_there_are_dropped_before(
    cache: SplitTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes, uploading, events = 10**9, [], []

    def free(device: torch.device) -> int:
        assert all(one() is None for one in uploading)
        return free_bytes

    def no_room_now(held: ResidentTokens, *arguments: object) -> None:
        uploading.append(weakref.ref(held))
        no_room(held)

    monkeypatch.setattr(layerbank.probing.tokens.placement, "free_device_bytes", free)
    monkeypatch.setattr(ResidentTokens, "_read", no_room_now)
    (planned,) = plan_groups(cache, [(ALF, PROTOCOL), (LINEAR, PROTOCOL)], 10**8, GPU)
    assert planned.placement.tokens == "resident"
    free_bytes = 2 * 10**8  # another program has come
    with absent_gpu(monkeypatch):
        group, source = open_group(planned, events.append)
    assert isinstance(source, StreamedTokens)
    assert len(uploading) == 1
    assert group.placement.training_bytes == group.placement.budget_bytes == free_bytes
    assert group.placement.host_bytes <= 10**8
    assert (group.probes, group.sweeps) == (planned.probes, planned.sweeps)
    assert events == [
        UploadFailed(probes=("alf", "linear"), tokens_bytes=group.tokens.stored_bytes, reason="CUDA out of memory")
    ]


NO_MEMORY_HERE = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. "
    "Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "CUDA out of memory"),
        (RuntimeError(NO_MEMORY_HERE), "can't allocate memory: you tried to allocate 99 bytes"),
        (MemoryError(), "no memory left"),
    ],
)
def test_a_run_without_memory_for_its_tokens_goes_on_and_leaves_the_rows_of_one_that_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """A probe, and one that is made of it."""

    def no_room(*arguments: object) -> None:
        raise error

    train, test = starved.write_stores(tmp_path, 300)
    base = ProbeSpec(name="linear", head="linear", levels=("final",), kinds=("grid4",))
    wanted = [base, replace(base, name="top", derived=TopSettings(base=base, num_members=2))]
    events: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr(ResidentTokens, "_read", no_room)
        rows = probe(train, test, wanted, PROTOCOL, tmp_path / "runs", memory_bytes=10**9, on_event=events.append)
    assert [row["memory"]["tokens"] for row in rows] == ["streamed"] * 2
    planned = [
        event.tokens if isinstance(event, MemoryPlanned) else event.probes for event in events if type(event) in PLANS
    ]
    assert planned == ["resident", ("linear",), "streamed", ("linear",)]
    assert [event.reason for event in events if isinstance(event, UploadFailed)] == [reason] * 2
    monkeypatch.setattr(layerbank.probing.probe_groups, "place_tokens", partial(place_tokens, may_stay=False))
    streamed = probe(train, test, wanted, PROTOCOL, tmp_path / "streamed", memory_bytes=10**9)
    may_differ = {"seconds": None, "digest": None}
    assert [row | may_differ for row in rows] == [row | may_differ for row in streamed]


def test_a_bug_is_not_taken_for_a_lack_of_memory(cache: SplitTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("a bug")

    (planned,) = plan_groups(cache, [(LINEAR, PROTOCOL)], 10**9, CPU)
    assert planned.placement.tokens == "resident"
    monkeypatch.setattr(ResidentTokens, "_read", broken)
    events: list[Event] = []
    with pytest.raises(RuntimeError, match="a bug"):
        open_group(planned, events.append)
    assert events == []


def test_streamed_tokens_that_do_not_fit_are_not_streamed_once_more(
    cache: SplitTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = plan_groups(cache, [(LINEAR, PROTOCOL)], 10**9, CPU)
    (candidate,) = candidates_of(cache, LINEAR)
    streamed = place_tokens(planned.tokens, [candidate], PROTOCOL, 10**9, CPU, may_stay=False)
    monkeypatch.setattr(layerbank.probing.tokens.placement, "StreamedTokens", no_room)
    events: list[Event] = []
    with pytest.raises(torch.OutOfMemoryError):
        open_group(replace(planned, placement=streamed), events.append)
    assert events == []


PLANS = (MemoryPlanned, UploadFailed)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_DATA")
def test_memory_stays_under_the_budget_while_tokens_are_read_and_trained_on(tmp_path: Path) -> None:
    """33 MB of tokens, which would be 66 in float32."""
    answer = starved.train(tmp_path, ["linear"], 72_000_000, 8000)
    assert answer["tokens"] == ["resident"]
    assert 30_000_000 < answer["peak_bytes"] <= answer["planned_bytes"] <= 72_000_000


def test_a_budget_that_float32_tokens_exceed_and_stored_ones_do_not_keeps_them_in_memory(tmp_path: Path) -> None:
    cache = write_small_store(tmp_path, num_rows=9600)
    tokens, (candidate,) = CachedTokens(cache, [ALF]), candidates_of(cache, ALF)
    training = place_tokens(tokens, [candidate], PROTOCOL, 10**9, CPU).plan.total_bytes
    placed = place_tokens(tokens, [candidate], PROTOCOL, training + 2 * tokens.stored_bytes - 1, CPU)
    assert placed.tokens == "resident"
    assert placed.planned_bytes <= placed.budget_bytes
