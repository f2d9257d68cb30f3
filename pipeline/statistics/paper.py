"""The published numbers, and ours beside them for the same model, data set and probe.

The paper's tables are package data (`published/README.md` says where they come from). This module maps our names to theirs; a name
without a counterpart is left out, never matched by similarity.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..data.catalogue import find_entry
from .scores import Score

PAPER = "paper"
IMAGE_SIZE = 224  # pixels

PROBES = {
    "CLS last layer": "linear-cls",
    "All tokens last layer (attentive)": "aat",
    "CLS+AP last layer (linear)": "linear-last",
    "CLS+AP layers from middle & last blocks (linear)": "linear-mid",
    "CLS+AP layers from quarterly blocks (linear)": "linear-quarterly",
    "CLS+AP layers from all blocks (linear)": "linear-all",
    "CLS+AP last layer (attentive)": "attn-last",
    "CLS+AP layers from middle & last blocks (attentive)": "attn-mid",
    "CLS+AP layers from quarterly blocks (attentive)": "attn-quarterly",
    "CLS+AP layers from all blocks (attentive)": "alf",
}


@dataclass(frozen=True)
class PaperModel:
    """A backbone of the paper.

    Attributes:
        family: ViT, DINOv2 or CLIP.
        size: S, B or L.
        name: in the paper's tables.
        model: our id of the same weights.
        image_size: side of the model's own input in pixels; the paper's is 224 for all.
    """

    family: str
    size: str
    name: str
    model: str
    image_size: int = 224


MODELS = (
    PaperModel("ViT", "S", "vit_small_patch16_224", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
    PaperModel("ViT", "B", "vit_base_patch16_224", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    PaperModel("ViT", "L", "vit_large_patch16_224", "timm/vit_large_patch16_224.augreg_in21k_ft_in1k"),
    PaperModel("DINOv2", "S", "dinov2-vit-small-p14", "timm/vit_small_patch14_dinov2.lvd142m", 518),
    PaperModel("DINOv2", "B", "dinov2-vit-base-p14", "timm/vit_base_patch14_dinov2.lvd142m", 518),
    PaperModel("DINOv2", "L", "dinov2-vit-large-p14", "timm/vit_large_patch14_dinov2.lvd142m", 518),
    PaperModel("CLIP", "B", "OpenCLIP_ViT-B-32_openai", "open_clip/ViT-B-32-quickgelu/openai"),
    PaperModel("CLIP", "B", "OpenCLIP_ViT-B-16_openai", "open_clip/ViT-B-16-quickgelu/openai"),
    PaperModel("CLIP", "L", "OpenCLIP_ViT-L-14_openai", "open_clip/ViT-L-14-quickgelu/openai"),
)


def find_model(model: str) -> PaperModel | None:
    """The backbone of the paper with the weights of a model id, None if it is not in the paper."""
    return next((one for one in MODELS if model in (one.model, one.model.removeprefix("timm/"))), None)


@cache
def published_scores() -> tuple[Score, ...]:
    """Every number of the paper's tables, by our ids of models and probes and the catalogue's names of data sets.

    >>> scores = published_scores()
    >>> len({score.model for score in scores}), len({score.dataset for score in scores}), len({s.probe for s in scores})
    (9, 19, 10)
    """
    scores = []
    for model in MODELS:
        table = files(__package__).joinpath("published", f"perf_table_{model.name}_v2.csv")
        _, probes, _, *lines = csv.reader(table.read_text(encoding="utf-8").splitlines())
        for dataset, *cells in lines:
            if dataset.endswith("perf. gain"):
                continue  # the authors' own summary of the lines above
            scores += [
                Score(model=model.model, dataset=dataset, probe=PROBES[probe], percent=float(cell), setting=PAPER)
                for probe, cell in zip(probes[1:], cells, strict=True)
                if cell
            ]
    return tuple(scores)


@dataclass(frozen=True, kw_only=True)
class BesidePaper:
    """Our result and the paper's.

    Attributes:
        ours: our score.
        published: the paper's balanced accuracy for the same model, data set and probe, in percent.
        published_gain: the paper's points over its own `linear-cls`.
    """

    ours: Score
    published: float
    published_gain: float

    @property
    def difference(self) -> float:
        """Points of ours over the paper's."""
        return self.ours.percent - self.published


def has_papers_inputs(score: Score, config: Mapping[str, Any]) -> bool:
    """Whether a result is of the paper's weights, image size and data set, not only of a model and data with their names.

    Args:
        score: the result.
        config: of its probe.json; what it does not say is not the paper's.
    """
    model, entry, request = find_model(score.model), find_entry(score.dataset), config.get("model", {})
    return (
        model is not None
        and entry is not None
        and request.get("weights", "unknown") is None
        and (request.get("image_size") or model.image_size) == IMAGE_SIZE
        and str(config.get("data")).startswith("wds:")
        and len(config.get("class_names", ())) == entry.num_classes
    )


def beside_paper(scores: Iterable[Score]) -> list[BesidePaper]:
    """Our scores with a counterpart in the paper, in the order given.

    Small differences in both directions are expected: the authors validated with jitter, ran CLIP's weights with GELU and
    normalised the tokens of aat over the token axis; layerbank does none of these, and both have one seed.
    """
    known = {(score.model, score.dataset, score.probe): score.percent for score in published_scores()}
    found = []
    for score in scores:
        model, entry = find_model(score.model), find_entry(score.dataset)
        if model is None or entry is None:
            continue
        published = known.get((model.model, entry.title, score.probe))
        reference = known.get((model.model, entry.title, "linear-cls"))
        if published is not None and reference is not None:
            found.append(BesidePaper(ours=score, published=published, published_gain=published - reference))
    return found
