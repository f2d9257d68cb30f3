"""How fast this machine is at a piece of the work: decoding a few images, passing a few batches through the real model.

Each measurement is the code of the run itself on less of it, within a few seconds; nothing is kept. `layerbank.cache.time_block`
does the same for the disk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from layerbank.cache import ArraySpec

from ..data.sources import ImageSource
from ..events import OnEvent, ignore
from ..extraction.batch_size import choose_batch_size
from ..extraction.decoding import Rows, decode_batches
from ..extraction.forward import SteadyForward
from ..extraction.transfer import open_transfer
from ..models.backbone import Backbone
from ..models.transform import Geometry

BUDGET_S = 3.0  # for batches after the first
LARGEST_REPEATS = 5
DECODED_STRETCHES, STRETCH = 4, 8  # images here and there: those of one class may be smaller than those of another


@dataclass(frozen=True, kw_only=True)
class ForwardSpeed:
    """One model on its device.

    Attributes:
        batch_size: images a pass.
        images_per_s: through the model, pooled, rounded and back on the host; decoding and writing not counted.
        first_pass_s: what the first pass took, with whatever a compiler or a library does once.
        tokens_bytes: of one batch on the host, as they are stored.
        device_peak_bytes: what was allocated on a GPU at most, its model included; None on a CPU.
    """

    batch_size: int
    images_per_s: float
    first_pass_s: float
    tokens_bytes: int
    device_peak_bytes: int | None


def measure_forward(
    backbone: Backbone,
    batch_size: int | None = None,
    *,
    arrays: Sequence[tuple[str, str]] | None = None,
    storage_dtype: str = "float16",
    compile_model: bool | None = None,
    on_event: OnEvent = ignore,
) -> ForwardSpeed:
    """Pass a few batches of blank images through a model as an extraction does.

    Args:
        backbone: the model, on its device.
        batch_size: images a pass; None is what a new store would be begun with.
        arrays: the (level, kind) pairs that are wanted; None is cls, where there is one, and ap of every level.
        storage_dtype: of the tokens, as a store's spec has it.
        compile_model: whether `torch.compile` makes a graph of it; None does on a GPU.
        emit: told if it could not be compiled, or did not fit.

    Raises:
        RequestError: a level or kind that the backbone lacks.
        WorkError: one image alone does not fit the memory.
    """
    kinds = ["cls", "ap"] if backbone.layout.has_cls else ["ap"]
    arrays = [(level, kind) for level in backbone.levels for kind in kinds] if arrays is None else arrays
    function = backbone.compile(*(list(dict.fromkeys(names)) for names in zip(*arrays, strict=True)))
    batch_size = choose_batch_size(backbone, function) if batch_size is None else batch_size
    on_gpu = backbone.device.type == "cuda"
    compiled = on_gpu if compile_model is None else compile_model
    forward = SteadyForward(
        function,
        batch_size=batch_size,
        model_id=backbone.model_id,
        backend="inductor" if compiled else None,
        on_event=on_event,
    )
    transfer = open_transfer(forward, backbone.device, storage_dtype, batch_size)
    specs = [ArraySpec(level=level, kind=kind, row_shape=backbone.row_shape(level, kind)) for level, kind in arrays]
    dtype = torch.float32 if backbone.normalisation is None else torch.uint8
    images = torch.zeros(batch_size, 3, *backbone.image_size, dtype=dtype)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(backbone.device)

    def one_pass() -> tuple[float, int]:
        began = time.perf_counter()
        transfer.reserve()
        arriving = transfer(images, specs, [])
        tokens_bytes = sum(rounded.values.nbytes for rounded in arriving.wait().values())
        arriving.release()
        return time.perf_counter() - began, tokens_bytes

    first_s, tokens_bytes = one_pass()
    passes: list[float] = []
    while not passes or (sum(passes) < BUDGET_S and len(passes) < LARGEST_REPEATS):
        passes.append(one_pass()[0])
    return ForwardSpeed(
        batch_size=batch_size,
        images_per_s=batch_size / statistics.median(passes),
        first_pass_s=first_s,
        tokens_bytes=tokens_bytes,
        device_peak_bytes=torch.cuda.max_memory_allocated(backbone.device) if on_gpu else None,
    )


def measure_decoding(source: ImageSource, geometries: Sequence[Geometry]) -> float:
    """Seconds that one process takes for an image: reading, decoding, and cutting it to the size of every model.

    Args:
        source: the images; a few of them are read, and those that cannot be are left for the run to find.
        geometries: of the models.
    """
    starts = sorted({len(source) * number // DECODED_STRETCHES for number in range(DECODED_STRETCHES)})
    wanted = tuple(range(len(geometries)))
    rows = [Rows(start, min(start + STRETCH, len(source)), wanted) for start in starts]
    seconds = [0.0]
    with closing(decode_batches(source, geometries, rows, num_workers=0)) as batches:
        for decoded in batches:
            seconds.append(decoded.decode_seconds / (decoded.stop - decoded.start))
    return statistics.mean(seconds[1:])
