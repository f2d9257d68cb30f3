"""Heads that train in one pass have the results of training alone, to the last bit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from messages import raises
from sweeps import BLOCKS, HEADS, LINEAR, NARROW, SMALL, make_block_source
from torch import Tensor

from layerbank.probes import (
    ArraySource,
    Candidate,
    LinearBank,
    LinearProbe,
    Multiclass,
    Progress,
    SettingError,
    SweepResult,
    plan_group,
    run_sweep,
    run_sweeps,
)
from layerbank.probes.banks.memory_trace import count_bytes
from layerbank.probes.data.rows import Reading, add_jitter, columns_of, draw_jitter
from layerbank.probes.evaluate import measure
from layerbank.probes.fit import BankRun, attribute_time
from layerbank.probes.plan import plan_passes
from layerbank.probes.workspace import Workspace


class Streamed(ArraySource):
    """The same rows, read ahead in an order of their own."""

    def order(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(7 * seed + epoch))]

    def stream(self, batches: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in batches:
            yield rows, self.take(rows)


def streamed(source: ArraySource) -> Streamed:
    return Streamed(source.tokens, source.targets, source.task, blocks=source.blocks)


def never_open() -> ArraySource:
    raise AssertionError("the test images were opened")


def assert_same(one: SweepResult, other: SweepResult) -> None:
    assert one.scores == other.scores
    assert one.chosen == other.chosen
    assert one.probe is not None
    assert other.probe is not None
    wanted = other.probe.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in one.probe.state_dict().items())
    assert one.test_logits is not None
    assert other.test_logits is not None
    assert torch.equal(one.test_logits, other.test_logits)
    assert one.curves is not None
    assert other.curves is not None
    assert torch.equal(one.curves.losses, other.curves.losses)


@pytest.mark.parametrize("make", [lambda source: source, streamed], ids=["resident", "streamed"])
def test_heads_that_train_together_equal_heads_that_train_alone_to_the_last_bit(make: object) -> None:
    train, test = make(make_block_source(120, 0)), make(make_block_source(60, 1))  # type: ignore[operator]
    together = run_sweeps([[one] for one in HEADS.values()], train, lambda: test, SMALL)
    assert [result.head for result in together] == [one.head for one in HEADS.values()]
    for one, result in zip(HEADS.values(), together, strict=True):
        (alone,) = run_sweeps([[one]], train, lambda: test, SMALL)
        assert_same(result, alone)


@pytest.mark.parametrize("name", HEADS)
def test_a_source_that_holds_less_gives_the_same_bits(name: str) -> None:
    """The jitter of a block depends on neither what lies beside it nor where it lies."""
    one, whole, test = HEADS[name], make_block_source(120, 0), make_block_source(60, 1)
    assert one.blocks is not None

    def cut(source: ArraySource) -> ArraySource:
        blocks = tuple(block for block in reversed(BLOCKS) if block.name in (one.blocks or ()))
        columns = columns_of(BLOCKS)
        tokens = torch.cat([source.tokens[:, columns[block.name]] for block in blocks], 1)
        return ArraySource(tokens, source.targets, 3, blocks=blocks)

    (wanted,) = run_sweeps([[one]], whole, lambda: test, SMALL)
    (result,) = run_sweeps([[one]], cut(whole), lambda: cut(test), SMALL)
    assert_same(result, wanted)


def test_halving_in_company_is_halving_alone() -> None:
    train, test = make_block_source(120, 0), make_block_source(60, 1)
    protocol = replace(SMALL, sweep="halving")
    heads = [HEADS["alf"], HEADS["linear-all"]]
    for one, result in zip(heads, run_sweeps([[one] for one in heads], train, lambda: test, protocol), strict=True):
        (alone,) = run_sweeps([[one]], train, lambda: test, protocol)
        assert result.rungs == alone.rungs
        assert result.scores == alone.scores


def test_a_head_that_reads_everything_as_it_lies_reads_without_a_copy() -> None:
    rows = torch.randn(5, sum(block.size for block in BLOCKS))
    assert Reading(BLOCKS, flat=True).read(rows, None).data_ptr() == rows.data_ptr()  # type: ignore[arg-type]


def test_rows_are_read_once_for_all_heads_and_the_test_images_opened_once_and_last() -> None:
    train, test = make_block_source(120, 0), make_block_source(60, 1)
    taken: list[int] = []

    class Counted(ArraySource):
        def take(self, rows: Tensor) -> Tensor:
            taken.append(len(rows))
            return super().take(rows)

    def counted_rows(heads: Sequence[Candidate]) -> int:
        taken.clear()
        source = Counted(train.tokens, train.targets, 3, blocks=BLOCKS)
        run_sweeps([[one] for one in heads], source, lambda: opened.append(1) or test, SMALL)  # type: ignore[func-returns-value]
        return sum(taken)

    opened: list[int] = []
    assert counted_rows(list(HEADS.values())) == counted_rows([HEADS["alf"]])
    assert len(opened) == 2


def test_the_jitter_of_padding_is_that_of_the_padded_width_and_of_the_same_samples() -> None:
    rows = torch.zeros(2000, sum(block.size for block in BLOCKS))
    add_jitter(rows, SMALL, 3, BLOCKS)
    workspace = Workspace(torch.float32, torch.device("cpu"))
    jitter = draw_jitter(SMALL, 3, len(rows), workspace)
    read = Reading(BLOCKS, HEADS["alf"].blocks, flat=False).read(rows, workspace, jitter)
    padding = read[:, 2:, NARROW:]
    hit = rows[:, 0] != 0
    assert torch.equal(padding.flatten(1).ne(0).all(1), hit)
    assert torch.equal(padding.flatten(1).ne(0).any(1), hit)
    assert padding[hit].std().item() == pytest.approx(SMALL.jitter_std, rel=0.05)
    assert not Reading(BLOCKS, HEADS["alf"].blocks, flat=False).read(rows, workspace)[:, 2:, NARROW:].any()


def test_a_sweep_may_choose_among_heads_and_only_the_winner_is_trained_again() -> None:
    train, test = make_block_source(120, 0), make_block_source(60, 1)
    events: list[Progress] = []
    family = [HEADS["linear-cls"], HEADS["attn-last"], HEADS["alf"]]
    best, alf = run_sweeps([family, [HEADS["alf"]]], train, lambda: test, SMALL, on_event=events.append)
    alone = [run_sweeps([[one]], train, lambda: test, SMALL)[0] for one in family]
    assert best.candidate_scores == tuple(result.scores for result in alone)
    highest = max(result.validation or 0 for result in alone)
    winner = next(result for result in alone if result.validation == highest)
    assert (best.validation, best.head, best.candidate) == (highest, winner.head, alone.index(winner))
    assert_same(best, winner)
    assert_same(alf, alone[2])
    refits = {event.num_probes for event in events if event.phase == "refit"}
    assert refits == {2 if winner is not alone[2] else 1}
    trained = {event.num_probes for event in events if event.phase == "select"}
    assert trained == {4 + 8 + 8}  # alf, which both sweeps want, once


def test_what_does_not_fit_at_once_trains_in_several_passes_and_comes_out_the_same() -> None:
    train, test = make_block_source(120, 0), make_block_source(60, 1)
    heads = [HEADS["linear-all"], HEADS["attn-last"], HEADS["alf"]]
    whole = plan_group(heads, train, SMALL, None)
    assert whole.num_passes == 1
    less = plan_group(heads, train, SMALL, whole.total_bytes - 1)
    assert less.num_passes == 2
    assert less.total_bytes < whole.total_bytes
    events: list[Progress] = []
    parted = run_sweeps(
        [[one] for one in heads],
        train,
        lambda: test,
        SMALL,
        plan=less,
        on_event=events.append,
    )
    for result, wanted in zip(parted, run_sweeps([[one] for one in heads], train, lambda: test, SMALL), strict=True):
        assert_same(result, wanted)
    steps = [event.step for event in events if event.phase == "select"]
    assert steps == sorted(steps)
    assert steps[-1] == 2 * (parted[0].selection.num_steps if parted[0].selection else 0)


def test_the_outputs_on_the_test_images_are_part_of_the_plan_and_are_not_copied_to_be_scored() -> None:
    train, heads, num_tested = make_block_source(120, 0), [HEADS["linear-all"], HEADS["alf"]], 10_000_000
    without, plan = (plan_group(heads, train, SMALL, None, num_tested=count) for count in (0, num_tested))
    assert plan.least_bytes == without.least_bytes + 4 * num_tested * 3
    assert 4 * num_tested * 3 < plan.within(plan.least_bytes).total_bytes <= plan.least_bytes
    outputs, task = torch.randn(4096, 50), Multiclass(num_classes=50)
    peak_bytes, _ = count_bytes(lambda: measure(task, outputs, torch.arange(4096) % 50))
    assert peak_bytes < outputs.nbytes / 2


def test_progress_has_the_best_validation_score_so_far_and_the_rate() -> None:
    train, test = make_block_source(120, 0), make_block_source(60, 1)
    events: list[Progress] = []
    (result,) = run_sweeps(
        [[HEADS["linear-all"]]], train, lambda: test, replace(SMALL, sweep="halving"), on_event=events.append
    )
    select = [event for event in events if event.phase == "select"]
    assert select[0].best is None
    known = [event.best for event in select if event.best is not None]
    assert 0 < known[-1] <= 1
    assert [event.probe_steps_per_s for event in select if event.step == 0][:1] == [None]
    assert (select[-1].probe_steps_per_s or 0) > 0
    assert {event.best for event in events if event.phase == "refit"} == {result.validation}


def test_blocks_that_a_source_lacks_are_refused() -> None:
    unknown = Candidate(head=LINEAR, blocks=("final/cls", "final/grid3"))
    with raises(
        "probes.missing_blocks", SettingError, missing="final/grid3", blocks=", ".join(one.name for one in BLOCKS)
    ):
        run_sweeps([[unknown]], make_block_source(30, 0), never_open, SMALL)


def test_one_head_that_reads_whole_rows_is_a_sweep_of_one_candidate() -> None:
    train, test = make_block_source(120, 0), make_block_source(60, 1)
    result = run_sweep(LINEAR, train, lambda: test, SMALL)
    assert_same(result, run_sweeps([[Candidate(head=LINEAR)]], train, lambda: test, SMALL)[0])


def test_passes_hold_every_bank_once_in_order() -> None:
    sizes = [3, 30, 5, 1, 1, 9, 2]
    for budget in (5, 6, 20, None):
        passes = plan_passes(sizes, budget)
        assert [place for places in passes for place in places] == list(range(7))
        for places in passes:
            assert budget is None or len(places) == 1 or sum(sizes[place] for place in places) <= budget


def test_wall_time_of_a_pass_is_attributed_in_proportion_to_the_own_work_of_banks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("layerbank.probes.fit.time.perf_counter", lambda: now_s[0])
    bank, reading = LinearBank([LinearProbe(4, 3)]), Reading(BLOCKS, flat=True)
    light, heavy = BankRun(bank=bank, reading=reading), BankRun(bank=bank, reading=reading, seconds={"select": 1.0})
    with attribute_time("select", [light, heavy]):
        for _ in range(2):
            now_s[0] += 2.0  # rows are gathered for both
            for run, own_s in ((light, 0.5), (heavy, 1.5)):
                with run.timed():
                    now_s[0] += own_s
    assert (light.seconds, heavy.seconds) == ({"select": 2.0}, {"select": 1.0 + 6.0})
    assert light.own_s == heavy.own_s == 0
    with attribute_time("test", [light, heavy]):
        now_s[0] += 4.0
    assert light.seconds["test"] == heavy.seconds["test"] == 2.0


def test_seconds_of_sweeps_that_train_together_are_no_more_than_their_wall_time() -> None:
    candidates = [HEADS["linear-cls"], HEADS["alf"]]
    start_s = time.perf_counter()
    results = run_sweeps(
        [*([one] for one in candidates), candidates], make_block_source(60, 1), lambda: make_block_source(30, 2), SMALL
    )
    wall_s = time.perf_counter() - start_s
    assert all(list(result.seconds) == ["select", "validate", "refit", "test"] for result in results)
    assert all(second > 0 for result in results for second in result.seconds.values())
    assert sum(sum(result.seconds.values()) for result in results) <= wall_s
    of_both = results[2].seconds["select"]  # half of what each of the others' candidates took
    assert of_both == pytest.approx(results[0].seconds["select"] + results[1].seconds["select"])
