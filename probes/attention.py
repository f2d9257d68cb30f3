"""Where an attentive probe looks."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from .attentive import AttentiveProbe
from .errors import DataError
from .sources import TokenSource, read_batches
from .zoo import AlfEmbedProbe, CaeProbe

BATCH = 256


@torch.no_grad()
def attention_mass(probe: AttentiveProbe | AlfEmbedProbe | CaeProbe, source: TokenSource) -> Tensor:
    """Attention over the tokens, averaged over the images.

    Args:
        probe: trained; not changed.
        source: N >= 1 images with tokens as the probe knows them.

    Returns:
        [H, T] float64; each head's row sums to 1.

    Raises:
        DataError: there are no images.
    """
    num_samples = len(source.labels)
    if num_samples == 0:
        raise DataError(
            where="attention_mass", expected="at least one image", got="none", todo="Give images to look at."
        )
    total = torch.zeros(probe.num_heads, source.token_shape[0], dtype=torch.float64)
    with contextlib.closing(read_batches(source, torch.split(torch.arange(num_samples), BATCH))) as stream:
        for _, tokens in stream:
            total += probe.attention(tokens.to(probe.query)).double().sum(0).cpu()
    return total / num_samples
