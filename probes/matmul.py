"""Matrix products in the numbers that were asked for; all else of a bank is float32 (float64 where a bank is).

    float32    as they are
    tf32       a GPU rounds the factors to 10 bits behind the point
    bfloat16   the factors are rounded to 7 bits, and what is nothing but a factor is kept so

Sums are float32 in each. Weights, moments, softmax, BatchNorm, classifier and loss are float32 numbers; on a GPU the
classifier's own product takes TF32 with bfloat16 too. A CPU multiplies rounded factors as float32: the same numbers, no faster.

On a CPU there is a choice of libraries. On an AMD one MKL, torch's default, runs at half the speed of oneDNN, which
torch turns on for float32 by "medium" precision only. Where there are AMX units that means bfloat16, else float32 as
exact as ever: so it is tried once whether factors lose bits, and oneDNN is used where they do not.

oneDNN compiles code for every kind of product, that is for its very sizes, and keeps it as long as the process lives: 0.4 to
0.6 MB a kind, in a cache of its own and in one of torch's, of 1,024 kinds each. So small products, which would take little more
memory than their code, are left to MKL, and `budget.py` counts the code of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from .errors import SettingError
from .workspace import Workspace

COMPUTES = ("float32", "tf32", "bfloat16")
ONE_DNN_FROM_BYTES = 2 << 20  # factors and product together; less is left to MKL
CODE_BYTES = 640_000  # of oneDNN for one kind of product


def resolve_compute(compute: str, device: torch.device | str) -> str:
    """What a choice means on a device: "auto" is tf32 on a GPU, float32 elsewhere.

    Raises:
        SettingError: the device cannot do it, or it is no choice.

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
            where=f"compute on {kind}",
            expected="auto, " + ", ".join(possible),
            got=repr(compute),
            todo="Choose one of them; auto is the device's own default.",
        )
    return compute


@cache
def one_dnn_is_exact() -> bool:
    """Whether this CPU's oneDNN rounds no float32 factor even where it may.

    Of 1 + 2^-12 bfloat16 keeps 1.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    factor, ones = torch.full((2, 128, 128), 1 + 2**-12), torch.ones(2, 128, 128)
    with _precision("medium"):
        products = torch.mm(factor[0], ones[0]), torch.bmm(factor, ones)
    return all(bool((product == 128 + 2**-5).all()) for product in products)


@cache
def sums_may_be_wider() -> bool:
    """Whether this torch multiplies bfloat16 factors into a float32 product: from 2.8 on.

    An older one is given the rounded factors as float32, which TF32 keeps as they are: the same numbers for more memory traffic.
    """
    return hasattr(torch.ops.aten.mm, "dtype_out")


class Products:
    """Products into memory that is there, from factors of any floating type.

    Args:
        compute: one of `COMPUTES`, or "auto".
        dtype: of everything that is no factor.
        device: of the arithmetic.

    Raises:
        SettingError: the device cannot do it.

    Attributes:
        factors: scratch memory for what is nothing but a factor.
    """

    def __init__(self, compute: str, dtype: torch.dtype, device: torch.device) -> None:
        self._compute, self._on_gpu = resolve_compute(compute, device), device.type == "cuda"
        rounds = self._compute == "bfloat16" and dtype == torch.float32
        self._dtype = torch.bfloat16 if rounds else dtype
        self.factors = Workspace(self._dtype, device)
        self._one_dnn_pays = self._one_dnn = not self._on_gpu and one_dnn_is_exact()

    @contextmanager
    def chosen(self, *, training: bool = True) -> Iterator[None]:
        """Within, products are made as chosen, these and torch's own, whatever the program around has set.

        An evaluation leaves them all to MKL: code for its sizes would serve one pass.
        """
        self._one_dnn = training and self._one_dnn_pays
        with _precision("high" if self._on_gpu and self._compute != "float32" else "highest"):
            yield

    @contextmanager
    def of_size(self, size_bytes: int) -> Iterator[None]:
        """Within, torch's own products are made by the library for factors and products of this size."""
        if not self._one_dnn or size_bytes < ONE_DNN_FROM_BYTES:
            yield
            return
        with _float32_products("medium"):
            yield

    def factor(self, x: Tensor) -> Tensor:
        """x as the products take it: what is a factor of many of them is rounded once."""
        return x.to(self._dtype)

    def mm(self, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        """a b, for matrices."""
        return self._multiply(torch.mm, a, b, out)

    def bmm(self, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        """a b, for as many matrices."""
        return self._multiply(torch.bmm, a, b, out)

    def add_mm(self, total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
        """total += a b; on the first call total = a b, whatever lay there."""
        if total.dtype == self._dtype:
            with self.of_size(a.nbytes + b.nbytes + total.nbytes):
                total.addmm_(self.factor(a), self.factor(b), beta=0 if first else 1)
        elif first:
            self.mm(a, b, out=total)
        else:
            total.add_(self.mm(a, b, out=torch.empty_like(total)))

    def add_bmm(self, total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
        """As `add_mm`, for as many matrices."""
        if total.dtype == self._dtype:
            with self.of_size(a.nbytes + b.nbytes + total.nbytes):
                total.baddbmm_(self.factor(a), self.factor(b), beta=0 if first else 1)
        elif first:
            self.bmm(a, b, out=total)
        else:
            total.add_(self.bmm(a, b, out=torch.empty_like(total)))

    def _multiply(self, product: Callable[..., Tensor], a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        a, b = self.factor(a), self.factor(b)
        if out.dtype != self._dtype and self._on_gpu and sums_may_be_wider():
            return product(a, b, out_dtype=out.dtype, out=out)
        a, b = a.to(out.dtype), b.to(out.dtype)
        with self.of_size(0 if _interleaved(a) or _interleaved(b) else a.nbytes + b.nbytes + out.nbytes):
            return product(a, b, out=out)


@contextmanager
def quick_products(device: torch.device) -> Iterator[None]:
    """Within, a CPU's float32 products are exact, and made by oneDNN where it is; on a GPU all stays as the program has set it.

    For models that are run, not trained: their products have few sizes, whose code is soon made.
    """
    if device.type != "cpu":
        yield
        return
    with _float32_products("medium" if one_dnn_is_exact() else "highest"):
        yield


def _interleaved(factor: Tensor) -> bool:
    """Whether a row of one matrix lies beside that of the next: MKL reads them where they are, oneDNN copies them at great cost."""
    return factor.dim() == 3 and factor.stride(0) < max(factor.stride(1), factor.stride(2))


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the program around has told every backend for itself, as torch advises from 2.9 on
        with _of_each_backend(precision):
            yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _of_each_backend(precision: str) -> Iterator[None]:
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    told = {"highest": ("ieee", "ieee"), "high": ("tf32", "ieee"), "medium": ("tf32", "bf16")}[precision]
    try:
        for backend, numbers in zip(backends, told, strict=True):
            backend.fp32_precision = numbers
        yield
    finally:
        for backend, numbers in zip(backends, before, strict=True):
            backend.fp32_precision = numbers


@contextmanager
def _precision(precision: str) -> Iterator[None]:
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay float32
    try:
        with _float32_products(precision):
            yield
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
