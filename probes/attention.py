"""Statistics of the attention of a probe.

For one image, A [H, T] is the attention by head and token, each row summing to 1, and a = mean_h A its mean over the heads.

    entropy     -sum_t p_t ln p_t, in nats; exp(entropy) is the effective number of tokens, 1 to T
    mass-80     the fewest tokens that together hold 80 % of p

with p = a for the image as a whole, or p = A_h for one head. Heads that each attend to one token of their own have little
entropy while their mean has much, so both are kept. Nothing here depends on the labels.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .data.token_source import TokenSource, read_batches, reading_places
from .errors import DataError
from .heads.attention import FusionHead

SHARE = 0.8  # of mass-80
ROUNDING = 1e-6  # of a float32 softmax: five tokens of 0.2 each have 80 % in four
BATCH = 256
KEY_FLOATS = 1 << 19  # of the keys [B, T, I] of the plain module: at most 2 MiB, and as much in temporaries


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionStatistics:
    """The attention of N images; G groups of tokens, each token in one.

    Attributes:
        mass: [N, G] share of a on each group.
        entropy: [N] of a.
        mass_80: [N] int64, of a.
        mass_of_head: [H, G] share of A_h on each group, averaged over the images.
        mass_of_token: [H, T] A, averaged over the images.
        entropy_of_head: [N, H] of A_h.
        mass_80_of_head: [N, H] int64, of A_h.
    """

    mass: Tensor
    entropy: Tensor
    mass_80: Tensor
    mass_of_head: Tensor
    mass_of_token: Tensor
    entropy_of_head: Tensor
    mass_80_of_head: Tensor


@torch.no_grad()
def attention_statistics(probe: FusionHead, source: TokenSource, groups: Tensor) -> AttentionStatistics:
    """Attention statistics of every image of a source, in its order, in float64.

    Args:
        probe: trained; not changed.
        source: N >= 1 images with the tokens that the probe was trained on.
        groups: [T] int64, from 0 to G - 1: the group of each token.

    Raises:
        DataError: there are no images.
    """
    num_samples, num_groups = len(source.targets), int(groups.max()) + 1
    if num_samples == 0:
        raise DataError("probes.no_images_for_attention")
    groups_of_tokens = torch.nn.functional.one_hot(groups, num_groups).double()  # [T, G]
    total = torch.zeros(probe.num_heads, len(groups), dtype=torch.float64)
    parts: dict[str, list[Tensor]] = {
        name: [] for name in ("mass", *_SPREADS, *(f"{name}_of_head" for name in _SPREADS))
    }
    rows_at_once = max(1, min(BATCH, KEY_FLOATS // (len(groups) * probe.to_k.out_features)))
    order = reading_places(source, torch.arange(num_samples))
    with contextlib.closing(read_batches(source, torch.split(order, rows_at_once))) as stream:
        for _, tokens in stream:
            attention = probe.attention(tokens.to(probe.query)).double().cpu()  # [B, H, T]
            of_image = attention.mean(1)  # [B, T]
            total += attention.sum(0)
            parts["mass"].append(of_image @ groups_of_tokens)
            for name, spread in _SPREADS.items():
                parts[name].append(spread(of_image))
                parts[f"{name}_of_head"].append(spread(attention))
    mass_of_token, place = total / num_samples, order.argsort()
    return AttentionStatistics(
        **{name: torch.cat(values)[place] for name, values in parts.items()},
        mass_of_head=mass_of_token @ groups_of_tokens,
        mass_of_token=mass_of_token,
    )


def attention_mass(probe: FusionHead, source: TokenSource) -> Tensor:
    """Attention over the tokens, averaged over the images.

    Args:
        probe: trained; not changed.
        source: N >= 1 images with the tokens that the probe was trained on.

    Returns:
        [H, T] float64; each head's row sums to 1.

    Raises:
        DataError: there are no images.
    """
    return attention_statistics(probe, source, torch.zeros(source.token_shape[0], dtype=torch.int64)).mass_of_token


def entropy(shares: Tensor) -> Tensor:
    """-sum p ln p over the last axis, in nats: [..., T] -> [...].

    >>> entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).tolist()
    [0.6931471824645996, 0.0]
    """
    total: Tensor = torch.special.entr(shares).sum(-1)
    return total


def mass_80(shares: Tensor) -> Tensor:
    """The fewest of the last axis that together hold 80 %: [..., T] -> [...] int64.

    >>> mass_80(torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2], [0.05, 0.9, 0.05, 0.0, 0.0]])).tolist()
    [4, 1]
    """
    falling = shares.sort(-1, descending=True).values.cumsum(-1)
    return (falling < SHARE - ROUNDING).sum(-1) + 1


_SPREADS = {"entropy": entropy, "mass_80": mass_80}
