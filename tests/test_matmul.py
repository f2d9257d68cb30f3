"""Matmul precision: which factors are rounded, and what stays exact."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager

import pytest
import torch
from absent_gpu import absent_gpu
from fits import GRID, PROTOCOL, ROWS, largest_difference, make_probe, make_source
from messages import raises
from torch import Tensor

from layerbank.probes import (
    AttentiveBank,
    Bank,
    LinearBank,
    Setting,
    SettingError,
    TrainingProtocol,
    balanced_accuracy,
    fast_exact_matmul,
    fit_bank,
)
from layerbank.probes.evaluate import compute_logits
from layerbank.probes.matmul import ONE_DNN_FROM_BYTES, Matmul, one_dnn_is_exact, resolve_compute

CPU = torch.device("cpu")
FINE = 1 + 2**-12  # of which bfloat16 keeps 1, and TF32 too


def make_bank(kind: str, compute: str) -> Bank:
    probes = [make_probe(kind, 0)] * len(GRID)
    if kind == "linear":
        return LinearBank(probes, compute=compute)
    rates = [setting.dropout for setting in GRID]
    return AttentiveBank(probes, rates, compute=compute, group_size=3, chunk_size=16)


def one_step(bank: Bank, kind: str) -> dict[str, Tensor]:
    source = make_source(kind)
    noise = {4: torch.rand(200, 5, 4, generator=torch.Generator().manual_seed(0))}
    bank.compute_gradients(source.tokens, source.targets, torch.full((200,), 1 / 200), noise, source.task)
    return {f"{number} {name}": grad for number, stack in enumerate(bank.stacks) for name, grad in stack.grads.items()}


def products_of(matmul: Matmul, a: Tensor, b: Tensor) -> list[Tensor]:
    """Each way to a product, in float32."""
    matrices, batches = torch.empty(3, 64, 64), torch.empty(3, 2, 64, 64)
    with matmul.active():
        matmul.multiply(a, b, out=matrices[0])
        matmul.multiply(a.expand(2, 64, 64), b.expand(2, 64, 64), out=batches[0])
        matmul.accumulate(matrices[1].fill_(torch.nan), a, b, first=True)
        matmul.accumulate(matrices[2].fill_(1), a, b, first=False)
        matmul.accumulate(batches[1].fill_(torch.nan), a.expand(2, 64, 64), b.expand(2, 64, 64), first=True)
        matmul.accumulate(batches[2].fill_(1), a.expand(2, 64, 64), b.expand(2, 64, 64), first=False)
    return [matrices[0], batches[0], matrices[1], batches[1], matrices[2] - 1, batches[2] - 1]


@pytest.mark.parametrize(("compute", "kept"), [("float32", FINE), ("bfloat16", 1.0)])
@pytest.mark.parametrize("around", ["highest", "high", "medium"])
def test_factors_are_rounded_as_asked_whatever_the_program_around_has_set(
    compute: str, kept: float, around: str
) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(around)
    try:
        for product in products_of(Matmul(compute, torch.float32, CPU), torch.full((64, 64), FINE), torch.ones(64, 64)):
            assert product.eq(64 * kept).all()
        assert torch.get_float32_matmul_precision() == around
    finally:
        torch.set_float32_matmul_precision(before)


def test_sums_of_rounded_factors_are_float32() -> None:
    """Of 64 ones and 64 numbers of 2^-8, a sum in bfloat16 would keep the ones."""
    a = torch.ones(64, 64)
    a[:, 32:] = 2**-8
    for product in products_of(Matmul("bfloat16", torch.float32, CPU), a, torch.ones(64, 64)):
        assert product.eq(32 + 32 * 2**-8).all()


def test_the_setting_of_torch_comes_back_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError), Matmul("float32", torch.float32, CPU).active():
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert torch.get_float32_matmul_precision() == before


def test_one_dnn_is_believed_only_where_it_keeps_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounding(*factors: Tensor) -> Tensor:
        return torch.matmul(*(factor.bfloat16().float() for factor in factors))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "bmm", rounding)
        assert not one_dnn_is_exact.__wrapped__()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not one_dnn_is_exact.__wrapped__()


@pytest.mark.parametrize(
    ("device", "exact", "seen"), [("cpu", True, "medium"), ("cpu", False, "highest"), ("cuda", True, "highest")]
)
def test_products_of_models_are_exact_on_a_cpu_by_one_dnn_where_that_is_exact_on_a_gpu_without_tf32(
    device: str, exact: bool, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerbank.probes.matmul.one_dnn_is_exact", lambda: exact)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), fast_exact_matmul(torch.device(device)):
            assert torch.get_float32_matmul_precision() == seen
            assert torch.backends.cudnn.allow_tf32 == (device == "cpu"), "the patch embedding is a convolution"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32, "torch's default, as it was before"
    finally:
        torch.set_float32_matmul_precision(before)


BACKENDS_SET_BY_PROGRAM = """
import torch

cuda, one_dnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
cuda.fp32_precision, one_dnn.fp32_precision = {around}
from layerbank.probes import matmul

matmul.one_dnn_is_exact = lambda: {exact}
with matmul.fast_exact_matmul(torch.device("cpu")):
    print(one_dnn.fp32_precision)
with matmul.Matmul("float32", torch.float32, torch.device("cpu")).active():
    print(cuda.fp32_precision, one_dnn.fp32_precision)
convolutions = torch.backends.cudnn.conv
with matmul.fast_exact_matmul(torch.device("cuda")):
    print(cuda.fp32_precision, convolutions.fp32_precision)
print(convolutions.fp32_precision)
print((cuda.fp32_precision, one_dnn.fp32_precision) == {around})
"""


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 and later have this setting"
)
@pytest.mark.parametrize("around", [("tf32", "bf16"), ("tf32", "ieee")])
@pytest.mark.parametrize("exact", [False, True])
def test_a_program_may_set_the_precision_of_every_backend_itself(around: tuple[str, str], exact: bool) -> None:
    """torch then refuses to name a common precision; in a separate process, since the setting cannot be undone."""
    done = subprocess.run(
        [sys.executable, "-c", BACKENDS_SET_BY_PROGRAM.format(around=around, exact=exact)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["bf16" if exact else "ieee", "ieee ieee", "ieee ieee", "tf32", "True"]


@pytest.mark.parametrize("exact", [False, True])
def test_with_and_without_one_dnn_the_gradients_are_the_same(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = one_step(make_bank("attentive", "float32"), "attentive")
    monkeypatch.setattr("layerbank.probes.matmul.one_dnn_is_exact", lambda: exact)
    for name, gradient in one_step(make_bank("attentive", "float32"), "attentive").items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_gradients_of_rounded_factors_are_those_of_float32_within_the_rounding(kind: str) -> None:
    """A factor is off by 2^-9 of itself at most; a gradient is a product of a handful."""
    exact, rounded = (one_step(make_bank(kind, compute), kind) for compute in ("float32", "bfloat16"))
    for name, gradient in exact.items():
        assert (rounded[name] - gradient).norm() <= 2**-6 * gradient.norm(), name
        assert rounded[name].dtype == torch.float32
    assert any(not torch.equal(rounded[name], gradient) for name, gradient in exact.items())


def test_parameters_without_effect_have_gradient_zero_with_rounded_factors_too() -> None:
    zero = {
        name
        for name, gradient in one_step(make_bank("attentive", "bfloat16"), "attentive").items()
        if not gradient.any()
    }
    assert {name.split()[1] for name in zero} == {"norm_k.bias", "proj.bias", "norm_v.bias"}
    assert sum("norm_v.bias" in name for name in zero) == 1  # of the group without dropout


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_a_probe_that_diverges_changes_no_bit_of_its_neighbours_with_rounded_factors_too(kind: str) -> None:
    wild = [*GRID[:3], Setting(lr=1e38, weight_decay=1.0, dropout=0.3), *GRID[4:]]
    banks = [make_bank(kind, "bfloat16") for _ in range(2)]
    calm, outcome = (
        fit_bank(bank, make_source(kind), ROWS, settings, PROTOCOL)
        for bank, settings in zip(banks, (GRID, wild), strict=True)
    )
    assert not calm.diverged.any()
    assert outcome.diverged.nonzero().flatten().tolist() == [3]
    for index in (0, 1, 2, 4, 5, 6, 7):
        untouched, beside = (bank.probe(index).state_dict() for bank in banks)
        assert all(torch.equal(untouched[name], beside[name]) for name in untouched)


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_probes_trained_on_rounded_factors_are_as_good(kind: str) -> None:
    """Not the same weights, but within two of the 200 samples in accuracy, and master weights of float32."""
    source, accuracies = make_source(kind), []
    banks = [make_bank(kind, compute) for compute in ("float32", "bfloat16")]
    for bank in banks:
        fit_bank(bank, source, ROWS, GRID, PROTOCOL)
        (logits,) = compute_logits(bank, source, ROWS)
        accuracies.append(balanced_accuracy(logits.argmax(2), source.targets, 4))
        assert all(value.dtype == torch.float32 for stack in bank.stacks for value in stack.values.values())
    assert (accuracies[0] - accuracies[1]).abs().max() <= 0.01
    assert 0 < largest_difference(banks[1].probe(1), banks[0].probe(1)) < 0.1


def precisions_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precision at every call of a torch product, if oneDNN is exact: "medium" means oneDNN, "highest" MKL."""
    seen: list[str] = []
    multiply = getattr(torch, name)

    def listen(*factors: Tensor, out: Tensor) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        product: Tensor = multiply(*factors, out=out)
        return product

    monkeypatch.setattr("layerbank.probes.matmul.one_dnn_is_exact", lambda: True)
    monkeypatch.setattr(torch, name, listen)
    return seen


def test_one_dnn_computes_large_products_and_none_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code for a kind of product lives as long as the process, so it must be small beside the product."""
    seen = precisions_of("mm", monkeypatch)
    matmul, width = Matmul("float32", torch.float32, CPU), ONE_DNN_FROM_BYTES // 4
    for training in (True, False):
        with matmul.active(training=training):
            for size in (width, width // 2):
                matmul.multiply(torch.ones(1, 1), torch.ones(1, size // 2), out=torch.empty(1, size // 2))
    assert seen == ["medium", "highest", "highest", "highest"]


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_a_bank_uses_the_products_for_training_only_in_training(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    choose = Matmul.active

    def listen(self: Matmul, *, training: bool = True) -> AbstractContextManager[None]:
        seen.append(training)
        return choose(self, training=training)

    monkeypatch.setattr(Matmul, "active", listen)
    bank = make_bank(kind, "float32")
    one_step(bank, kind)
    assert seen
    assert all(seen)
    seen.clear()
    list(compute_logits(bank, make_source(kind), ROWS[:8]))
    assert seen
    assert not any(seen)


def test_interleaved_factors_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN would copy them first, at many times the cost of the product."""
    seen = precisions_of("bmm", monkeypatch)
    matmul, a, b = Matmul("float32", torch.float32, CPU), torch.rand(64, 64, 128), torch.rand(128, 64, 64)
    with matmul.active():
        matmul.multiply(b, torch.rand(128, 64, 64), out=torch.empty(128, 64, 64))
        in_place = matmul.multiply(b, a.permute(2, 0, 1), out=torch.empty(128, 64, 64))
    assert seen == ["medium", "highest"]
    torch.testing.assert_close(in_place, b @ a.permute(2, 0, 1))


def test_a_torch_without_float32_output_gets_rounded_factors_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 keeps the 7 bits of a bfloat16, so these are the same numbers."""
    given: list[torch.dtype] = []

    def listen(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        given.extend((a.dtype, b.dtype))
        return out

    with absent_gpu(monkeypatch):
        matmul = Matmul("bfloat16", torch.float32, torch.device("cuda"))
        monkeypatch.setattr("layerbank.probes.matmul.has_float32_output", lambda: False)
        monkeypatch.setattr(torch, "mm", listen)
        a = torch.ones(4, 4, device="cuda")
        with matmul.active():
            matmul.multiply(a, a, out=torch.empty_like(a))
            assert torch.get_float32_matmul_precision() == "high"
    assert given == [torch.float32, torch.float32]


@pytest.mark.parametrize("compute", ["float32", "tf32", "bfloat16"])
def test_a_gpu_gets_factors_of_one_type_and_gives_float32(compute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated GPU: types, shapes and the precision of torch are checked, not the numbers."""
    seen: list[str] = []

    def record(precision: str) -> None:
        seen.append(precision)

    with absent_gpu(monkeypatch):
        matmul = Matmul(compute, torch.float32, torch.device("cuda"))
        a, b = torch.ones(2, 4, 4, device="cuda"), torch.ones(2, 4, 4, device="cuda")
        monkeypatch.setattr(torch, "set_float32_matmul_precision", record)
        with matmul.active():
            assert matmul.factor(a).dtype == (torch.bfloat16 if compute == "bfloat16" else torch.float32)
            assert matmul.multiply(a, b, out=torch.empty_like(a)).dtype == torch.float32
            kept = matmul.factors.empty("a factor", 2, 4, 4)
            assert matmul.multiply(matmul.factor(a), b, out=kept).dtype == matmul.factor(a).dtype
            matmul.accumulate(a[0], kept[0], b[0], first=False)
            matmul.accumulate(a, kept, b, first=False)
        assert seen[0] == ("highest" if compute == "float32" else "high")


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    with raises(
        "probes.unsupported_compute", SettingError, device="cpu", choices="auto, float32, bfloat16", compute="tf32"
    ):
        resolve_compute("tf32", "cpu")
    assert resolve_compute("auto", "cuda") == "tf32"
    assert resolve_compute("bfloat16", "cuda:1") == "bfloat16"
    with raises("probes.unsupported_compute", SettingError, device="cuda", choices="auto, float32, tf32, bfloat16"):
        resolve_compute("float16", "cuda")
    with raises(
        "probes.wrong_protocol", SettingError, rules="compute auto, float32, tf32, bfloat16", values="compute fp8"
    ):
        TrainingProtocol(compute="fp8")
