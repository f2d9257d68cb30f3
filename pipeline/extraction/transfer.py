"""To the device, through the model, back to the host: decoded images in, tokens in the storage dtype on their way out.

On a CPU the three are one call. On a GPU they are three queues, and the host waits for none of them: images are copied into a
page-locked buffer and sent from there on a stream of their own, the model follows on the main stream, and tokens come back on a
third stream into page-locked buffers, where the writer's thread waits for them. The host waits for an event only before it uses a
buffer again.

Knows neither stores nor sources.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from layerbank.cache import ArraySpec, storage_dtype_of

from ..models.backbone import Tokens
from ..models.rounding import DeviceRounded, Rounded, as_rounded, round_on_device
from .write_behind import Arriving

NUM_BUFFERS = 2  # of each kind: one is filled while the other is emptied


class Transfer(Protocol):
    """The path of a batch through a device."""

    def reserve(self) -> None:
        """Wait until a buffer is free for the tokens of one more batch."""

    def __call__(self, images: Tensor, arrays: Sequence[ArraySpec], bad: Sequence[int]) -> Arriving:
        """Start to compute a batch, after `reserve`.

        Args:
            images: [n, 3, H, W] on the host, as the backbone's geometry makes them.
            arrays: the tokens to keep.
            bad: indices of images that could not be read: their tokens are zeros.
        """


def open_transfer(
    forward: Callable[[Tensor], Tokens], device: torch.device, storage_dtype: str, batch_size: int
) -> Transfer:
    """Return the transfer for a device.

    Args:
        forward: images on the device, uint8 or float32 -> tokens on the device.
        device: the device of the model.
        storage_dtype: dtype that tokens are rounded to before they leave the device, as in a store's spec.
        batch_size: the largest number of images in a call.
    """
    if device.type == "cuda":
        return GpuTransfer(forward, device, storage_dtype, batch_size)
    return HostTransfer(forward, storage_dtype)


class HostTransfer:
    """The transfer of a model on the CPU: nothing is copied."""

    def __init__(self, forward: Callable[[Tensor], Tokens], storage_dtype: str) -> None:
        self._forward, self._storage_dtype = forward, storage_dtype

    def reserve(self) -> None:
        pass

    def __call__(self, images: Tensor, arrays: Sequence[ArraySpec], bad: Sequence[int]) -> Arriving:
        rounded = rounded_tokens(self._forward(images), arrays, bad, self._storage_dtype)
        return Arrived({name: as_rounded(r.values, r.counts) for name, r in rounded.items()})


class Arrived:
    """Tokens that have arrived."""

    def __init__(self, tokens: dict[str, Rounded]) -> None:
        self._tokens = tokens

    def wait(self) -> dict[str, Rounded]:
        return self._tokens

    def release(self) -> None:
        pass


def rounded_tokens(
    tokens: Tokens, arrays: Sequence[ArraySpec], bad: Sequence[int], storage_dtype: str
) -> dict[str, DeviceRounded]:
    """Round tokens to what is stored, on the device of the model: array name -> values and counts."""
    rounded = {}
    for array in arrays:
        values = tokens[array.level][array.kind]
        if bad:
            values = values.clone()
            values[list(bad)] = 0
        rounded[array.name] = round_on_device(values, storage_dtype_of(storage_dtype, array.kind))
    return rounded


class GpuTransfer:
    """The transfer of a model on a GPU.

    Args:
        forward, device, storage_dtype, batch_size: see `open_transfer`.
        cuda: the module that makes streams and events; the tests pass a recorder.
        pin: whether host buffers are page-locked.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tokens],
        device: torch.device,
        storage_dtype: str,
        batch_size: int,
        *,
        cuda: Any = torch.cuda,
        pin: bool = True,
    ) -> None:
        self._forward, self._device, self._storage_dtype = forward, device, storage_dtype
        self._batch_size, self._cuda, self._pin = batch_size, cuda, pin
        self._main = cuda.current_stream(device)
        self._sending, self._returning = cuda.Stream(device), cuda.Stream(device)
        self._inputs: list[_InputBuffer] = []
        self._num_sent = 0
        self._free: queue.SimpleQueue[_OutputBuffer] = queue.SimpleQueue()
        for _ in range(NUM_BUFFERS):
            self._free.put(_OutputBuffer(self._free, cuda.Event(), batch_size, pin))
        self._reserved: _OutputBuffer | None = None

    def reserve(self) -> None:
        if self._reserved is None:
            self._reserved = self._free.get()

    def __call__(self, images: Tensor, arrays: Sequence[ArraySpec], bad: Sequence[int]) -> Arriving:
        self.reserve()
        buffer = self._send(images)
        self._main.wait_event(buffer.sent)
        rounded = rounded_tokens(self._forward(buffer.there[: len(images)]), arrays, bad, self._storage_dtype)
        buffer.used.record(self._main)
        output, self._reserved = self._reserved, None
        assert output is not None
        self._returning.wait_event(buffer.used)
        with self._cuda.stream(self._returning):
            output.fill(rounded, len(images))
            output.ready.record(self._returning)
        return output

    def _send(self, images: Tensor) -> _InputBuffer:
        if not self._inputs:
            shape = (self._batch_size, *images.shape[1:])
            for _ in range(NUM_BUFFERS):
                here = torch.empty(shape, dtype=images.dtype, pin_memory=self._pin)
                there = torch.empty(shape, dtype=images.dtype, device=self._device)
                buffer = _InputBuffer(here, there, self._cuda.Event(), self._cuda.Event())
                buffer.used.record(self._main)  # whatever was there before on the main stream
                self._inputs.append(buffer)
        buffer = self._inputs[self._num_sent % NUM_BUFFERS]
        self._num_sent += 1
        buffer.sent.synchronize()  # the copy out of the host's buffer, two batches ago
        buffer.here[: len(images)].copy_(images)
        self._sending.wait_event(buffer.used)  # the pass that read the device's buffer, two batches ago
        with self._cuda.stream(self._sending):
            buffer.there[: len(images)].copy_(buffer.here[: len(images)], non_blocking=True)
            buffer.sent.record(self._sending)
        return buffer


class _InputBuffer:
    """Images here, page-locked, and there, on the device; events of the copy between them and of the pass that reads it."""

    def __init__(self, here: Tensor, there: Tensor, sent: Any, used: Any) -> None:
        self.here, self.there, self.sent, self.used = here, there, sent, used


class _OutputBuffer:
    """Tokens of one batch on the host, page-locked, and the event of their arrival."""

    def __init__(self, free: queue.SimpleQueue[_OutputBuffer], ready: Any, batch_size: int, pin: bool) -> None:
        self.ready = ready
        self._free, self._batch_size, self._pin = free, batch_size, pin
        self._values: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._leaving: dict[str, DeviceRounded] = {}  # kept until their copies are done: else the memory is used again
        self._num_rows = 0

    def fill(self, rounded: dict[str, DeviceRounded], num_rows: int) -> None:
        """Queue the copies on the current stream."""
        self._leaving, self._num_rows = rounded, num_rows
        for name, (values, counts) in rounded.items():
            if name not in self._values:
                shape = (self._batch_size, *values.shape[1:])
                self._values[name] = torch.empty(shape, dtype=values.dtype, pin_memory=self._pin)
                self._counts[name] = torch.empty(2, dtype=torch.int64, pin_memory=self._pin)
            self._values[name][:num_rows].copy_(values, non_blocking=True)
            self._counts[name].copy_(counts, non_blocking=True)

    def wait(self) -> dict[str, Rounded]:
        self.ready.synchronize()
        names = list(self._leaving)
        self._leaving = {}
        return {name: as_rounded(self._values[name][: self._num_rows], self._counts[name]) for name in names}

    def release(self) -> None:
        self._free.put(self)
