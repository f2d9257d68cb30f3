"""Memory plan of a sweep: the number of probes in a bank, and of probes and samples computed together.

A plan is computed from shapes, and for heads that autograd differentiates from a memory trace (`memory_trace.py`): the same
sizes and the same budget give the same plan on every machine. It is an upper bound, which the tests compare with training. It
counts what training adds (weights, gradients, moments, scratch memory, one batch, scores), not the tokens of a source that keeps
them in memory, and not the program itself.

If memory is short, the cheapest measure comes first (README.md has the figures): smaller groups, then a batch in chunks, for a
few percent of the time; then the grid in several banks, one after the other, each of which reads the tokens again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..data.batches import EVALUATION_BATCH, choose_batch_size
from ..errors import SettingError
from ..heads import HEADS, Head
from ..heads.attention import FusionHead
from ..matmul import ONE_DNN_FROM_BYTES
from ..protocol import TrainingProtocol
from ..tasks.task import Task
from .bank import CHUNK_SIZE, GROUP_SIZE, split_evenly
from .memory_trace import chunks_are_possible, probe_of, step_bytes

ON_A_GPU = (32, 16)  # probes of a group, beside all of them and the sizes of a CPU
CHUNK_SIZES = (CHUNK_SIZE, 128, 64, 32)
FLOAT_BYTES = 4
COPIES = 4  # of every parameter: weight, gradient and the two moments of AdamW
MARGIN, MARGIN_BYTES = 1.05, 8 << 20  # small tensors, and memory that the allocator keeps
CODE_BYTES = 640_000  # compiled by oneDNN for one size of a product
PRODUCTS_OF_A_MODULE = 24  # of a head that autograd differentiates, forward and backward


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Number and shape of the banks that train a grid, and the memory that they need.

    Attributes:
        num_banks: number of banks that train the grid, one after the other.
        probes_at_once: probes of the largest bank.
        group_size: probes of a bank computed together; 0 for heads without this choice.
        chunk_size: samples of a full group computed together; 0 for the whole batch.
        total_bytes: upper bound of the memory for training.
    """

    num_banks: int
    probes_at_once: int
    group_size: int
    chunk_size: int
    total_bytes: int

    def banks(self, num_probes: int) -> list[list[int]]:
        """The probes of each bank, distributed evenly."""
        return split_evenly(range(num_probes), self.probes_at_once)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that decide the memory of a sweep.

    Attributes:
        head: the head.
        token_shape: (T, D) or (F,).
        task: the task of the data set.
        num_held_out: images held out for validation.
        num_probes: settings of the grid.
        batch_size: B, the larger one of selection and refit.
        compute: matmul precision.
        on_gpu: whether a GPU trains, where as many probes as fit are computed together, of any dropout rates.
    """

    head: Head
    token_shape: tuple[int, ...]
    task: Task
    num_held_out: int
    num_probes: int
    batch_size: int
    compute: str = "float32"
    on_gpu: bool = False

    @property
    def num_outputs(self) -> int:
        """C, the number of outputs of a probe."""
        return self.task.num_outputs


def sizes_of(
    head: Head,
    token_shape: tuple[int, ...],
    task: Task,
    num_samples: int,
    protocol: TrainingProtocol,
    *,
    on_gpu: bool = False,
) -> Sizes:
    """The sizes of a sweep over `num_samples` images, of which the protocol holds some out."""
    held_out = int(protocol.validation_fraction * num_samples) + task.num_strata
    candidates = (num_samples, max(num_samples - held_out, 1))
    return Sizes(
        head=head,
        token_shape=token_shape,
        task=task,
        num_held_out=held_out,
        num_probes=len(protocol.settings(head)),
        # a last batch of one joins the batch before
        batch_size=max(choose_batch_size(count, protocol.batch_size) for count in candidates) + 1,
        compute=protocol.compute,
        on_gpu=on_gpu,
    )


def plan_memory(sizes: Sizes, budget_bytes: int | None = None) -> MemoryPlan:
    """The fastest plan that fits into the budget; without a budget the fastest of all.

    Raises:
        SettingError: the budget is too small for one probe at a time.
    """
    for plan in _plans(sizes):
        if budget_bytes is None or plan.total_bytes <= budget_bytes:
            return plan
    raise too_little_memory(least_memory(sizes), budget_bytes or 0, sizes.token_shape)


def least_memory(sizes: Sizes) -> int:
    """The smallest budget of `plan_memory`, in bytes."""
    return min(plan.total_bytes for plan in _plans(replace(sizes, num_probes=1)))


def too_little_memory(needed_bytes: int, given_bytes: int, token_shape: tuple[int, ...]) -> SettingError:
    """The error for a budget in which not even one probe at a time can be trained."""
    given, needed = f"{given_bytes / 1e6:,.0f} MB", f"{math.ceil(needed_bytes / 1e6):,} MB"
    return SettingError("probes.too_little_memory", needed=needed, given=given, token_shape=token_shape)


def _plans(sizes: Sizes) -> Iterator[MemoryPlan]:
    """All plans, the fastest first."""
    shapes = [(0, 0)]
    if _bank(sizes) == "folded":
        groups, whole = [GROUP_SIZE, 4, 2, 1], sizes.batch_size  # a batch in chunks computes z twice
        if sizes.on_gpu:
            groups = [sizes.num_probes, *(size for size in ON_A_GPU if size < sizes.num_probes), *groups]
        shapes = [(group, whole) for group in groups]
        shapes += [(group, chunk) for group in groups for chunk in CHUNK_SIZES if chunk < whole]
    elif _bank(sizes) == "module" and chunks_are_possible(sizes.head, sizes.token_shape, sizes.num_outputs):
        shapes = [(0, chunk) for chunk in CHUNK_SIZES]
    smaller = sorted({-(-sizes.num_probes // banks) for banks in range(1, sizes.num_probes + 1)}, reverse=True)
    for probes_at_once in smaller:
        state = COPIES * probes_at_once * _num_parameters(sizes) + _shared_floats(sizes, probes_at_once)
        for group_size, chunk_size in shapes:
            total_bytes = FLOAT_BYTES * (state + _scratch_floats(sizes, probes_at_once, group_size, chunk_size))
            total_bytes += _code_bytes(sizes, probes_at_once, group_size, chunk_size)
            yield MemoryPlan(
                num_banks=len(split_evenly(range(sizes.num_probes), probes_at_once)),
                probes_at_once=probes_at_once,
                group_size=group_size,
                chunk_size=chunk_size,
                total_bytes=int(MARGIN * total_bytes) + MARGIN_BYTES,
            )


def _bank(sizes: Sizes) -> str:
    return HEADS[sizes.head.kind].bank


def _num_parameters(sizes: Sizes) -> int:
    width = sizes.token_shape[-1]
    classifier = (width + 1) * sizes.num_outputs
    if _bank(sizes) == "linear":
        return classifier
    if sizes.head.kind != "attentive":
        probe = probe_of(sizes.head, sizes.token_shape, sizes.num_outputs)
        return sum(parameter.numel() for parameter in probe.parameters())
    return 4 * width * _inner_dim(sizes) + 10 * width + classifier


def _inner_dim(sizes: Sizes) -> int:
    module = HEADS[sizes.head.kind].module
    assert issubclass(module, FusionHead)
    return sizes.head.num_heads * module.head_width * (sizes.token_shape[-1] // sizes.head.num_heads)


def _scratch_floats(sizes: Sizes, probes: int, group_size: int, chunk_size: int) -> int:
    """Buffers of `FoldedGroup` and of the classifier, or of `LinearBank`, with their names there; or the memory trace."""
    batch = max(sizes.batch_size, EVALUATION_BATCH)
    scores = batch * sizes.num_outputs
    if _bank(sizes) == "linear":
        rounded = 2 * (probes * scores + (batch + probes * sizes.num_outputs) * sizes.token_shape[0])
        # logits twice, their gradient, log probabilities, one temporary
        return 5 * probes * scores + (rounded if sizes.compute == "bfloat16" else 0)
    if _bank(sizes) == "module":
        traced = step_bytes(sizes.head, sizes.token_shape, sizes.task, batch, chunk_size)
        return traced // FLOAT_BYTES + 2 * probes * scores
    num_tokens, embed_dim = sizes.token_shape
    inner, heads = _inner_dim(sizes), sizes.head.num_heads
    group = min(group_size, probes)
    width, chunk = group * heads, min(chunk_size * group_size // group, batch)
    whole_batch = batch * (group * (2 * embed_dim + inner) + (num_tokens + 1) * width)  # y dy pooled attention
    one_chunk = chunk * (width * embed_dim + group * inner + 3 * num_tokens * width)  # z v da kept and a product
    weights = (group + 1) * inner * embed_dim + group * 5 * heads * embed_dim  # matrix, a product at the end, u du keys
    if sizes.on_gpu:  # a dropout mask for each probe, and the product at the end for all probes at once
        one_chunk += batch * num_tokens * width + chunk * num_tokens * width
        weights += (group - 1) * inner * embed_dim
    classifier = group * (4 * scores + 3 * sizes.num_outputs * embed_dim)
    places = 0
    if sizes.head.num_levels:
        places = 3 * group * num_tokens * (embed_dim + heads)  # and their gradients
    rounded = 0
    if sizes.compute == "bfloat16":
        # factors of the largest product, rounded and, on a CPU, widened again; its sum apart
        sums = group * inner * (batch + 2 * embed_dim)
        rounded = 3 * max(sums, chunk * width * embed_dim + 2 * group * inner * embed_dim) // 2
        rounded += batch * num_tokens * embed_dim
    return whole_batch + one_chunk + weights + classifier + places + rounded


def _code_bytes(sizes: Sizes, probes: int, group_size: int, chunk_size: int) -> int:
    """Memory of the code that oneDNN compiles for the large products of the grid and of the final training: see `matmul.py`."""
    batch, tokens = sizes.batch_size, math.prod(sizes.token_shape)
    kinds: list[tuple[int, int]] = []  # size of a product in floats, and the number of products of this size
    if _bank(sizes) == "linear":
        widths = probes * sizes.num_outputs, sizes.num_outputs
        kinds = [(batch * tokens + width * (tokens + batch), 2) for width in widths]
    elif _bank(sizes) == "module":
        kinds = [(batch * tokens // 8, 2 * PRODUCTS_OF_A_MODULE)]
    else:
        num_tokens, embed_dim = sizes.token_shape
        for group, num_groups in ((min(group_size, probes), 1 if probes <= group_size else 2), (1, 1)):
            width, inner = group * sizes.head.num_heads, group * _inner_dim(sizes)
            chunk = min(chunk_size * group_size // group, batch)
            of_chunk = num_groups if chunk == batch else 2 * num_groups
            tokens_and_scores = chunk * num_tokens * (embed_dim + width)
            kinds += [
                (tokens_and_scores + width * embed_dim, 2 * of_chunk),  # scores, du
                (tokens_and_scores + chunk * width * embed_dim, of_chunk),  # z
                (chunk * (width * embed_dim + inner) + inner * embed_dim, 3 * of_chunk),  # v and back
                (batch * (inner + group * embed_dim) + inner * embed_dim, 3 * num_groups),  # y and back
                (batch * group * embed_dim, 5 * num_groups),  # classifier
            ]
    num_kinds = sum(number for floats, number in kinds if FLOAT_BYTES * floats >= ONE_DNN_FROM_BYTES)
    return 2 * CODE_BYTES * num_kinds  # full batches, and the last one


def _shared_floats(sizes: Sizes, probes: int) -> int:
    """Memory that all probes of a bank share: one batch, its noise, the scores of an evaluation, and one probe as a module."""
    batch = max(sizes.batch_size, EVALUATION_BATCH)
    copies = batch * 3 * math.prod(sizes.token_shape)  # as read, jitter, normalised
    noise = 3 * batch * sizes.token_shape[0] * sizes.head.num_heads if HEADS[sizes.head.kind].has_dropout else 0
    evaluation = 3 * probes * EVALUATION_BATCH * sizes.num_outputs
    scoring = sizes.task.scoring_floats(probes) * sizes.num_held_out
    return copies + noise + evaluation + scoring + 3 * _num_parameters(sizes)
