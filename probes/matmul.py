"""Matrix products in the requested precision; all other arithmetic of a bank is float32 (or float64, if the bank is).

    float32    factors as they are
    tf32       a GPU rounds the factors to 10 mantissa bits
    bfloat16   factors are rounded to 7 mantissa bits, and tensors that are only used as factors are stored so

Sums are float32 in each. Weights, moments, softmax, BatchNorm, classifier and loss are float32; on a GPU the product of the
classifier uses TF32 with bfloat16 too. A CPU multiplies rounded factors as float32: the same numbers, no faster.

A CPU has two libraries. On AMD, MKL (torch's default) runs at half the speed of oneDNN, which torch uses for float32 only at
"medium" precision. With AMX units "medium" means bfloat16; without, oneDNN is as exact as MKL. So a trial product tells once
whether factors lose bits, and oneDNN is used where they do not. oneDNN compiles code for each size of a product and keeps it as
long as the process lives, 0.4 to 0.6 MB each. So small products, which need little more memory than their code, use MKL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .errors import SettingError
from .workspace import Workspace

COMPUTES = ("float32", "tf32", "bfloat16")
ONE_DNN_FROM_BYTES = 2 << 20  # size of factors and product together; smaller products use MKL


def resolve_compute(compute: str, device: torch.device | str) -> str:
    """The matmul precision on a device: "auto" is tf32 on a GPU, float32 elsewhere.

    Raises:
        SettingError: the precision is unknown, or the device does not support it.

    >>> resolve_compute("auto", "cpu")
    'float32'
    """
    kind = str(device).partition(":")[0]
    on_gpu = kind == "cuda"
    if compute == "auto":
        return "tf32" if on_gpu else "float32"
    possible = [one for one in COMPUTES if on_gpu or one != "tf32"]
    if compute not in possible:
        raise SettingError(
            "probes.unsupported_compute", compute=compute, device=kind, choices=", ".join(["auto", *possible])
        )
    return compute


@cache
def one_dnn_is_exact() -> bool:
    """Whether oneDNN on this CPU keeps all bits of float32 factors at "medium" precision.

    The trial factor is 1 + 2^-12, of which bfloat16 keeps 1.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    factor, ones = torch.full((2, 128, 128), 1 + 2**-12), torch.ones(2, 128, 128)
    with _precision("medium"):
        products = torch.mm(factor[0], ones[0]), torch.bmm(factor, ones)
    return all(bool((product == 128 + 2**-5).all()) for product in products)


@cache
def has_float32_output() -> bool:
    """Whether this torch multiplies bfloat16 factors into a float32 product: from 2.8 on.

    Older versions get the rounded factors as float32, which TF32 keeps as they are: the same numbers for more memory traffic.
    """
    return hasattr(torch.ops.aten.mm, "dtype_out")


class Matmul:
    """Matrix products of a bank, written into preallocated memory.

    Args:
        compute: one of `COMPUTES`, or "auto".
        dtype: of everything that is not a factor.
        device: of the arithmetic.

    Raises:
        SettingError: the device does not support the precision.

    Attributes:
        factors: scratch memory for tensors that are only used as factors.
    """

    def __init__(self, compute: str, dtype: torch.dtype, device: torch.device) -> None:
        self._compute, self._on_gpu = resolve_compute(compute, device), device.type == "cuda"
        rounds = self._compute == "bfloat16" and dtype == torch.float32
        self._dtype = torch.bfloat16 if rounds else dtype
        self.factors = Workspace(self._dtype, device)
        self._one_dnn_pays = self._one_dnn = not self._on_gpu and one_dnn_is_exact()

    @contextmanager
    def active(self, *, training: bool = True) -> Iterator[None]:
        """Within, these products and torch's own have this precision, whatever the settings of the program.

        An evaluation uses MKL for all products: compiled code for its sizes would serve a single pass.
        """
        self._one_dnn = training and self._one_dnn_pays
        with _precision("high" if self._on_gpu and self._compute != "float32" else "highest"):
            yield

    @contextmanager
    def library_for(self, size_bytes: int) -> Iterator[None]:
        """Within, torch's own products use the library for factors and products of this size."""
        if not self._one_dnn or size_bytes < ONE_DNN_FROM_BYTES:
            yield
            return
        with _float32_products("medium"):
            yield

    def factor(self, x: Tensor) -> Tensor:
        """x in the dtype of the factors; round a factor of several products once."""
        return x.to(self._dtype)

    def multiply(self, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        """Product of two matrices, or of two batches of matrices."""
        a, b, product = self.factor(a), self.factor(b), _product_of(a)
        if out.dtype != self._dtype and self._on_gpu and has_float32_output():
            return product(a, b, out_dtype=out.dtype, out=out)
        a, b = a.to(out.dtype), b.to(out.dtype)
        with self.library_for(0 if _interleaved(a) or _interleaved(b) else a.nbytes + b.nbytes + out.nbytes):
            return product(a, b, out=out)

    def accumulate(self, total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
        """total += a b; on the first call total = a b, whatever its content."""
        if total.dtype == self._dtype:
            add = total.addmm_ if total.dim() == 2 else total.baddbmm_
            with self.library_for(a.nbytes + b.nbytes + total.nbytes):
                add(self.factor(a), self.factor(b), beta=0 if first else 1)
        elif first:
            self.multiply(a, b, out=total)
        else:
            total.add_(self.multiply(a, b, out=torch.empty_like(total)))


def _product_of(factor: Tensor) -> Callable[..., Tensor]:
    return torch.mm if factor.dim() == 2 else torch.bmm


@contextmanager
def fast_exact_matmul(device: torch.device) -> Iterator[None]:
    """Within, float32 products are exact: on a CPU by oneDNN where it is exact, on a GPU without TF32, in convolutions too.

    For models that are run, not trained: their products have few sizes, whose code is soon compiled. The caller's settings are
    restored.
    """
    if device.type == "cpu":
        with _float32_products("medium" if one_dnn_is_exact() else "highest"):
            yield
    else:
        with _float32_products("highest", exact_convolutions=True):
            yield


def _interleaved(factor: Tensor) -> bool:
    """Whether the rows of the matrices of a batch interleave: MKL reads them in place, oneDNN copies them at great cost."""
    return factor.dim() == 3 and factor.stride(0) < max(factor.stride(1), factor.stride(2))


@contextmanager
def _float32_products(precision: str, *, exact_convolutions: bool = False) -> Iterator[None]:
    """Set torch's precision of float32 products, and keep cuDNN from rounding the factors of convolutions to TF32, its default."""
    cudnn: Any = torch.backends.cudnn
    try:
        before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # the program has set the precision of each backend by itself, as torch advises from 2.9 on
        with _each_backend(precision, exact_convolutions):
            yield
        return
    torch.set_float32_matmul_precision(precision)
    cudnn.allow_tf32 = before[1] and not exact_convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


@contextmanager
def _each_backend(precision: str, exact_convolutions: bool) -> Iterator[None]:
    backends: Any = torch.backends
    wanted = {"highest": ("ieee", "ieee"), "high": ("tf32", "ieee"), "medium": ("tf32", "bf16")}[precision]
    settings = [*zip((backends.cuda.matmul, backends.mkldnn.matmul), wanted, strict=True)]
    if exact_convolutions:
        settings.append((backends.cudnn.conv, "ieee"))
    before = [(backend, backend.fp32_precision) for backend, _ in settings]
    try:
        for backend, value in settings:
            backend.fp32_precision = value
        yield
    finally:
        for backend, value in before:
            backend.fp32_precision = value


@contextmanager
def _precision(precision: str) -> Iterator[None]:
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay float32
    try:
        with _float32_products(precision):
            yield
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
