"""How a sweep fits into the memory there is: probes at once, probes that go through together, samples at a time.

A plan is arithmetic on shapes, and for the heads that autograd differentiates a rehearsal (`memory_trace.py`): the same sizes
and the same budget give the same plan on every machine. It is an upper bound: the tests hold it to what training really takes.
It counts what training adds (weights, gradients, moments, scratch memory, one batch, scores), not the tokens of a source
that keeps them in memory and not the program itself.

The order of giving way is that of cost (figures in README.md): smaller groups, then a batch in chunks, for some percent of
the time; then the grid in several banks, one after the other, each of which reads the tokens again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..data.batches import EVALUATION_BATCH, choose_batch_size
from ..errors import SettingError
from ..heads import HEADS, Head, make_probe
from ..heads.attention import FusionHead
from ..matmul import CODE_BYTES, ONE_DNN_FROM_BYTES
from ..protocol import TrainingProtocol
from .bank import CHUNK_SIZE, GROUP_SIZE, split_evenly
from .memory_trace import chunks_are_possible, step_bytes

FLOAT_BYTES = 4
COPIES = 4  # of every parameter: weight, gradient and the two moments of AdamW
MARGIN, MARGIN_BYTES = 1.05, 8 << 20  # small tensors, and what the allocator keeps for itself
PRODUCTS_OF_A_MODULE = 24  # of a head that autograd differentiates, forward and backward


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What was chosen, and what it will take.

    Attributes:
        budget_bytes: what training may take; None is no limit.
        num_banks: how many banks the grid is trained in, one after the other.
        probes_at_once: probes of the largest bank.
        group_size: probes of a bank that go through together; 0 where that is no choice: all linear ones, one of the zoo's.
        chunk_size: samples of a full group that go through together; 0 where the whole batch does.
        total_bytes: an upper bound of what training takes at its peak.
        state_bytes: the part of it that is weights, gradients and moments of a bank.
    """

    budget_bytes: int | None
    num_banks: int
    probes_at_once: int
    group_size: int
    chunk_size: int
    total_bytes: int
    state_bytes: int

    def banks(self, num_probes: int) -> list[list[int]]:
        """The probes of each bank, as even as can be."""
        return split_evenly(range(num_probes), self.probes_at_once)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything that memory depends on.

    Attributes:
        head: which probe.
        token_shape: (T, D) or (F,).
        num_classes: C.
        num_held_out: images held out for validation.
        num_probes: settings of the grid.
        batch_size: B, the larger one of selection and refit.
        compute: numbers of the matrix products.
    """

    head: Head
    token_shape: tuple[int, ...]
    num_classes: int
    num_held_out: int
    num_probes: int
    batch_size: int
    compute: str = "float32"


def sizes_of(
    head: Head, token_shape: tuple[int, ...], num_classes: int, num_samples: int, protocol: TrainingProtocol
) -> Sizes:
    """The sizes of a sweep: all `num_samples` images, of which the protocol holds some out."""
    held_out = int(protocol.validation_fraction * num_samples) + num_classes
    candidates = (num_samples, max(num_samples - held_out, 1))
    return Sizes(
        head=head,
        token_shape=token_shape,
        num_classes=num_classes,
        num_held_out=held_out,
        num_probes=len(protocol.settings(head)),
        # a last batch of one joins its neighbour
        batch_size=max(choose_batch_size(count, protocol.batch_size) for count in candidates) + 1,
        compute=protocol.compute,
    )


def plan_memory(sizes: Sizes, budget_bytes: int | None = None) -> MemoryPlan:
    """The fastest plan that fits.

    Args:
        sizes: of the sweep.
        budget_bytes: what training may take; None takes the fastest.

    Raises:
        SettingError: not even one probe at a time fits.
    """
    least = None
    for plan in _plans(sizes, budget_bytes):
        if budget_bytes is None or plan.total_bytes <= budget_bytes:
            return plan
        least = plan if least is None or plan.total_bytes < least.total_bytes else least
    assert least is not None
    raise SettingError(
        where="memory for training",
        expected=f"at least {_megabytes(least.total_bytes)}, for one probe of {sizes.token_shape} at a time",
        got=_megabytes(budget_bytes or 0),
        todo="Give more memory, or train a probe of fewer tokens, or a protocol of smaller batches.",
    )


def _plans(sizes: Sizes, budget_bytes: int | None) -> Iterator[MemoryPlan]:
    """All plans, the fastest first."""
    shapes = [(0, 0)]
    if HEADS[sizes.head.kind].bank == "module":
        possible = chunks_are_possible(sizes.head, sizes.token_shape, sizes.num_classes)
        shapes = [(0, chunk) for chunk in ((CHUNK_SIZE, 128, 64, 32) if possible else (0,))]
    if HEADS[sizes.head.kind].bank == "folded":
        groups, whole = (GROUP_SIZE, 4, 2, 1), sizes.batch_size  # a batch in chunks makes z twice
        shapes = [(group, whole) for group in groups]
        shapes += [(group, chunk) for group in groups for chunk in (CHUNK_SIZE, 128, 64, 32) if chunk < whole]
    smaller = sorted({-(-sizes.num_probes // banks) for banks in range(1, sizes.num_probes + 1)}, reverse=True)
    for probes_at_once in smaller:
        state_bytes = FLOAT_BYTES * COPIES * probes_at_once * _num_parameters(sizes)
        for group_size, chunk_size in shapes:
            scratch = _scratch_floats(sizes, probes_at_once, group_size, chunk_size)
            total_bytes = state_bytes + FLOAT_BYTES * (scratch + _shared_floats(sizes, probes_at_once))
            total_bytes += CODE_BYTES * _num_product_kinds(sizes, probes_at_once, group_size, chunk_size)
            yield MemoryPlan(
                budget_bytes=budget_bytes,
                num_banks=len(split_evenly(range(sizes.num_probes), probes_at_once)),
                probes_at_once=probes_at_once,
                group_size=group_size,
                chunk_size=chunk_size,
                total_bytes=int(MARGIN * total_bytes) + MARGIN_BYTES,
                state_bytes=state_bytes,
            )


def _num_parameters(sizes: Sizes) -> int:
    width = sizes.token_shape[-1]
    classifier = (width + 1) * sizes.num_classes
    if HEADS[sizes.head.kind].bank == "linear":
        return classifier
    if sizes.head.kind != "attentive":
        probe = make_probe(sizes.head, sizes.token_shape, sizes.num_classes)
        return sum(parameter.numel() for parameter in probe.parameters())
    return 4 * width * _inner_dim(sizes) + 10 * width + classifier


def _inner_dim(sizes: Sizes) -> int:
    module = HEADS[sizes.head.kind].module
    assert issubclass(module, FusionHead)
    return sizes.head.num_heads * module.head_width * (sizes.token_shape[-1] // sizes.head.num_heads)


def _scratch_floats(sizes: Sizes, probes: int, group_size: int, chunk_size: int) -> int:
    """Buffers of `FoldedGroup` and of the classifier, or of `LinearBank`, names as there; or what was rehearsed."""
    batch = max(sizes.batch_size, EVALUATION_BATCH)
    scores = batch * sizes.num_classes
    if HEADS[sizes.head.kind].bank == "linear":
        rounded = 2 * (probes * scores + (batch + probes * sizes.num_classes) * sizes.token_shape[0])
        # logits twice, their gradient, log probabilities, one more on the way
        return 5 * probes * scores + (rounded if sizes.compute == "bfloat16" else 0)
    if HEADS[sizes.head.kind].bank == "module":
        taken = step_bytes(sizes.head, sizes.token_shape, sizes.num_classes, batch, chunk_size)
        return taken // FLOAT_BYTES + 2 * probes * scores
    num_tokens, embed_dim = sizes.token_shape
    inner, heads = _inner_dim(sizes), sizes.head.num_heads
    group = min(group_size, probes)
    width, chunk = group * heads, min(chunk_size * group_size // group, batch)
    whole_batch = batch * (group * (2 * embed_dim + inner) + (num_tokens + 1) * width)  # y dy pooled attention
    one_chunk = chunk * (width * embed_dim + group * inner + 3 * num_tokens * width)  # z v da kept and a product
    weights = (group + 1) * inner * embed_dim + group * 5 * heads * embed_dim  # matrix, a product at the end, u du keys
    classifier = group * (4 * scores + 3 * sizes.num_classes * embed_dim)
    places = 3 * group * num_tokens * (embed_dim + heads) if sizes.head.num_levels else 0  # and their gradients
    rounded = 0
    if (
        sizes.compute == "bfloat16"
    ):  # factors of the largest product, rounded and, on a CPU, widened again; its sum apart
        of_sums = group * inner * (batch + 2 * embed_dim)
        rounded = 3 * max(of_sums, chunk * width * embed_dim + 2 * group * inner * embed_dim) // 2
        rounded += batch * num_tokens * embed_dim
    return whole_batch + one_chunk + weights + classifier + places + rounded


def _num_product_kinds(sizes: Sizes, probes: int, group_size: int, chunk_size: int) -> int:
    """Products of the grid and of the final training that oneDNN compiles code for: see `matmul.py`. It stays until the end."""
    batch, largest = sizes.batch_size, ONE_DNN_FROM_BYTES // FLOAT_BYTES
    if HEADS[sizes.head.kind].bank == "linear":
        columns, features = sizes.num_classes, sizes.token_shape[0]
        factors = [batch * features + width * columns * (features + batch) for width in (probes, 1)]
        return 2 * 2 * sum(floats >= largest for floats in factors)  # two products; full batches and the last one
    num_tokens, embed_dim = sizes.token_shape
    if HEADS[sizes.head.kind].bank == "module":
        tokens = batch * num_tokens * embed_dim
        return 2 * 2 * PRODUCTS_OF_A_MODULE * (tokens >= 8 * largest)
    kinds, inner, heads = 0, _inner_dim(sizes), sizes.head.num_heads
    groups = [min(group_size, probes), 1]  # of the grid, and of the final training
    for group, num_widths in zip(groups, (1 if probes <= group_size else 2, 1), strict=True):
        chunk = min(chunk_size * group_size // group, batch)
        width = group * heads
        scores = chunk * num_tokens * (embed_dim + width) + width * embed_dim  # x u da du
        pooling = chunk * (num_tokens * (embed_dim + width) + width * embed_dim)
        mapping = chunk * (width * embed_dim + group * inner) + group * inner * embed_dim
        whole = batch * group * (inner + embed_dim) + group * inner * embed_dim
        of_chunk = 2 * (scores >= largest) + (pooling >= largest) + 3 * (mapping >= largest)
        of_batch = 3 * (whole >= largest) + 5 * (batch * group * embed_dim >= largest)
        kinds += 2 * num_widths * (of_chunk * (1 if chunk == batch else 2) + of_batch)
    return kinds


def _shared_floats(sizes: Sizes, probes: int) -> int:
    """What all probes of a bank share: one batch, its noise, the scores of an evaluation, and one probe as a module."""
    batch = max(sizes.batch_size, EVALUATION_BATCH)
    tokens = 1
    for size in sizes.token_shape:
        tokens *= size
    copies = batch * 3 * tokens  # as read, jitter, normalised
    noise = 3 * batch * sizes.token_shape[0] * sizes.head.num_heads if HEADS[sizes.head.kind].has_dropout else 0
    evaluation = 3 * probes * EVALUATION_BATCH * sizes.num_classes
    predictions = 5 * probes * sizes.num_held_out  # int64, whether each is right, and that as float64
    return copies + noise + evaluation + predictions + 3 * _num_parameters(sizes)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
