"""Heads of other studies on the same tokens: one class each, all trained by `ModuleBank`. probes/README.md has one row a head."""

from .blocks import MapProbe, VJepaProbe
from .fusion import AlfEmbedProbe, CaeProbe
from .pooling import AbmilpProbe, AimProbe, EpProbe, SimPoolProbe
from .scalar_mix import ScalarMixProbe
from .zoo_probe import ZooProbe

ZOO: dict[str, type[ZooProbe]] = {
    kind.kind: kind
    for kind in (
        CaeProbe,
        AlfEmbedProbe,
        AimProbe,
        EpProbe,
        AbmilpProbe,
        SimPoolProbe,
        VJepaProbe,
        MapProbe,
        ScalarMixProbe,
    )
}

__all__ = [
    "ZOO",
    "ZooProbe",
    # attentive fusion with one thing changed
    "CaeProbe",
    "AlfEmbedProbe",
    # attention that pools, then the classifier
    "AimProbe",
    "EpProbe",
    "AbmilpProbe",
    "SimPoolProbe",
    # attention and an MLP
    "VJepaProbe",
    "MapProbe",
    # no attention
    "ScalarMixProbe",
]
