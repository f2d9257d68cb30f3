"""How long the models and probes of a study take on this machine: a few passes and training steps, scaled to all of them.

Models are run with random weights on blank images, and probes are trained by the real trainer on random tokens. Scoring, testing
and what is solved are left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch

from layerbank.probes import ArraySource, Head, TrainingProtocol, run_sweep

from ..extraction.batch_size import batch_size_on_a_cpu
from ..models.libraries.demo_weights import ARCHITECTURE, DEMO_MODEL, IMAGE_SIZE
from ..models.request import ModelRequest

GPU_BATCH, PASSES = 64, 3
FEW_IMAGES, MORE_IMAGES = 16, 96  # in a step
FEW_SETTINGS = 4
LONGEST_STEP_S = 0.1  # longer ones are extrapolated


def image_seconds(request: ModelRequest, arrays: Sequence[tuple[str, str]], device: str) -> float:
    """Return the seconds of the forward pass of an image, without decoding and writing.

    Args:
        request: the model; its weights are not read.
        arrays: the (level, kind) pairs to compute.
        device: where it runs.

    Raises:
        RequestError: no such model, or it lacks a level or kind.
    """
    if request.model == DEMO_MODEL:  # has no random weights
        request = replace(request, model=f"timm/{ARCHITECTURE}", image_size=request.image_size or IMAGE_SIZE)
    backbone = replace(request, weights="random").open(device)
    function = backbone.compile(dict.fromkeys(level for level, _ in arrays), dict.fromkeys(kind for _, kind in arrays))
    on_gpu = backbone.device.type == "cuda"
    num_images = GPU_BATCH if on_gpu else batch_size_on_a_cpu(backbone)
    images = torch.zeros(num_images, 3, *backbone.image_size, dtype=torch.uint8, device=backbone.device)
    seconds = []
    for _ in range(PASSES):
        began_s = time.perf_counter()
        function(images)
        if on_gpu:
            torch.cuda.synchronize(backbone.device)
        seconds.append(time.perf_counter() - began_s)
    return min(seconds) / num_images


@cache
def step_seconds(
    head: Head, token_shape: tuple[int, ...], num_classes: int, protocol: TrainingProtocol, device: str
) -> float:
    """Return the seconds of an optimiser step of all settings of a head, a batch of `protocol.batch_size` images.

    A long step is extrapolated from steps of few settings and few images.
    """
    few = replace(protocol, lrs=protocol.lrs[:FEW_SETTINGS], weight_decays=(1e-4,), dropouts=protocol.dropouts[:1])
    one, other = (_time_step(head, token_shape, num_classes, few, n, device) for n in (FEW_IMAGES, MORE_IMAGES))
    image_s = max(other - one, 0.0) / (MORE_IMAGES - FEW_IMAGES)
    of_few_settings = one + image_s * max(protocol.batch_size - FEW_IMAGES, 0)
    step_s = of_few_settings * len(protocol.settings(head)) / len(few.settings(head))
    if step_s > LONGEST_STEP_S:
        return step_s
    return _time_step(head, token_shape, num_classes, protocol, protocol.batch_size, device)


def _time_step(
    head: Head, token_shape: tuple[int, ...], num_classes: int, protocol: TrainingProtocol, num_images: int, device: str
) -> float:
    """Train for one epoch of five steps, and for two: the difference is without what the first step sets up."""
    num_rows = 5 * num_images + 2  # an image of either class is held out
    row = torch.randn(1, *token_shape, generator=torch.Generator().manual_seed(0)).to(device)
    source = ArraySource(row.expand(num_rows, *token_shape), torch.arange(num_rows) % 2, num_classes)
    short = replace(protocol, batch_size=num_images, epochs=1, min_steps=0, validation_fraction=1e-6, sweep="full")
    once, twice = (
        run_sweep(head, source, lambda: source, one, device=device).seconds["select"]
        for one in (short, replace(short, epochs=2))
    )
    return max(twice - once, once / 5) / 5
