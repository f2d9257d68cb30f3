"""Decode images in worker processes: row ranges in, batches of tensors out, in order, each image once for all its transforms.

Processes, because transforms hold the interpreter lock much of the time. They come from a forkserver: a fork of this process would
copy locks that its other threads hold (torch's pool, the writer, the display) and hang now and then, and spawn would import torch
and timm again in every worker and for every split.

Knows sources and transforms, not models or caches: decoding processes need not import a model's library.
"""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..data.decoding import is_flat
from ..data.sources import BadImage, ImageSource
from ..data.views import VIEW_SEED, ViewRule, draw_view
from ..errors import WorkError

Transform = Callable[[Image.Image], torch.Tensor]

PREFETCHED_BATCHES = 2  # for each worker: one done, one in progress; the model is the slow part, more only takes memory


class Rows(NamedTuple):
    """Rows start..stop-1 of a source, to be decoded together, and the indices of the transforms to apply."""

    start: int
    stop: int
    transforms: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class DecodedBatch:
    """Rows start..stop-1 of a source.

    Attributes:
        images: index of a transform -> [B, 3, H, W] in the dtype it gives; rows of bad images are zeros.
        content_hashes: [B] uint64, content hash of each image; 0 for images that could not be read at all.
        bad: row -> why it could not be decoded. The caller decides whether that ends the work.
        flat: rows whose image has hardly any contrast, see `is_flat`.
    """

    start: int
    stop: int
    images: dict[int, torch.Tensor]
    content_hashes: NDArray[np.uint64]
    bad: dict[int, BadImage]
    flat: tuple[int, ...] = ()


def decode_batches(
    source: ImageSource, transforms: Sequence[Transform], batches: Sequence[Rows], *, num_workers: int
) -> Generator[DecodedBatch]:
    """Yield one DecodedBatch for each `Rows`, in the order of `batches`; the bytes do not depend on `num_workers`.

    Workers end with the generator: at its end, when it is closed, or when its consumer drops it. Wrap it in
    `contextlib.closing` to be sure of the moment.

    The first batch is decoded in this process, so that the model need not wait until the workers have started.

    Args:
        source: the images.
        transforms: each an RGB image -> [3, H, W], with the same H, W and dtype for every image; they must pickle.
        batches: which rows, and which of the transforms to apply.
        num_workers: processes; 0 decodes in this one.

    Raises:
        WorkError: a worker process died.
    """
    decoding = _Decoding(source, transforms)
    if num_workers == 0 or len(batches) < 2:
        for batch in batches:
            yield decoding[batch]
        return
    with warnings.catch_warnings():
        # more workers than cores is the caller's choice: a network disk gains by it
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader: DataLoader[DecodedBatch] = DataLoader(
            decoding,
            sampler=batches[1:],
            batch_size=None,  # the ranges are the batches
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=PREFETCHED_BATCHES,
            multiprocessing_context=_worker_context(),
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # by default it draws from torch's global one, which is the caller's
        )
        workers: Any = iter(loader)
    try:
        yield decoding[batches[0]]  # here, while the workers start: they take a quarter of a second
        yield from _watched(workers)
    finally:
        # the loader ends them only when collected, and a traceback may keep it alive for long
        workers._shutdown_workers()


def _watched(workers: Iterator[DecodedBatch]) -> Generator[DecodedBatch]:
    """Yield what the workers decode; raise WorkError if one dies."""
    try:
        yield from workers
    except (RuntimeError, EOFError, OSError) as error:
        reason = _death_of_a_worker(error)
        if reason is None:
            raise
        raise WorkError("extraction.decoding_process_died", reason=reason) from error


def start_worker_server() -> None:
    """Let the forkserver start its imports (seconds) while the caller opens its model; returns at once."""
    if _worker_context().get_start_method() == "forkserver":
        from multiprocessing.forkserver import ensure_running

        ensure_running()


def _death_of_a_worker(error: Exception) -> str | None:
    """Return what an error of the loader says about a worker that died, None for any other error.

    The loader's watchdog raises a RuntimeError. If a batch was just being handed over, the parent finds the worker's socket closed
    or gone instead. An error of the worker's own code says that it was caught in the worker.
    """
    if isinstance(error, RuntimeError):
        return str(error) if "DataLoader worker (pid" in str(error) else None
    if "in DataLoader worker process" in str(error):
        return None
    return f"a worker that ended while it handed over a batch ({type(error).__name__})"


class _Decoding(Dataset[DecodedBatch]):
    """The data set that a worker holds: indexed by `Rows`, it returns the decoded batch."""

    def __init__(self, source: ImageSource, transforms: Sequence[Transform]) -> None:
        self.source, self.transforms = source, transforms

    def __getitem__(self, rows: Rows) -> DecodedBatch:
        start, stop, wanted = rows
        images: dict[int, torch.Tensor] = {}
        content_hashes = np.zeros(stop - start, dtype=np.uint64)
        bad: dict[int, BadImage] = {}
        flat: list[int] = []
        for row in range(start, stop):
            try:
                image, content_hash = self.source.load(row)
            except BadImage as error:
                bad[row] = error
                content_hashes[row - start] = error.content_hash
                continue
            if is_flat(image):
                flat.append(row)
            for number in wanted:
                pixels = self.transforms[number](image)
                if number not in images:
                    images[number] = pixels.new_zeros(stop - start, *pixels.shape)
                images[number][row - start] = pixels
            content_hashes[row - start] = content_hash
        for number in wanted:
            if number not in images:  # every image is bad
                pixels = self.transforms[number](Image.new("RGB", (256, 256)))
                images[number] = pixels.new_zeros(stop - start, *pixels.shape)
        return DecodedBatch(start, stop, images, content_hashes, bad, tuple(flat))


@dataclass(frozen=True, kw_only=True)
class ViewGeometry:
    """RGB image -> uint8 [3, H, W]: the model's own geometry, or the view whose seed the image carries.

    Attributes:
        evaluation: the model's own geometry.
        size: height and width in pixels.
        resample: the Pillow filter that the model's own geometry uses.
        rule: how views are drawn.
    """

    evaluation: Callable[[Any], torch.Tensor]
    size: tuple[int, int]
    resample: int
    rule: ViewRule

    def __call__(self, image: Image.Image) -> torch.Tensor:
        seed = image.info.get(VIEW_SEED)
        if seed is None:
            return self.evaluation(image)
        box, mirrored = draw_view(image.size, self.rule, seed)
        view = image.crop(box).resize(self.size[::-1], Image.Resampling(self.resample))
        if mirrored:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.frombuffer(bytearray(view.tobytes()), dtype=torch.uint8)
        return pixels.view(*self.size, 3).permute(2, 0, 1).contiguous()


def _worker_context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # what unpickling a source and a transform imports; without effect once the server runs
    context.set_forkserver_preload([__name__, "torchvision.transforms", "timm.data"])
    return context


def _leave_interrupts_to_the_parent(_: int) -> None:
    """Ignore Ctrl-C, which reaches the whole process group: the parent ends its workers, without their tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
