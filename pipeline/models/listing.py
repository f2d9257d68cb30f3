"""Which models there are: families, and for each model its levels, widths and tokens, without downloading anything.

Names come from the registries of timm and open_clip. A model is built on torch's meta device, where tensors have shapes and no
memory, and opened up by the same code that opens it for work, so that what is listed is what `layerbank extract` will find: 0.1 s
a model. Which names are looked at at all is decided by timm's modules: those whose models keep one sequence of tokens.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from ..errors import RequestError
from .backbone import open_tower
from .demo_weights import ARCHITECTURE, DEMO_MODEL, IMAGE_SIZE
from .tower import Tower, measure_widths
from .weights import RANDOM

TIMM_MODULES = (
    "vision_transformer",
    "deit",
    "beit",
    "eva",
    "vision_transformer_relpos",
    "vision_transformer_hybrid",
    "vitamin",
    "naflexvit",
    "deepseek_vit",
)
"""timm's modules of plain vision transformers; the models of all others are refused (hierarchical, windowed, convolutional)."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that are spoken of together.

    Attributes:
        name: what people call it.
        matches: a regular expression on the name of a model's architecture; the first family that matches has it.
        example: a model id.
        note: what to know of its tokens or taps.
    """

    name: str
    matches: str
    example: str
    note: str


FAMILIES = (
    Family(name="demo", matches="^demo/", example=DEMO_MODEL, note="weights from a Python package"),
    Family(
        name="CoCa",
        matches="^open_clip/coca",
        example="open_clip/coca_ViT-B-32/laion2b_s13b_b90k",
        note="final is the norm in its pooler",
    ),
    Family(
        name="SigLIP (open_clip)",
        matches="^open_clip/.*siglip",
        example="open_clip/ViT-B-16-SigLIP/webli",
        note="no CLS",
    ),
    Family(
        name="EVA-CLIP (open_clip)",
        matches="^open_clip/EVA",
        example="open_clip/EVA02-B-16/merged2b_s8b_b131k",
        note="",
    ),
    Family(
        name="CLIP (open_clip)",
        matches="^open_clip/",
        example="open_clip/ViT-B-16-quickgelu/openai",
        note="final is projected: narrower",
    ),
    Family(
        name="DINOv3", matches="dinov3", example="timm/vit_base_patch16_dinov3.lvd1689m", note="CLS and 4 registers"
    ),
    Family(name="DINOv2", matches="dinov2", example="timm/vit_base_patch14_dinov2.lvd142m", note="_reg4_: 4 registers"),
    Family(name="SigLIP", matches="siglip", example="timm/vit_base_patch16_siglip_224.webli", note="no CLS"),
    Family(
        name="EVA02",
        matches="^timm/eva02",
        example="timm/eva02_base_patch14_224.mim_in22k",
        note="enormous: --tap block",
    ),
    Family(
        name="CLIP",
        matches="_clip_",
        example="timm/vit_base_patch16_clip_quickgelu_224.openai",
        note="final: not projected",
    ),
    Family(name="EVA", matches="^timm/eva_", example="timm/eva_giant_patch14_224.clip_ft_in1k", note=""),
    Family(name="BEiT", matches="^timm/beit", example="timm/beitv2_base_patch16_224.in1k_ft_in22k", note=""),
    Family(
        name="DeiT",
        matches="^timm/deit",
        example="timm/deit_base_distilled_patch16_224.fb_in1k",
        note="distilled: a second prefix token, in no kind",
    ),
    Family(name="Perception Encoder", matches="_pe_", example="timm/vit_pe_core_base_patch16_224.fb", note=""),
    Family(name="AIMv2", matches="^timm/aimv2", example="timm/aimv2_large_patch14_224.apple_pt", note="no CLS"),
    Family(name="FlexiViT", matches="flexivit", example="timm/flexivit_base.1200ep_in1k", note=""),
    Family(
        name="NaFlexViT",
        matches="naflexvit",
        example="timm/naflexvit_base_patch16_gap.e300_s576_in1k",
        note="at one size",
    ),
    Family(
        name="ViTamin",
        matches="vitamin",
        example="timm/vitamin_base_224.datacomp1b_clip",
        note="convolutions below the blocks",
    ),
    Family(
        name="relative positions",
        matches="relpos",
        example="timm/vit_relpos_base_patch16_224.sw_in1k",
        note="_rpn_: --tap block",
    ),
    Family(
        name="hybrid",
        matches=r"_r\d+_|_r_|_r26|resnet|_mci_|hybrid",
        example="timm/vit_base_r50_s16_224.orig_in21k",
        note="",
    ),
    Family(
        name="ViT, MAE",
        matches="^timm/",
        example="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        note="MAE: vit_base_patch16_224.mae",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model without its weights.

    Attributes:
        model: its id, without a tag.
        family: name of its family.
        image_size: pixels a side of its own evaluation: height, width.
        depth: number of blocks; it has depth + 1 levels.
        embed_dim: width D of the blocks.
        final_dim: width D of `final`.
        grid_size: rows and columns of patches.
        has_cls: whether it has a class token.
        num_register_tokens: register tokens.
        num_prefix_tokens: all tokens before the patches, a distillation token among them.
        taps: norm2 and block, or block alone where blocks have no norm between attention and MLP.
        num_parameters: of what runs: without classifier and text tower.
        weights: tags of pretrained weights, to be written after a dot (timm) or a slash (open_clip).
    """

    model: str
    family: str
    image_size: tuple[int, int]
    depth: int
    embed_dim: int
    final_dim: int
    grid_size: tuple[int, int]
    has_cls: bool
    num_register_tokens: int
    num_prefix_tokens: int
    taps: tuple[str, ...]
    num_parameters: int
    weights: tuple[str, ...]

    @property
    def widths(self) -> str:
        """Width of the blocks, and of `final` where it differs."""
        return str(self.embed_dim) if self.final_dim == self.embed_dim else f"{self.embed_dim}, final {self.final_dim}"

    @property
    def tokens(self) -> str:
        """Tokens of a level in words."""
        other = self.num_prefix_tokens - self.num_register_tokens - self.has_cls
        parts = [(int(self.has_cls), "CLS"), (other, "dist"), (self.num_register_tokens, "reg")]
        named = [f"{count} {name}" for count, name in parts if count]
        return " + ".join([*named, f"{self.grid_size[0]} x {self.grid_size[1]}"])


def model_names() -> list[str]:
    """Ids of all models that could be opened, without tags of weights: the demo's, timm's, open_clip's."""
    import open_clip  # type: ignore[import-untyped]
    import timm

    plain = [name for module in TIMM_MODULES for name in timm.list_models(module=module)]
    towers = []
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        trunk = vision.get("timm_model_name")
        if trunk in plain if trunk else isinstance(vision.get("layers"), int):  # a ResNet has a list of layers
            towers.append(f"open_clip/{name}")
    return [DEMO_MODEL, *(f"timm/{name}" for name in plain), *towers]


def match_models(pattern: str) -> list[str]:
    """Ids that a pattern means: with wildcards as in file names, else those that contain it; without regard to case.

    Raises:
        RequestError: none does; names the nearest.
    """
    names = model_names()
    wanted = pattern.lower().removesuffix("/")
    glob = wanted if any(sign in wanted for sign in "*?[") else f"*{wanted}*"
    exact = [name for name in names if wanted in (name.lower(), name.lower().partition("/")[2])]
    found = exact or [name for name in names if fnmatch.fnmatchcase(name.lower(), glob) or _short(name, glob)]
    if not found:
        near = difflib.get_close_matches(wanted, [name.lower() for name in names], n=4, cutoff=0.4)
        raise RequestError(
            where=f"models {pattern}",
            expected="a part of the name of a vision transformer of timm or open_clip, or a pattern with * and ?",
            got="one that no name matches",
            todo=f"Nearest: {', '.join(near) or 'none'}. Hierarchical, windowed and convolutional models are not listed: they are "
            "refused.",
        )
    return found


def family_of(model_id: str) -> Family:
    """The family of a model id."""
    return next(family for family in FAMILIES if re.search(family.matches, model_id, re.IGNORECASE))


@cache
def describe(model_id: str) -> ModelFacts:
    """Build a model on the meta device and look at it.

    Args:
        model_id: of `model_names`, or with a tag of weights.

    Raises:
        RequestError: it is no plain vision transformer.
    """
    demo = model_id == DEMO_MODEL
    plain = f"timm/{ARCHITECTURE}" if demo else _without_tag(model_id)
    with _quiet(), torch.device("meta"):
        tower = open_meta_tower(model_id, tap="block", image_size=None)
        taps: tuple[str, ...] = ("norm2", "block")
        try:
            widths = measure_widths(tower, "norm2")
        except RequestError:  # no norm between attention and MLP, or no tokens at all, which the next line tells
            taps, widths = ("block",), measure_widths(tower, "block")
    return ModelFacts(
        model=DEMO_MODEL if demo else plain,
        family=family_of(model_id).name,
        image_size=tower.image_size,
        depth=len(tower.blocks),
        embed_dim=widths["block.0"],
        final_dim=widths["final"],
        grid_size=tower.layout.grid_size,
        has_cls=tower.layout.has_cls,
        num_register_tokens=tower.layout.num_register_tokens,
        num_prefix_tokens=tower.layout.num_prefix_tokens,
        taps=taps,
        num_parameters=sum(parameter.numel() for parameter in tower.model.parameters()),
        weights=() if demo else _weights_of(plain),
    )


def open_meta_tower(model_id: str, *, tap: str, image_size: int | None) -> Tower:
    """A model without its weights, on torch's meta device.

    Args:
        model_id: of `model_names`, or with a tag of weights.
        tap: norm2 or block.
        image_size: pixels a side; None for the model's own.

    Raises:
        RequestError: it is no plain vision transformer.
    """
    demo = model_id == DEMO_MODEL
    plain = f"timm/{ARCHITECTURE}" if demo else _without_tag(model_id)
    with _quiet(), torch.device("meta"):
        size = IMAGE_SIZE if demo and image_size is None else image_size
        try:
            tower = open_tower(plain, weights=RANDOM, tap=tap, image_size=size, seed=0)
        except NotImplementedError as error:  # no vision transformer is built by numbers that it computes itself
            raise RequestError(
                where=model_id,
                expected="a plain vision transformer",
                got=f"a model that this torch cannot build without its weights ({str(error).partition(': ')[0]})",
                todo="Name one of `layerbank models`.",
            ) from error
    tower.model.to("meta")  # timm 1.0.21 makes the buffers of DINOv3 on the CPU all the same
    return tower


def _without_tag(model_id: str) -> str:
    if model_id.startswith("open_clip/"):
        return "/".join(model_id.split("/")[:2])
    return model_id.partition(".")[0]


def _weights_of(model_id: str) -> tuple[str, ...]:
    import open_clip
    import timm

    library, _, name = model_id.partition("/")
    if library == "open_clip":
        return tuple(open_clip.list_pretrained_tags_by_model(name))
    full = (one.partition(".") for one in timm.list_pretrained(f"{name}*"))
    return tuple(tag for architecture, _, tag in full if architecture == name)


def _short(name: str, glob: str) -> bool:
    """Whether a pattern with wildcards matches the name without its library."""
    return fnmatch.fnmatchcase(name.lower().partition("/")[2], glob)


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries warn of models without weights, which is what is wanted here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
