"""What a run keeps of where its probe looks: numbers, a table and a picture, all from one pass over the test images.

    attention.json   the numbers below, of the whole probe and of every head
    attention.npz    per image: sample_ids [N], mass [N, L, K] float32, entropy [N], mass_80 [N]; per head: mass_of_head [H, L, K],
                     mass_of_token [H, T]; read with numpy.load, nothing is pickled
    attention.csv    level, kind, share, std: the numbers of the picture
    attention.png    share of attention a level and kind

A number is a mean over the test images with its standard deviation between them (of all N, not N - 1). `a` is the attention of an
image, averaged over the heads; `probes/attention.py` defines entropy and mass-80. A third of the depth counts blocks: of a
backbone of `depth` blocks, block k is in third ceil(3 k / depth), `final` in the last, block 0 in the first; so the sets `all` of
depth 12 and 24 fall into three equal parts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerbank.probes import AttentionStatistics, FusionHead, TokenSource, attention_statistics

from ..models.layers import FINAL
from .figures import draw_attention_map
from .probe_spec import ProbeSpec

THIRDS = ("early", "middle", "late")
FORMAT = 1


def keep_attention(
    probe: FusionHead,
    test: TokenSource,
    named: ProbeSpec,
    tokens_per_kind: Sequence[int],
    sample_ids: Sequence[str],
    folder: Path,
    title: str,
) -> dict[str, Any]:
    """Look once at every test image, write the four files, and return the key numbers for a row of results.

    Args:
        probe: trained.
        test: tokens of N images, levels first, then kinds, then cells.
        named: its levels, kinds and the depth of the backbone.
        tokens_per_kind: how many tokens each kind has at a level.
        sample_ids: N, in the order of the images.
        folder: of the row; exists.
        title: of the picture, one line.
    """
    num_levels, num_kinds = len(named.levels), len(named.kinds)
    groups = torch.arange(num_levels * num_kinds).repeat_interleave(torch.tensor(tokens_per_kind).repeat(num_levels))
    found = attention_statistics(probe, test, groups)
    summary = summarize(found, named)
    _write_json(
        folder / "attention.json", {"format": FORMAT, **_header(named, found), **summary, **_heads(found, named)}
    )
    _write_npz(folder / "attention.npz", found, sample_ids, (num_levels, num_kinds))
    mass = found.mass.view(-1, num_levels, num_kinds)
    mean, std = mass.mean(0).T.numpy(), mass.std(0, correction=0).T.numpy()  # [K, L]
    draw_attention_map(folder / "attention.png", mean, named.levels, named.kinds, title, std=std)
    return summary


def summarize(found: AttentionStatistics, named: ProbeSpec) -> dict[str, Any]:
    """The key numbers: each {"mean", "std"} over images.

    Returns:
        entropy, effective_tokens and mass_80 of `a`; entropy_of_a_head, the mean over heads of each head's own; share_of_kind by
        kind; share_of_third by third of the depth, null where the depth is not known.
    """
    mass = found.mass.view(-1, len(named.levels), len(named.kinds))
    of_level = mass.sum(2)
    return {
        "entropy": _number(found.entropy),
        "effective_tokens": _number(found.entropy.exp()),
        "mass_80": _number(found.mass_80),
        "entropy_of_a_head": _number(found.entropy_of_head.mean(1)),
        "share_of_kind": {kind: _number(mass[:, :, place].sum(1)) for place, kind in enumerate(named.kinds)},
        "share_of_third": _thirds(of_level, named),
    }


def third_of_depth(level: str, depth: int) -> str:
    """early, middle or late.

    >>> [third_of_depth(level, 12) for level in ("block.0", "block.4", "block.5", "block.8", "block.9", "final")]
    ['early', 'early', 'middle', 'middle', 'late', 'late']
    """
    number = depth if level == FINAL else int(level.removeprefix("block."))
    return THIRDS[max(-(-3 * number // depth), 1) - 1]


def _thirds(of_level: torch.Tensor, named: ProbeSpec) -> dict[str, Any] | None:
    if named.depth is None:
        return None
    places = [third_of_depth(level, named.depth) for level in named.levels]
    return {
        third: _number(of_level[:, [place == third for place in places]].sum(1)) for third in THIRDS
    }  # a third without levels has 0


def _header(named: ProbeSpec, found: AttentionStatistics) -> dict[str, Any]:
    num_heads, num_tokens = found.mass_of_token.shape
    return {
        "levels": list(named.levels),
        "kinds": list(named.kinds),
        "depth": named.depth,
        "num_samples": len(found.mass),
        "num_heads": num_heads,
        "num_tokens": num_tokens,
    }


def _heads(found: AttentionStatistics, named: ProbeSpec) -> dict[str, Any]:
    """One record a head; `mass` is [L][K]."""
    mass = found.mass_of_head.view(-1, len(named.levels), len(named.kinds))
    return {
        "heads": [
            {
                "entropy": _number(found.entropy_of_head[:, head]),
                "effective_tokens": _number(found.entropy_of_head[:, head].exp()),
                "mass_80": _number(found.mass_80_of_head[:, head]),
                "mass": mass[head].tolist(),
            }
            for head in range(len(mass))
        ]
    }


def _number(values: torch.Tensor) -> dict[str, float]:
    """[N] -> mean and standard deviation."""
    values = values.double()
    return {"mean": values.mean().item(), "std": values.std(correction=0).item()}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    staging = path.with_name(f".{path.name}")
    staging.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    staging.replace(path)


def _write_npz(
    path: Path, found: AttentionStatistics, sample_ids: Sequence[str], levels_kinds: tuple[int, int]
) -> None:
    staging = path.with_name(f".{path.name}")
    with staging.open("wb") as file:
        np.savez(
            file,
            sample_ids=np.array(sample_ids),
            mass=found.mass.view(-1, *levels_kinds).float().numpy(),
            entropy=found.entropy.float().numpy(),
            mass_80=found.mass_80.numpy(),
            mass_of_head=found.mass_of_head.view(-1, *levels_kinds).numpy(),
            mass_of_token=found.mass_of_token.numpy(),
        )
    staging.replace(path)
