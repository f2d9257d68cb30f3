"""Tokens that do not fit: the same bits as resident ones, a thread that ends, and a hard limit on memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starved
import torch
from token_stores import make_rows, make_spec, without_fsync  # noqa: F401

from layerbank.cache import ArraySpec, CacheWriter
from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.probes import (
    ArraySource,
    FusionHead,
    Head,
    StreamedSource,
    TrainingProtocol,
    attention_statistics,
    read_batches,
    run_sweep,
)
from layerbank.probes.data.token_source import OrderedSource
from layerbank.probing.probe_spec import ProbeSpec
from layerbank.probing.tokens.split_tokens import SplitRequest, SplitTokens
from layerbank.probing.tokens.streaming import READER_NAME, StreamedTokens, _Buffer
from layerbank.probing.tokens.stretches import Stretches
from layerbank.probing.tokens.token_source import CachedTokens

NUM_ROWS = 1200
GROUPS = torch.arange(10) // 5
HEADS = {"attentive": Head(kind="attentive", num_heads=3), "linear": Head(kind="linear")}
PROTOCOL = TrainingProtocol(
    lrs=(1e-2, 1e-3), weight_decays=(1e-4,), dropouts=(0.0, 0.3), epochs=2, min_steps=10, batch_size=100
)


class InOrder(ArraySource):
    """Resident tokens in the order of streamed ones."""

    def __init__(self, tokens: torch.Tensor, streamed: StreamedTokens) -> None:
        super().__init__(tokens, streamed.targets, streamed.task)
        self.order = streamed.order


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> SplitTokens:
    """Two levels of different widths, as CLIP has them, and several blocks."""
    arrays = [
        ArraySpec(level="block.1", kind="cls", row_shape=(48,)),
        ArraySpec(level="block.1", kind="grid2", row_shape=(4, 48)),
        ArraySpec(level="final", kind="cls", row_shape=(32,)),
        ArraySpec(level="final", kind="grid2", row_shape=(4, 32)),
    ]
    rows = make_rows(NUM_ROWS)
    spec = make_spec(NUM_ROWS)
    labels = np.arange(NUM_ROWS) * 3 // NUM_ROWS
    generator = np.random.default_rng(0)
    root, ids = tmp_path_factory.mktemp("caches"), [f"image {row}" for row in range(NUM_ROWS)]
    writer = CacheWriter.open(spec.path(root), spec.model, rows, arrays, name=spec.name, sample_ids=ids, batch_size=60)
    with writer:
        for batch in writer.pending():
            numbers = np.arange(batch.start, batch.stop)
            tokens = {}
            for array in batch.arrays:
                values = generator.standard_normal((len(numbers), *array.row_shape))
                values[..., :3] += np.eye(3)[labels[numbers]].reshape(
                    len(numbers), *[1] * (len(array.row_shape) - 1), 3
                )
                tokens[array.name] = values.astype(np.float16)
            writer.append(batch, tokens, content_hashes=rows.hashes[numbers])
        writer.complete()
    is_known = np.ones(NUM_ROWS, dtype=np.bool_)
    record = SplitRecord(
        dataset="shapes",
        split="train",
        ids=ids,
        labels=labels,
        class_names=["circle", "square", "star"],
        images=ImageSet(hashes=rows.hashes, rule1_hashes=None, is_known=is_known, keeps_order=True),
    )
    read = tuple((array.level, array.kind) for array in arrays)
    return SplitRequest(cache_root=root, model=spec.model, tap="norm2", record=record, rule=None, arrays=read).open()


def tokens_of(cache: SplitTokens, head: str) -> CachedTokens:
    return CachedTokens(
        cache, ProbeSpec(name=head, head=head, levels=("block.1", "final"), kinds=("cls", "grid2"), num_heads=3)
    )


@pytest.fixture(params=["attentive", "linear"])
def tokens(cache: SplitTokens, request: pytest.FixtureRequest) -> CachedTokens:
    return tokens_of(cache, request.param)


def kept_pages(source: StreamedTokens) -> StreamedTokens:
    """Read as from a store in random order of rows that are not small: pages stay mapped while batches ahead need them."""
    source._scattered = False
    return source


def streamed_from(tokens: CachedTokens) -> StreamedTokens:
    """A buffer of a fifth of the store."""
    return StreamedTokens(tokens, buffer_rows=NUM_ROWS // 5)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(READER_NAME)]


def test_streamed_training_equals_resident_training_in_the_same_order_bit_for_bit(tokens: CachedTokens) -> None:
    streamed = streamed_from(tokens)
    resident = InOrder(tokens.in_memory().tokens, streamed)
    assert isinstance(streamed, StreamedSource)
    assert isinstance(resident, OrderedSource)
    assert not isinstance(resident, StreamedSource)
    head = HEADS["attentive" if len(tokens.token_shape) == 2 else "linear"]
    results = [run_sweep(head, source, lambda s=source: s, PROTOCOL) for source in (streamed, resident, streamed)]
    wanted = results[1]
    assert wanted.probe is not None
    for result in results:
        assert result.probe is not None
        for name, value in result.probe.state_dict().items():
            assert torch.equal(value, wanted.probe.state_dict()[name]), name
        assert [score.validation for score in result.scores] == [score.validation for score in wanted.scores]
        assert torch.equal(result.test_logits, wanted.test_logits)  # type: ignore[arg-type]
    assert not readers()


def test_an_order_holds_every_row_once_and_depends_on_seed_and_epoch_only(cache: SplitTokens) -> None:
    streamed = streamed_from(tokens_of(cache, "linear"))
    rows = torch.arange(0, NUM_ROWS, 2)
    first = streamed.order(rows, 0, 0)
    assert torch.equal(first.sort().values, rows)
    assert torch.equal(first, streamed_from(tokens_of(cache, "attentive")).order(rows.flip(0), 0, 0))
    assert not torch.equal(first, streamed.order(rows, 0, 1))
    assert not torch.equal(first, streamed.order(rows, 1, 0))


def test_an_order_does_not_depend_on_where_the_rows_lie(cache: SplitTokens) -> None:
    """Rows of several stores are streamed as those of one."""
    tokens, elsewhere = tokens_of(cache, "linear"), tokens_of(cache, "linear")
    rows, reading_order = torch.arange(0, NUM_ROWS, 3), torch.randperm(NUM_ROWS)
    elsewhere.stored_rows = torch.randint(NUM_ROWS, (NUM_ROWS,))
    tokens.reading_order = elsewhere.reading_order = reading_order
    first, second = streamed_from(tokens), streamed_from(elsewhere)
    assert torch.equal(first.order(rows, 0, 1), second.order(rows, 0, 1))
    for read, batch in second.stream(second.order(rows, 0, 1).split(70)):
        assert torch.equal(batch, elsewhere.take(read))


def test_what_is_read_in_another_order_is_answered_in_the_order_of_the_rows(tokens: CachedTokens) -> None:
    """Validation and test scores, and attention."""
    streamed = streamed_from(tokens)
    head = HEADS["attentive" if len(tokens.token_shape) == 2 else "linear"]
    resident = InOrder(tokens.in_memory().tokens, streamed)
    wanted = run_sweep(head, resident, lambda: resident, PROTOCOL)
    mixed = streamed_from(tokens)
    mixed.reading_order = torch.randperm(NUM_ROWS)
    mixed.order = streamed.order  # type: ignore[method-assign]
    result = run_sweep(head, mixed, lambda: mixed, PROTOCOL)
    assert [score.validation for score in result.scores] == [score.validation for score in wanted.scores]
    torch.testing.assert_close(result.test_logits, wanted.test_logits)
    if isinstance(wanted.probe, FusionHead):
        one, other = (
            attention_statistics(wanted.probe, resident, GROUPS),
            attention_statistics(wanted.probe, mixed, GROUPS),
        )
        for name in ("mass", "entropy", "mass_80", "mass_of_token"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_a_buffer_mixes_stretches_from_all_over_the_store(cache: SplitTokens) -> None:
    streamed = streamed_from(tokens_of(cache, "linear"))
    assert streamed.stretches == Stretches(rows=15, in_buffer=16, spread=True)  # the store is sorted by class
    for in_one_buffer in streamed.order(torch.arange(NUM_ROWS), 0, 0).split(15 * 16):
        assert len(torch.unique(in_one_buffer // 15)) == 16
        assert set((in_one_buffer // (NUM_ROWS // 16)).tolist()) == set(range(16))
        assert set(streamed.targets[in_one_buffer].tolist()) == {0, 1, 2}


def test_a_trainer_that_stops_early_ends_the_reading(tokens: CachedTokens) -> None:
    stream = read_batches(streamed_from(tokens), torch.arange(NUM_ROWS).split(50))
    rows, first = next(stream)
    assert torch.equal(first, tokens.take(rows))
    assert readers()
    stream.close()
    assert not readers()


def test_a_trainer_that_raises_ends_the_reading(cache: SplitTokens) -> None:
    def fail(_: object) -> None:
        raise KeyboardInterrupt

    source = streamed_from(tokens_of(cache, "linear"))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(HEADS["linear"], source, lambda: source, PROTOCOL, on_event=fail)
    assert not readers()


def test_what_goes_wrong_while_reading_is_raised_in_the_trainer(
    tokens: CachedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = tokens.gather

    def fail_at_row_7(rows: torch.Tensor, *, once: bool = False) -> Iterator[torch.Tensor]:
        if 7 in rows:
            raise OSError("the disk is gone")
        return gather(rows, once=once)

    monkeypatch.setattr(tokens, "gather", fail_at_row_7)
    source = StreamedTokens(tokens, buffer_rows=1)
    stream = source.stream([torch.arange(5), torch.arange(5, 10), torch.arange(5, 10)])
    with pytest.raises(OSError, match="the disk is gone"):
        list(stream)
    assert not readers()


def test_what_goes_wrong_while_batches_are_made_is_raised_in_the_trainer(cache: SplitTokens) -> None:
    def batches() -> Iterator[torch.Tensor]:
        yield torch.arange(5)
        raise RuntimeError("no more")

    stream = streamed_from(tokens_of(cache, "linear")).stream(batches())
    with pytest.raises(RuntimeError, match="no more"):
        list(stream)
    assert not readers()


def test_a_batch_may_be_written_into_without_harm_to_the_next(tokens: CachedTokens) -> None:
    for source in (streamed_from(tokens), kept_pages(streamed_from(tokens))):
        order, read = source.order(torch.arange(NUM_ROWS), 0, 0), 0
        for rows, batch in read_batches(source, order.split(70)):
            assert torch.equal(batch, tokens.take(rows))
            assert torch.equal(rows, order[read : read + 70])
            read += len(rows)
            batch.fill_(torch.nan)  # the padding of narrow levels too
        assert read == NUM_ROWS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_DATA")
@pytest.mark.parametrize(
    "probe", ["linear", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("attentive", "cae", "simpool"))]
)
def test_memory_stays_under_the_budget_for_a_store_ten_times_larger(tmp_path: Path, probe: str) -> None:
    budget_bytes = 64_000_000 if probe == "linear" else 80_000_000
    answer = starved.train(tmp_path, [probe], budget_bytes, 10 * budget_bytes // starved.ROW_BYTES)
    assert answer["tokens"] == ["streamed"]
    assert answer["accuracies"] == [pytest.approx(1, abs=0.1)]
    assert 0 < answer["peak_bytes"] <= answer["planned_bytes"] <= budget_bytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_DATA")
def test_ridge_stays_under_a_budget_that_its_features_exceed(tmp_path: Path) -> None:
    budget_bytes = 400_000_000
    answer = starved.train(tmp_path, ["ridge"], budget_bytes, 2 * budget_bytes // (4 * 16 * starved.WIDTH))
    assert answer["tokens"] == ["streamed"]
    assert answer["accuracies"] == [pytest.approx(1, abs=0.1)]
    assert 0 < answer["peak_bytes"] <= answer["planned_bytes"] <= budget_bytes


def test_a_buffer_waits_for_the_stream_that_copies_it_whatever_the_current_device_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event on another GPU's stream would be over at once, and the buffer filled while it is still copied."""
    calls: list[Any] = []

    class Event:
        def record(self, stream: Any) -> None:
            calls.append(("record", stream))

        def synchronize(self) -> None:
            calls.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    buffer = _Buffer(torch.device("cuda:1"))
    buffer.give_back()
    buffer.wait()
    assert calls == [("record", "stream of cuda:1"), "synchronize"]
