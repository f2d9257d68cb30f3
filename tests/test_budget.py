"""Budgets: a plan is an upper bound of the memory of training, and a grid in several banks is the grid in one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from messages import raises
from sweeps import ATTENTIVE, LINEAR, SMALL, make_block_source, make_source
from sweeps import HEADS as CANDIDATES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from layerbank.probes import (
    Bank,
    Head,
    LinearBank,
    LinearProbe,
    MemoryPlan,
    Progress,
    Setting,
    SettingError,
    Sizes,
    plan_group,
    plan_memory,
    run_sweep,
    sizes_of,
)
from layerbank.probes.banks.bank import CHUNK_SIZE, GROUP_SIZE, AttentiveBank
from layerbank.probes.banks.budget import (
    CODE_BYTES,
    FLOAT_BYTES,
    _code_bytes,
    _num_parameters,
    _plans,
    _scratch_floats,
)
from layerbank.probes.banks.make_bank import make_bank
from layerbank.probes.banks.memory_trace import count_bytes
from layerbank.probes.heads import HEADS, make_probe
from layerbank.probes.heads.attentive import AttentiveProbe
from layerbank.probes.protocol import PAPER
from layerbank.probes.tasks.multiclass import TASK, Multiclass

MULTIPLY = ("mm", "bmm", "addmm", "baddbmm")
PAPER_SIZES = sizes_of(Head(kind="attentive", num_heads=24), (24, 768), Multiclass(num_classes=47), 5000, PAPER)


def head_of(kind: str) -> Head:
    return Head(kind=kind, num_heads=6 if HEADS[kind].has_heads else 0, num_levels=3 if HEADS[kind].has_levels else 0)


def test_without_a_budget_everything_trains_at_once() -> None:
    plan = plan_memory(PAPER_SIZES)
    assert (plan.num_banks, plan.probes_at_once, plan.group_size) == (1, 63, GROUP_SIZE)
    assert plan.chunk_size == PAPER_SIZES.batch_size > CHUNK_SIZE


def test_less_memory_means_smaller_groups_then_chunks_and_then_more_banks() -> None:
    whole = plan_memory(PAPER_SIZES)
    seen: list[MemoryPlan] = []
    for tenths in range(10, 1, -1):
        plan = plan_memory(PAPER_SIZES, whole.total_bytes * tenths // 10)
        assert plan.total_bytes <= whole.total_bytes * tenths // 10
        seen.append(plan)
    assert [plan.num_banks for plan in seen] == sorted(plan.num_banks for plan in seen)
    assert seen[0].num_banks == 1
    assert seen[-1].num_banks > 3
    shapes = list(dict.fromkeys((plan.group_size, plan.chunk_size) for plan in _plans(PAPER_SIZES)))
    batch = PAPER_SIZES.batch_size
    assert shapes[:6] == [(7, batch), (4, batch), (2, batch), (1, batch), (7, CHUNK_SIZE), (7, CHUNK_SIZE // 2)]
    smaller = plan_memory(PAPER_SIZES, whole.total_bytes - 1)
    assert smaller.num_banks == 1
    assert (smaller.group_size, smaller.chunk_size) < (GROUP_SIZE, batch)


TRAINED = [name for name, head_type in HEADS.items() if not head_type.is_solved]


@pytest.mark.parametrize("kind", TRAINED)
def test_parameters_are_counted_as_the_modules_have_them(kind: str) -> None:
    head, shape = head_of(kind), (48,) if kind == "linear" else (6, 48)
    sizes = sizes_of(head, shape, Multiclass(num_classes=7), 100, PAPER)
    assert _num_parameters(sizes) == sum(parameter.numel() for parameter in make_probe(head, shape, 7).parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_step_of_the_folded_bank_takes_at_most_45_mib_a_probe_beside_weights_and_gradients(dropout: float) -> None:
    """At the paper's sizes, T 24, D 768, H 24, a batch of 200 and its normalised copy among them: counted, nothing computed."""
    bank = AttentiveBank([AttentiveProbe(768, 24, 47)] * 7, [dropout] * 7, device="meta")
    tokens, weights = torch.empty(200, 24, 768, device="meta"), torch.empty(200, device="meta")
    noise = {24: torch.empty(200, 24, 24, device="meta")}
    labels = torch.empty(200, dtype=torch.int64, device="meta")
    peak_bytes, _ = count_bytes(lambda: bank.compute_gradients(tokens, labels, weights, noise, TASK))
    assert bank.scratch_bytes < peak_bytes
    assert (peak_bytes + tokens.nbytes) / 7 <= 45 * 2**20


@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind != "linear"])
def test_a_memory_trace_without_values_counts_what_one_with_values_counts_and_the_plan_is_no_less(kind: str) -> None:
    head, counted = head_of(kind), []
    for device in ("cpu", "meta"):
        probe = make_probe(head, (6, 48), 7)
        plan = plan_memory(sizes_of(head, (6, 48), Multiclass(num_classes=7), 300, replace(PAPER, batch_size=256)))
        bank = make_bank(probe, [Setting(lr=0.1, weight_decay=0.0)], plan, device=device)
        batch = [torch.zeros(60, 6, 48), torch.zeros(60, dtype=torch.int64), torch.full((60,), 1 / 60)]
        tokens, labels, weights = (value.to(device) for value in batch)
        counted.append(
            count_bytes(lambda b=bank, t=tokens, n=labels, w=weights: b.compute_gradients(t, n, w, {}, TASK))[0]
        )
    assert counted[0] == pytest.approx(counted[1], rel=0.02)
    sizes = Sizes(
        head=head, token_shape=(6, 48), task=Multiclass(num_classes=7), num_held_out=0, num_probes=1, batch_size=60
    )
    assert counted[0] <= FLOAT_BYTES * _scratch_floats(sizes, 1, plan.group_size, plan.chunk_size) + 3 * tokens.nbytes


def test_less_memory_means_chunks_for_heads_that_allow_them_and_more_banks_for_the_others() -> None:
    sizes = {
        kind: sizes_of(head_of(kind), (48, 96), Multiclass(num_classes=7), 5000, PAPER) for kind in ("simpool", "ep")
    }
    whole = {kind: plan_memory(of_kind) for kind, of_kind in sizes.items()}
    assert (whole["simpool"].chunk_size, whole["ep"].chunk_size) == (CHUNK_SIZE, 0)
    smaller = plan_memory(sizes["simpool"], whole["simpool"].total_bytes - 1)
    assert (smaller.num_banks, smaller.chunk_size) == (1, CHUNK_SIZE // 2)
    assert plan_memory(sizes["ep"], whole["ep"].total_bytes - 1).num_banks == 2
    with raises("probes.too_little_memory", SettingError, token_shape=(48, 96), given="30 MB"):
        plan_memory(sizes["ep"], 30_000_000)


@pytest.mark.parametrize("num_probes", [1, 2, 7, 9])
@pytest.mark.parametrize("batch_size", [40, 300])
def test_the_plan_is_an_upper_bound_of_the_scratch_memory_of_a_bank(num_probes: int, batch_size: int) -> None:
    sizes = Sizes(
        head=Head(kind="attentive", num_heads=6),
        token_shape=(5, 48),
        task=Multiclass(num_classes=7),
        num_held_out=0,
        num_probes=num_probes,
        batch_size=batch_size,
    )
    tokens, labels = torch.randn(batch_size, 5, 48), torch.arange(batch_size) % 7
    weights = torch.full((batch_size,), 1 / batch_size)
    for group_size, chunk_size in [(GROUP_SIZE, CHUNK_SIZE), (GROUP_SIZE, 32), (2, 64), (1, 32)]:
        bank = AttentiveBank(
            [AttentiveProbe(48, 6, 7)] * num_probes, [0.1] * num_probes, group_size=group_size, chunk_size=chunk_size
        )
        with torch.no_grad():
            bank.compute_gradients(tokens, labels, weights, {6: torch.rand(batch_size, 5, 6)}, TASK)
            bank.logits(tokens)
        planned_bytes = FLOAT_BYTES * _scratch_floats(sizes, num_probes, group_size, chunk_size)
        assert bank.scratch_bytes <= planned_bytes


@pytest.mark.parametrize("head", [ATTENTIVE, LINEAR])
def test_a_grid_in_several_banks_chooses_and_trains_what_the_grid_in_one_does(head: Head) -> None:
    protocol = replace(SMALL, lrs=(1e-2, 1e-3))  # at lr 0.1 training is chaotic: rounding decides
    train, test = make_source(head, 150, 0), make_source(head, 60, 1)
    whole = run_sweep(head, train, lambda: test, protocol)
    sizes = sizes_of(head, train.token_shape, Multiclass(num_classes=3), 150, protocol)
    enough_for_two = min(plan.total_bytes for plan in _plans(sizes) if plan.probes_at_once == 2)
    events: list[Progress] = []
    parted = run_sweep(head, train, lambda: test, protocol, memory_bytes=enough_for_two, on_event=events.append)
    num_banks = len(whole.scores) // 2
    assert whole.memory.num_banks == 1
    assert (parted.memory.num_banks, parted.memory.probes_at_once) == (num_banks, 2)
    assert [score.setting for score in parted.scores] == [score.setting for score in whole.scores]
    for one, other in zip(parted.scores, whole.scores, strict=True):
        assert one.validation == pytest.approx(other.validation, abs=0.001)
    steps = [event.step for event in events if event.phase == "select"]
    assert steps == sorted(steps)
    assert steps[-1] == num_banks * parted.selection.num_steps
    assert list(dict.fromkeys(event.phase for event in events)) == ["select", "validate", "refit", "test"]
    assert parted.chosen == whole.chosen
    assert parted.probe is not None
    assert whole.probe is not None
    wanted = whole.probe.state_dict()
    for name, value in parted.probe.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-4)


def test_a_budget_too_small_for_one_probe_is_refused_with_the_memory_that_is_needed() -> None:
    source = make_source(LINEAR, 150, 0)
    with raises("probes.too_little_memory", SettingError, needed="9 MB", token_shape=(64,), given="1 MB"):
        run_sweep(LINEAR, source, lambda: source, SMALL, memory_bytes=1_000_000)


def test_a_refusal_of_heads_that_train_together_counts_the_rows_that_they_share() -> None:
    source, candidates = make_block_source(150, 0), [CANDIDATES["linear-cls"], CANDIDATES["alf"]]
    least_bytes = plan_group(candidates, source, SMALL, None).least_bytes
    assert plan_group(candidates, source, SMALL, least_bytes).total_bytes <= least_bytes
    with raises("probes.too_little_memory", SettingError):
        plan_group(candidates, source, SMALL, least_bytes - 1)


class _Listener(TorchDispatchMode):
    """Collects the kinds of products that oneDNN computes: operation, shapes and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[object] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.get_float32_matmul_precision() == "medium" and func.overloadpacket.__name__.strip("_") in MULTIPLY:
            factors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            self.kinds.add((func, *((one.shape, one.stride()) for one in factors)))
        return func(*args, **kwargs)


@pytest.mark.parametrize("kind", ["attentive", "linear"])
@pytest.mark.parametrize(("group_size", "chunk_size", "num_probes"), [(7, 10**6, 9), (7, 128, 9), (4, 64, 3)])
def test_the_plan_includes_the_code_that_one_dnn_compiles_for_each_kind_of_product(
    kind: str, group_size: int, chunk_size: int, num_probes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN keeps the code of each; the grid, then the final training, each with a last batch of another size."""
    monkeypatch.setattr("layerbank.probes.matmul.one_dnn_is_exact", lambda: True)
    shape = (24, 384) if kind == "attentive" else (2048,)
    head = Head(kind=kind, num_heads=24 if kind == "attentive" else 0)
    sizes = replace(
        sizes_of(head, shape, Multiclass(num_classes=47), 1000, PAPER), num_probes=num_probes, batch_size=300
    )
    with _Listener() as listener, torch.no_grad():
        for probes, batches in ((num_probes, (300, 260)), (1, (300, 280))):
            if kind == "linear":
                bank: Bank = LinearBank([LinearProbe(2048, 47)] * probes, device="meta")
            else:
                settings = {"group_size": group_size, "chunk_size": chunk_size}
                bank = AttentiveBank([AttentiveProbe(384, 24, 47)] * probes, [0.0] * probes, device="meta", **settings)
            for num_images in batches:
                tokens, weights = (torch.empty(num_images, *of, device="meta") for of in (shape, ()))
                bank.compute_gradients(
                    tokens, torch.empty(num_images, dtype=torch.int64, device="meta"), weights, {}, TASK
                )
    kept_bytes = CODE_BYTES * len(listener.kinds)
    assert 0 < kept_bytes <= _code_bytes(sizes, num_probes, group_size, chunk_size)
