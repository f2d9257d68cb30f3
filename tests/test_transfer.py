"""The way through a GPU, with a recorder in place of its streams: what is queued after what, and no buffer used too early.

With the recorder values pass through the CPU at once, so what those tests prove is the bookkeeping of buffers and events. The last
ones need a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractions import extract, only_store
from photos import TINY_MODEL
from torch import Tensor

from layerbank.cache import ArraySpec, TokenStore
from layerbank.data.sources import open_source
from layerbank.extraction.extract import ExtractConfig
from layerbank.extraction.transfer import NUM_BUFFERS, GpuTransfer, HostTransfer, open_transfer
from layerbank.models.backbone import Tokens, open_backbone

CPU = torch.device("cpu")
ARRAYS = (
    ArraySpec(level="final", kind="cls", row_shape=(5,)),
    ArraySpec(level="final", kind="patch", row_shape=(4, 5)),
)


class Recorder:
    """torch.cuda as far as a transfer needs it; writes down what is queued where."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.streams = 0
        self.events = 0
        self.current = "main"

    def current_stream(self, device: Any) -> RecordedStream:
        return RecordedStream(self, "main")

    def Stream(self, device: Any) -> RecordedStream:
        self.streams += 1
        return RecordedStream(self, f"side{self.streams}")

    def Event(self) -> RecordedEvent:
        self.events += 1
        return RecordedEvent(self, self.events)

    @contextmanager
    def stream(self, stream: RecordedStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before


class RecordedStream:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def wait_event(self, event: RecordedEvent) -> None:
        self.recorder.log.append((self.name, "waits for", event.number))


class RecordedEvent:
    def __init__(self, recorder: Recorder, number: int) -> None:
        self.recorder, self.number = recorder, number

    def record(self, stream: RecordedStream) -> None:
        self.recorder.log.append((stream.name, "records", self.number))

    def synchronize(self) -> None:
        self.recorder.log.append(("host", "waits for", self.number))


def forward(images: Tensor) -> Tokens:
    values = images[:, 0, 0, :5].float()
    return {"final": {"cls": values, "patch": values[:, None].repeat(1, 4, 1) * 1000}}


def batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (n, 3, 6, 6), dtype=torch.uint8, generator=generator) for n in sizes]


def gpu(recorder: Recorder, function: Any = forward) -> GpuTransfer:
    return GpuTransfer(function, CPU, "float16", 8, cuda=recorder, pin=False)


def test_a_cpu_needs_no_streams() -> None:
    assert isinstance(open_transfer(forward, CPU, "float16", 8), HostTransfer)


@pytest.mark.parametrize("storage_dtype", ["float16", "bfloat16", "float32"])
def test_tokens_are_those_of_the_cpu_with_counts_and_bad_rows(storage_dtype: str) -> None:
    there = GpuTransfer(forward, CPU, storage_dtype, 8, cuda=Recorder(), pin=False)
    here = HostTransfer(forward, storage_dtype)
    for images, bad in zip(batches(8, 8, 3, 8), ([], [2], [0], []), strict=True):
        got, expected = there(images, ARRAYS, bad), here(images, ARRAYS, bad)
        arrived, known = got.wait(), expected.wait()
        assert list(arrived) == list(known)
        for name in known:
            np.testing.assert_array_equal(arrived[name].values, known[name].values)
            assert arrived[name][1:] == known[name][1:]
        assert known["tokens/final/patch"].num_saturated > 0 or storage_dtype != "float16"
        got.release()


def test_each_step_waits_for_the_one_before_it_on_another_queue_and_the_host_for_none() -> None:
    recorder = Recorder()
    transfer = gpu(recorder)
    transfer(batches(8)[0], ARRAYS, []).wait()
    log = recorder.log[NUM_BUFFERS:]  # the buffers' own birth is recorded first
    (sent,) = [number for queue, what, number in log if (queue, what) == ("side1", "records")]
    (used,) = [number for queue, what, number in log if (queue, what) == ("main", "records")]
    (ready,) = [number for queue, what, number in log if (queue, what) == ("side2", "records")]
    assert log == [
        ("host", "waits for", sent),
        ("side1", "waits for", used),
        ("side1", "records", sent),
        ("main", "waits for", sent),
        ("main", "records", used),
        ("side2", "waits for", used),
        ("side2", "records", ready),
        ("host", "waits for", ready),  # the writer's thread
    ]


def test_the_host_waits_only_for_the_batch_whose_buffer_it_uses_again() -> None:
    recorder = Recorder()
    transfer = gpu(recorder)
    for images in batches(8, 8, 8, 8):
        transfer(images, ARRAYS, []).release()
    waited = [number for queue, what, number in recorder.log if (queue, what) == ("host", "waits for")]
    sent = [number for queue, what, number in recorder.log if (queue, what) == ("side1", "records")]
    assert waited == sent
    assert waited[:NUM_BUFFERS] == waited[NUM_BUFFERS:]  # in turns


def test_tokens_stay_whole_until_they_are_released_and_then_the_loop_goes_on() -> None:
    transfer = gpu(Recorder())
    first, second, third = batches(8, 8, 8)
    one, other = transfer(first, ARRAYS, []), transfer(second, ARRAYS, [])
    before = one.wait()["tokens/final/cls"].values.copy()
    reserved = threading.Event()

    def go_on() -> None:
        transfer.reserve()
        reserved.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    assert not reserved.wait(0.1)  # both buffers hold tokens that nobody has written yet
    other.release()
    assert reserved.wait(5)
    thread.join()
    again = transfer(third, ARRAYS, [])
    np.testing.assert_array_equal(before, first[:, 0, 0, :5].half().numpy())
    np.testing.assert_array_equal(again.wait()["tokens/final/cls"].values, third[:, 0, 0, :5].half().numpy())


def test_the_memory_of_tokens_that_are_leaving_is_kept_until_they_have_arrived() -> None:
    transfer = gpu(Recorder())
    leaving: Any = transfer(batches(8)[0], ARRAYS, [])
    assert set(leaving._leaving) == {"tokens/final/cls", "tokens/final/patch"}
    leaving.wait()
    assert leaving._leaving == {}


# --- on a GPU ---

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_a_gpu
def test_a_gpu_gives_each_batch_its_own_tokens() -> None:
    transfer = open_transfer(forward, torch.device("cuda"), "float16", 8)
    assert isinstance(transfer, GpuTransfer)
    here = HostTransfer(forward, "float16")
    under_way = []
    for images in batches(*[8] * 20, 5):
        transfer.reserve()
        under_way.append((transfer(images, ARRAYS, []), here(images, ARRAYS, [])))
        if len(under_way) == NUM_BUFFERS:
            arriving, expected = under_way.pop(0)
            for name, rounded in arriving.wait().items():
                np.testing.assert_array_equal(rounded.values, expected.wait()[name].values)
            arriving.release()


@needs_a_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_extracts_the_tokens_of_a_cpu(photos: Path, tmp_path: Path, compiled: bool) -> None:
    source = open_source(f"folder:{photos}", "train")
    tokens = []
    for device in ("cpu", "cuda"):
        backbone = open_backbone(TINY_MODEL, weights="random", image_size=32, device=device)
        config = ExtractConfig(
            arrays=(("block.3", "cls"), ("final", "ap")),
            storage_dtype="float32",
            num_workers=0,
            compile=compiled and device == "cuda",
        )
        cache = TokenStore.open(only_store(extract(backbone, source, config, tmp_path / device)))
        tokens.append([cache.tokens(level, kind).read(0, len(source)) for level, kind in config.arrays])
    for of_cpu, of_gpu in zip(*tokens, strict=True):
        np.testing.assert_allclose(of_gpu, of_cpu, rtol=1e-3, atol=1e-3)
