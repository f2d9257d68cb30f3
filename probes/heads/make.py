"""A head as a fresh plain module: the one place that knows which class a kind is."""

from __future__ import annotations

from ..protocol import SOLVED_KINDS, Head
from . import ZOO, ZooProbe
from .attentive import AttentiveProbe
from .linear import LinearProbe


def make_probe(
    head: Head, token_shape: tuple[int, ...], num_classes: int, *, seed: int = 0
) -> AttentiveProbe | LinearProbe | ZooProbe:
    """An untrained probe.

    Args:
        head: which; of the solved kinds, ridge and logreg are linear layers, and knn, which has no parameters, is none at all.
        token_shape: (T, D) of stacked tokens, (F,) of concatenated ones.
        num_classes: C.
        seed: of the initial weights.

    Raises:
        SettingError: head and tokens do not fit each other, such as a number of heads that does not divide D.
        ValueError: the head is knn.
    """
    width = token_shape[-1]
    if head.kind == "linear" or head.kind in SOLVED_KINDS:
        if head.kind == "knn":
            raise ValueError("kNN is its training tokens: there is nothing to make before they are read")
        return LinearProbe(width, num_classes, seed=seed)
    if head.kind == "attentive":
        return AttentiveProbe(width, head.num_heads, num_classes, seed=seed)
    heads = {"num_heads": head.num_heads} if head.num_heads else {}
    levels = {"num_levels": head.num_levels, "num_tokens": token_shape[0]} if head.num_levels else {}
    sizes = {"embed_dim": width, **heads, **levels, "num_classes": num_classes}
    return ZOO[head.kind](**sizes, seed=seed)
