"""How much gpu.py measures, and on what; with the stopwatches that its sections share."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from layerbank.probes import COMPUTES


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of both stages.

    Attributes:
        num_samples, num_test, depth, embed_dim, num_classes: of the training: two tokens a block, one head a token.
        min_steps: of a training; 1,000 is the paper's.
        num_stored: images of the store that is uploaded and streamed.
        groups_and_chunks: probes and samples that go through together, to be tried.
        num_seeds: of the accuracies.
        product: side of the matrices of the largest product.
        models: of stage one, and the side of their images; None is their own.
        image_size: likewise.
        batch_sizes: images a forward pass.
        num_images: JPEG files that are extracted.
        min_seconds: what a measurement lasts at least.
    """

    num_samples: int
    num_test: int
    depth: int
    embed_dim: int
    num_classes: int
    min_steps: int
    num_stored: int
    groups_and_chunks: tuple[tuple[int, int], ...]
    num_seeds: int
    product: int
    models: tuple[str, ...]
    image_size: int | None
    batch_sizes: tuple[int, ...]
    num_images: int
    min_seconds: float

    @property
    def num_tokens(self) -> int:
        return 2 * self.depth


FULL = Sizes(
    num_samples=45_000,
    num_test=5000,
    depth=12,
    embed_dim=768,
    num_classes=100,
    min_steps=1000,
    num_stored=20_000,
    groups_and_chunks=((7, 256), (7, 2048), (21, 512), (21, 2048), (63, 2048)),
    num_seeds=3,
    product=8192,
    models=("timm/vit_small_patch16_224", "timm/vit_base_patch16_224", "timm/vit_large_patch16_224"),
    image_size=None,
    batch_sizes=(32, 64, 128, 256, 512, 1024),
    num_images=8192,
    min_seconds=1.0,
)
SMOKE = Sizes(
    num_samples=200,
    num_test=40,
    depth=2,
    embed_dim=24,
    num_classes=5,
    min_steps=2,
    num_stored=300,
    groups_and_chunks=((2, 64),),
    num_seeds=1,
    product=64,
    models=("timm/vit_tiny_patch16_224",),
    image_size=32,
    batch_sizes=(4,),
    num_images=8,
    min_seconds=0.0,
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured, and where.

    Attributes:
        device: of the arithmetic.
        sizes: of the work.
        folder: for a timeline; None keeps none.
    """

    device: torch.device
    sizes: Sizes
    folder: Path | None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def computes(self) -> list[str]:
        """Matmul precisions of the device."""
        return [compute for compute in COMPUTES if self.on_gpu or compute != "tf32"]

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall seconds of one call, the device's work included: the median of enough calls after one to warm up."""
        self.once(work)
        times = [self.once(work)]
        while sum(times) < self.sizes.min_seconds or len(times) < min(3, 1000 * self.sizes.min_seconds):
            times.append(self.once(work))
        return median(times)

    def once(self, work: Callable[[], object]) -> float:
        """Wall seconds of this one call."""
        self.wait()
        start_s = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start_s

    def forget_peak(self) -> None:
        """Begin to measure `peak_bytes` anew."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int | None:
        """The most memory that tensors took since then; None where nobody counts."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else None

    def waits(self, work: Callable[[], object]) -> int:
        """How often the host waits for the GPU in a call, as torch sees it."""
        if not self.on_gpu:
            return 0
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in seen)
