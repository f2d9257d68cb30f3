"""A forward pass that holds on: what a compiler or too little memory may change, and what they may not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from extractions import extract, only_store, rows_of
from hypothesis import given
from hypothesis import strategies as st
from messages import raises
from photos import TINY_MODEL
from torch import Tensor, nn

from layerbank import WorkError
from layerbank.cache.geometry import Grid, cut_batches, rows_per_block
from layerbank.data.sources import open_source
from layerbank.events import BatchHalved, CompileFailed, Event
from layerbank.extraction.batch_size import LARGEST, choose_batch_size, even_batch_size, fitting_batch_size
from layerbank.extraction.extract import ExtractConfig
from layerbank.extraction.forward import SteadyForward, padded_size
from layerbank.models.backbone import Backbone, Tokens, open_backbone
from layerbank.models.tower import tapped_modules

BATCH_SIZE = 8
KINDS = ["cls", "ap", "grid2", "patch"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return open_backbone(TINY_MODEL, weights="random", image_size=32)


def images(count: int = BATCH_SIZE, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def steady(
    backbone: Backbone, *, backend: Any = None, events: list[Event] | None = None, batch_size: int = BATCH_SIZE
) -> SteadyForward:
    return SteadyForward(
        backbone.compile(backbone.levels, KINDS),
        batch_size=batch_size,
        model_id=backbone.model_id,
        backend=backend,
        on_event=(events if events is not None else []).append,
    )


def largest_error(got: Tokens, expected: Tokens) -> float:
    """Of any value, over the largest value of its array."""
    errors = [
        float((got[level][kind] - values).abs().max() / values.abs().max())
        for level, kinds in expected.items()
        for kind, values in kinds.items()
    ]
    assert [list(kinds) for kinds in got.values()] == [list(kinds) for kinds in expected.values()]
    return max(errors)


def assert_same_bits(got: Tokens, expected: Tokens) -> None:
    assert all(torch.equal(got[level][kind], expected[level][kind]) for level in expected for kind in expected[level])


# --- products ---


@pytest.mark.parametrize("one_dnn", [False, True])
def test_a_cpu_multiplies_by_the_library_that_was_found_exact_and_tokens_differ_by_rounding_alone(
    backbone: Backbone, one_dnn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, precisions = backbone.compile(backbone.levels, KINDS), []
    with torch.inference_mode():
        by_default = function.forward(function.normalise(images()))
    monkeypatch.setattr("layerbank.probes.matmul.one_dnn_is_exact", lambda: one_dnn)
    block = tapped_modules(backbone.tower, backbone.tap)["block.0"]
    with block.register_forward_pre_hook(lambda *_: precisions.append(torch.get_float32_matmul_precision())):
        got = steady(backbone)(images())
        assert_same_bits(function(images()), got)
    assert precisions == ["medium" if one_dnn else "highest"] * 2
    assert torch.get_float32_matmul_precision() == "highest"
    assert largest_error(got, by_default) < 1e-5


# --- compiled ---


def test_a_graph_gives_the_tokens_of_the_plain_pass(backbone: Backbone) -> None:
    expected = steady(backbone)(images())
    assert largest_error(steady(backbone, backend="aot_eager")(images()), expected) < 1e-6


@pytest.mark.slow  # the compiler takes half a minute
def test_inductors_graph_gives_the_tokens_of_the_plain_pass_within_a_hundred_thousandth(backbone: Backbone) -> None:
    events: list[Event] = []
    compiled = steady(backbone, backend="inductor", events=events)
    for count in (BATCH_SIZE, 3):
        assert largest_error(compiled(images(count)), steady(backbone)(images(count))) < 1e-5
    assert events == []


def test_a_batch_that_is_nearly_full_is_padded_and_a_shorter_one_takes_the_plain_pass(backbone: Backbone) -> None:
    graphs: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(tuple(inputs[0].shape))
        return graph.forward

    torch._dynamo.reset()
    compiled = steady(backbone, backend=backend, batch_size=16)
    for count in (16, 15, 16, 14, 1):
        got = compiled(images(count))
        assert {len(values) for kinds in got.values() for values in kinds.values()} == {count}
        assert largest_error(got, steady(backbone)(images(count))) < 1e-5
    assert len(graphs) == 1


def test_a_model_has_a_graph_for_each_of_many_batch_sizes(backbone: Backbone) -> None:
    """Each store has a size of its own; torch ends compilation after eight unless its limit is raised."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    torch._dynamo.reset()
    events: list[Event] = []
    for batch_size in range(2, 14):
        got = steady(backbone, backend=backend, events=events, batch_size=batch_size)(images(batch_size))
        assert largest_error(got, steady(backbone)(images(batch_size))) < 1e-5
    assert len(graphs) == 12
    assert events == []


@given(num_rows=st.integers(1, 30_000), most=st.integers(0, 9).map(lambda power: 1 << power))
def test_hardly_more_images_go_through_a_gpu_than_there_are(num_rows: int, most: int) -> None:
    grid = Grid(num_rows, rows_per_block(num_rows), 1)
    batch_size = even_batch_size(grid.block_rows, most)
    assert batch_size <= most
    batches = [batch for block in range(grid.num_blocks) for batch in cut_batches(grid.block(block), batch_size)]
    assert sum(padded_size(len(batch), batch_size) for batch in batches) <= 1.02 * num_rows + 96
    assert len(batches) <= grid.num_blocks * -(-grid.block_rows // most), "and in no more passes"


def test_a_compiler_that_fails_is_told_once_and_the_model_runs_without(backbone: Backbone) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise FileNotFoundError("no C++ compiler\nfound anywhere")

    torch._dynamo.reset()
    events: list[Event] = []
    forward = steady(backbone, backend=broken, events=events)
    for count in (BATCH_SIZE, 3):
        assert_same_bits(forward(images(count)), steady(backbone)(images(count)))
    (event,) = events
    assert isinstance(event, CompileFailed)
    assert event.backbone == backbone.model_id
    assert event.reason == ("BackendCompilerFailed: backend='broken' raised: FileNotFoundError: no C++ compiler")


def test_an_error_of_the_model_itself_is_not_taken_for_the_compilers(backbone: Backbone) -> None:
    with pytest.raises((RuntimeError, AssertionError), match=r"size|Input"):
        steady(backbone, backend="aot_eager")(images(size=31))


# --- memory ---


class Small(nn.Module):
    """A model on a device with memory for so many images; counts its passes by their size."""

    def __init__(self, model: Any, capacity: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.model, self.capacity, self.error, self.passes = model, capacity, error, Counter[int]()

    def __call__(self, images: Tensor) -> Any:
        if len(images) > self.capacity:
            raise self.error("CUDA out of memory. Tried to allocate 2 GiB. DefaultCPUAllocator: can't allocate memory")
        self.passes[len(images)] += 1
        return self.model(images)


def cramped(capacity: int, error: type[Exception] = torch.OutOfMemoryError) -> tuple[Backbone, Small]:
    backbone = open_backbone(TINY_MODEL, weights="random", image_size=32)
    small = Small(backbone.tower.forward, capacity, error)
    object.__setattr__(backbone.tower, "forward", small)  # a tower is frozen
    return backbone, small


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_stays_so(
    backbone: Backbone, error: type[Exception]
) -> None:
    small, device = cramped(capacity=3, error=error)
    events: list[Event] = []
    forward = steady(small, events=events)
    for _ in range(2):
        assert largest_error(forward(images()), steady(backbone)(images())) < 1e-5
    assert device.passes == {2: 8}
    assert [event.num_images for event in events if isinstance(event, BatchHalved)] == [4, 2]
    assert events[0].reason == "CUDA out of memory"  # type: ignore[union-attr]


def test_halves_are_compiled_too(backbone: Backbone) -> None:
    passes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        def run(*values: Tensor) -> Any:
            (batch,) = (len(value) for value in values if value.shape[1:] == (3, 32, 32))
            if batch > 4:  # as on a GPU: the graph was made, and does not fit
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            passes.append(batch)
            return graph(*values)

        return run

    torch._dynamo.reset()
    events: list[Event] = []
    got = steady(backbone, backend=backend, events=events)(images())
    assert largest_error(got, steady(backbone)(images())) < 1e-5
    assert [type(event) for event in events] == [BatchHalved]
    assert passes == [4, 4]


def test_one_image_that_does_not_fit_is_work_that_failed() -> None:
    small, _ = cramped(capacity=0)
    with raises("extraction.image_too_large_for_memory", WorkError, model=TINY_MODEL, reason="CUDA out of memory"):
        steady(small)(images())


def test_another_runtime_error_is_not_taken_for_one_of_memory() -> None:
    small, _ = cramped(capacity=100)
    small.tower.forward.model = nn.Linear(5, 5)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        steady(small)(images())


def test_no_row_is_lost_where_memory_runs_out_and_the_stores_batches_stay(photos: Path, tmp_path: Path) -> None:
    from layerbank.cache import TokenStore

    source = open_source(f"folder:{photos}", "train")
    small, device = cramped(capacity=5)
    config = ExtractConfig(arrays=(("final", "ap"),), storage_dtype="float32", batch_size=16, num_workers=0)
    events: list[Event] = []
    store = only_store(extract(small, source, config, tmp_path, on_event=events.append))
    assert [event.num_images for event in events if isinstance(event, BatchHalved)] == [8, 4]
    assert set(device.passes) == {4}
    cache = TokenStore.open(store)
    assert cache.batch_size == 16
    backbone = open_backbone(TINY_MODEL, weights="random", image_size=32)
    order = rows_of(source, tmp_path).reading_order.tolist()
    every = torch.stack([backbone.geometry(source.load(row)[0]) for row in order])
    expected = backbone.compile(["final"], ["ap"])(every)["final"]["ap"]
    torch.testing.assert_close(torch.from_numpy(cache.tokens("final", "ap").read(0, len(source))), expected)


# --- batch size ---


@pytest.mark.parametrize(("image_size", "expected"), [(32, 64), (224, 8), (1024, 1)])
def test_on_a_cpu_the_images_of_a_batch_are_1600_tokens(image_size: int, expected: int) -> None:
    """5, 197 and 4,097 an image."""
    backbone = open_backbone(TINY_MODEL, weights="random", image_size=image_size)
    assert choose_batch_size(backbone, backbone.compile(["final"], ["cls"])) == expected


@pytest.mark.parametrize(
    ("fixed", "per_image", "free", "expected"),
    [(0, 10, 640, 64), (0, 10, 639, 32), (500, 10, 1140, 64), (0, 1, 10**9, LARGEST), (0, 10, 5, 1), (900, 1, 10, 1)],
)
def test_on_a_gpu_it_is_the_largest_power_of_two_that_fits(
    fixed: int, per_image: int, free: int, expected: int
) -> None:
    tried: list[int] = []

    def peak_bytes(num_images: int) -> int:
        tried.append(num_images)
        return fixed + per_image * num_images

    assert fitting_batch_size(peak_bytes, free) == expected
    assert max(tried) <= 8


def test_a_store_keeps_the_batch_size_it_was_begun_with(photos: Path, tmp_path: Path, backbone: Backbone) -> None:
    from layerbank.cache import TokenStore

    source = open_source(f"folder:{photos}", "train")
    for kind, batch_size in (("cls", 24), ("ap", None)):
        config = ExtractConfig(arrays=(("final", kind),), batch_size=batch_size, num_workers=0)
        store = only_store(extract(backbone, source, config, tmp_path))
    assert TokenStore.open(store).batch_size == 24


def test_timm_attends_with_the_fused_kernel() -> None:
    """What SDPA chooses its kernels for; the plain attention would keep [B, heads, T, T] in memory."""
    assert timm.layers.use_fused_attn()
