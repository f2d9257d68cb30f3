"""How long a model takes for an image on this machine: a few passes over noise, by the model with random weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..models.demo_weights import ARCHITECTURE, DEMO_MODEL, IMAGE_SIZE
from ..models.request import ModelRequest

IMAGES_ON_A_CPU, IMAGES_ON_A_GPU = 4, 64
REPEATS = 3


def image_seconds(request: ModelRequest, arrays: Sequence[tuple[str, str]], device: str) -> float:
    """Of the forward pass to some tokens, decoding and writing left out.

    Args:
        request: the model; its weights are not read, for they change nothing here.
        arrays: (level, kind) that are wanted.
        device: where it would run.

    Raises:
        RequestError: no such model, or it lacks a level or kind.
    """
    if request.model == DEMO_MODEL:  # it has no random weights, but what it is has
        request = replace(request, model=f"timm/{ARCHITECTURE}", image_size=request.image_size or IMAGE_SIZE)
    backbone = replace(request, weights="random").open(device)
    function = backbone.compile(dict.fromkeys(level for level, _ in arrays), dict.fromkeys(kind for _, kind in arrays))
    on_gpu = backbone.device.type == "cuda"
    images = torch.zeros(IMAGES_ON_A_GPU if on_gpu else IMAGES_ON_A_CPU, 3, *backbone.image_size, dtype=torch.uint8)
    images = images.to(backbone.device)
    least = float("inf")
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        function(images)
        if on_gpu:
            torch.cuda.synchronize(backbone.device)
        least = min(least, time.perf_counter() - began_s)
    return least / len(images)
