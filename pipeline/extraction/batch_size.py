"""Choose how many images go through a model at once.

On a CPU the activations of a layer should be a few megabytes: they stay in its caches, and the allocator keeps memory of that
size, where it takes larger pieces from the system page by page, every time. On a GPU the batch is as large as its free memory
holds, extrapolated from two small batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..memory import free_device_bytes
from ..models.backbone import Backbone, TokenFunction
from .transfer import NUM_BUFFERS

TOKENS_ON_A_CPU = 1600  # in a batch
LARGEST_ON_A_CPU = 64
LARGEST = 512  # a ViT-B is at its best long before; more only makes row blocks and buffers large
TRIED = (4, 8)  # images of the two small batches


def choose_batch_size(backbone: Backbone, function: TokenFunction) -> int:
    """Return the number of images in a forward pass, for a new store; an existing one keeps its own.

    Args:
        backbone: the model, on its device.
        function: its forward pass to the requested tokens.
    """
    if backbone.device.type != "cuda":
        return batch_size_on_a_cpu(backbone)

    def peak_bytes(num_images: int) -> int:
        images = torch.zeros(num_images, 3, *backbone.image_size, dtype=torch.uint8, device=backbone.device)
        torch.cuda.synchronize(backbone.device)
        torch.cuda.reset_peak_memory_stats(backbone.device)
        before = torch.cuda.memory_allocated(backbone.device)
        tokens = function(images)
        peak = torch.cuda.max_memory_allocated(backbone.device) - before
        leaving = sum(values.nbytes for kinds in tokens.values() for values in kinds.values())
        return peak + NUM_BUFFERS * leaving  # tokens of earlier batches, on their way to the host

    peak_bytes(TRIED[0])  # libraries take their workspace once
    return fitting_batch_size(peak_bytes, free_device_bytes(backbone.device))


def batch_size_on_a_cpu(backbone: Backbone) -> int:
    """Return the largest power of two, 1 to LARGEST_ON_A_CPU, whose images have at most TOKENS_ON_A_CPU tokens."""
    height, width = backbone.layout.grid_size
    fitting = TOKENS_ON_A_CPU // (backbone.layout.num_prefix_tokens + height * width)
    return 1 << min(max(fitting, 1), LARGEST_ON_A_CPU).bit_length() - 1


def even_batch_size(num_rows: int, most: int) -> int:
    """Return the size of the fewest batches of at most `most` rows, as equal as they can be.

    >>> even_batch_size(592, 512), even_batch_size(128, 512)
    (296, 128)
    """
    return -(-num_rows // -(-num_rows // most))


def fitting_batch_size(peak_bytes: Callable[[int], int], free_bytes: int) -> int:
    """Return the largest power of two, 1 to LARGEST, whose forward pass fits into the memory.

    Args:
        peak_bytes: number of images -> peak memory of their forward pass.
        free_bytes: the memory that may be used.

    >>> fitting_batch_size(lambda num_images: 100 + 10 * num_images, 1500)
    128
    """
    few, more = (peak_bytes(num_images) for num_images in TRIED)
    per_image = max(1, -(-(more - few) // (TRIED[1] - TRIED[0])))
    fixed = max(0, few - TRIED[0] * per_image)
    fitting = max(1, min(LARGEST, (free_bytes - fixed) // per_image))
    return 1 << (fitting.bit_length() - 1)
