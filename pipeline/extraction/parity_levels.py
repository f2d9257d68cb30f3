"""Parity as numbers: rounded, and summarised by level. Without torch, so that `layerbank cache info` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Parity = dict[str, Any]
"""The parity of one array, as its store keeps it; cache/README.md lists the keys."""


def parity_by_level(parity: Mapping[str, Parity]) -> dict[str, Parity]:
    """Summarise the parity of the arrays of each level: the worst value, the mean of the means, the sums.

    Args:
        parity: path of an array -> parity.
    """
    levels: dict[str, list[Parity]] = {}
    for name, one in parity.items():
        levels.setdefault(name.split("/")[-2], []).append(one)
    return {
        level: {
            "cosine_min": min(one["cosine_min"] for one in ones),
            "cosine_mean": rounded_cosine(sum(one["cosine_mean"] for one in ones) / len(ones)),
            "max_relative_error": max(one["max_relative_error"] for one in ones),
            **{key: sum(one[key] for one in ones) for key in ("saturated", "nonfinite", "reference_nonfinite")},
        }
        for level, ones in levels.items()
    }


def rounded(value: float) -> float:
    """Round to three digits: further ones depend on the machine, and a store's bytes should not."""
    return float(f"{value:.3g}")


def rounded_cosine(value: float) -> float:
    return round(1 - rounded(1 - value), 12)
