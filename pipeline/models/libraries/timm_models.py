"""timm's vision transformers by `timm/<name>` or a bare name.

Supported are all models with `blocks` over one sequence of tokens: plain ViT, DeiT, BEiT, EVA02, DINOv2, DINOv3, SigLIP, MAE,
CLIP towers, NaFlexViT at one size. The classifier takes no part and is left out, so two checkpoints that differ in it alone are
the same backbone.

`final` is the model's `norm`, or its `fc_norm` on every token: see `vit_parts.final_norm`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import load_model_config_from_hf
from torch import nn

from ...errors import RequestError, advice, did_you_mean, first_line
from ..families import RANDOM, ModelFamily, ModelGroup
from ..listing import models_with_words
from ..tower import Tower, check_structure
from ..vit_parts import final_norm, find_blocks, layout_of
from ..weights import from_the_hub, quiet_libraries, weights_mismatch
from ..weights_file import read_state_dict
from .model_arguments import arguments_text, read_arguments, split_arguments

POSITIONS = "bicubic antialiased"
"""How timm fits position embeddings to another image size: part of the function, so of its text too."""

_WIDE_CROP = 0.875  # 224 / 256

_CLASSIFIER = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")  # in all of timm's ViT families


def open_timm(model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    """Build a timm model; for the arguments see `families.OpenModel`.

    Args:
        model_id: timm's name with or without `timm/` and a pretrained tag, or `hf-hub:<org>/<repo>`; then `?` and arguments of the
            model's constructor.

    Raises:
        RequestError: unknown name or argument, no such weights, or no vision transformer.
        WorkError: the hub cannot be reached.
    """
    if weights is None:
        check_structure(partial(open_timm, model_id, weights=RANDOM, tap=tap, image_size=image_size, seed=seed), tap)
    plain, texts = split_arguments(model_id)
    name = plain.removeprefix("timm/")
    if name.startswith("hf-hub:"):
        model_id = name
        with from_the_hub(model_id):  # it stays in the hub's cache: what fails after this is not the hub
            _, architecture, _ = load_model_config_from_hf(name.removeprefix("hf-hub:"))
    else:
        model_id, architecture = f"timm/{name}", name.partition(".")[0]
        _check_name(name, model_id, pretrained=weights is None)
    options: dict[str, Any] = {"num_classes": 0} | ({} if image_size is None else {"img_size": image_size})
    if texts:
        arguments = read_arguments(texts, _class_of(architecture), model_id)
        model_id += arguments_text(arguments, texts)
        options |= arguments
        _check_arguments(architecture, model_id, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights is None:
            with from_the_hub(model_id):
                model = _create(name, model_id, options | {"pretrained": True})
        elif weights == RANDOM:
            model = _create(name, model_id, options)
        else:
            model = _create_from_file(name, model_id, options, weights)
    return tower_from_timm(model.eval(), model_id, image_size, tap=tap)


def _class_of(architecture: str) -> Any:
    with quiet_libraries(), torch.device("meta"):
        return type(timm.create_model(architecture))


def _check_arguments(architecture: str, model_id: str, options: dict[str, Any]) -> None:
    """Build the model without memory, so that what fails here are its arguments."""
    try:
        with quiet_libraries(), torch.device("meta"):
            timm.create_model(architecture, **options)
    except NotImplementedError:
        pass  # not the arguments: this torch cannot build it without memory
    except Exception as error:  # timm checks arguments in many ways, if at all
        raise RequestError("models.arguments_do_not_fit", model=model_id, reason=first_line(error)) from error


def tower_from_timm(
    model: Any,
    model_id: str,
    image_size: int | None,
    *,
    tap: str = "norm2",
    crop_pct: float | None = None,
    positions: str = POSITIONS,
) -> Tower:
    """The tower of a timm model that is already built.

    Args:
        model: in evaluation mode, without a classifier.
        model_id: for messages and for the architecture's text.
        image_size: pixels a side it was built for; None for the size in its data configuration.
        tap: norm2, block or `module:PATTERN`.
        crop_pct: share of the resized image that is kept; None for the model's own.
        positions: how its position embeddings were fitted to the image size, for the architecture's text.

    Raises:
        RequestError: no vision transformer, or the size does not fit its patches.
    """
    config = data_config(model, image_size)
    if crop_pct is not None:
        config["crop_pct"] = crop_pct
    height, width = config["input_size"][-2:]
    transform = create_transform(**config, is_training=False)
    blocks = find_blocks(model, model_id, tap, model.forward_features, (height, width))
    last, final, how = final_norm(model, blocks)
    named = without_tag(model_id) if model_id.startswith("timm/") else model_id
    return Tower(
        name=model_id,
        model=model,
        forward=model.forward_features,
        blocks=blocks,
        second_norm="norm2",
        last=last,
        final=final,
        layout=layout_of(model, model_id, (height, width), chosen=image_size is not None),
        image_size=(height, width),
        transform=transform,
        transform_id=transform_text(config),
        architecture=f"{named} image={height}x{width} final={how} positions={positions}",
    )


def data_config(model: nn.Module, image_size: int | None) -> dict[str, Any]:
    """timm's evaluation settings of a model, at another image size if one is given.

    DINOv2 and MAE are cropped as their authors evaluate them (256 -> 224); timm has 1.0 and 0.9 for them.
    """
    config = dict(resolve_model_data_config(model))  # type: ignore[no-untyped-call]
    pretrained: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if "dinov2" in str(pretrained.get("architecture")) or pretrained.get("tag") == "mae":
        config["crop_pct"] = _WIDE_CROP
    if image_size is not None:
        config["input_size"] = (3, image_size, image_size)
    return config


def transform_text(config: dict[str, Any]) -> str:
    """Canonical text of timm's evaluation transform.

    >>> transform_text({"input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center",
    ...                 "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    'resize 256x256 center bicubic; crop 224x224; mean 0.5 0.5 0.5; std 0.5 0.5 0.5'
    """
    height, width = config["input_size"][-2:]
    resized = (math.floor(side / config["crop_pct"]) for side in (height, width))
    mean, std = (" ".join(f"{value:.6g}" for value in config[name]) for name in ("mean", "std"))
    resize = "x".join(str(side) for side in resized)
    how = f"{config['crop_mode']} {config['interpolation']}"
    return f"resize {resize} {how}; crop {height}x{width}; mean {mean}; std {std}"


def _check_name(name: str, model_id: str, *, pretrained: bool) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_model(model_id, "timm", architecture, timm.list_models())
    known = pretrained_tags(architecture)
    if not known and (tag or pretrained):
        raise RequestError("models.no_pretrained_weights", model=model_id)
    if tag and tag not in known:
        raise RequestError("models.unknown_tag", model=model_id, tag=tag, tags=", ".join(known))
    if "_clip_" in architecture and "quickgelu" not in architecture and (tag or (known[:1] or [""])[0]) == "openai":
        sibling = architecture.replace("_clip_", "_clip_quickgelu_")
        raise RequestError("models.openai_clip_with_gelu", model=model_id, sibling=sibling)


def without_tag(model_id: str) -> str:
    """The id without its tag of weights, with its arguments.

    >>> without_tag("vit_small_patch16_224.augreg_in1k?init_values=0.1")
    'timm/vit_small_patch16_224?init_values=0.1'
    """
    name, mark, arguments = model_id.removeprefix("timm/").partition("?")
    return f"timm/{name.partition('.')[0]}{mark}{arguments}"


def pretrained_tags(architecture: str) -> list[str]:
    """Tags of the weights that timm has for an architecture, the default ones first."""
    parts = (name.partition(".") for name in timm.list_pretrained(f"{architecture}*"))
    return [tag for name, _, tag in parts if name == architecture]


def unknown_model(model_id: str, library: str, name: str, known: Sequence[str]) -> RequestError:
    """The error for a name that a library does not know; lists the nearest ones."""
    found = difflib.get_close_matches(name, known, n=4, cutoff=0.8) or models_with_words(name)
    todo = did_you_mean(found) or advice(name, known, most=4, otherwise="`layerbank models` lists them.")
    return RequestError("models.unknown_model", model=model_id, library=library, name=name, advice=todo)


def _create(name: str, model_id: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        raise RequestError("models.image_size_is_fixed", model=model_id, reason=error) from error


def _create_from_file(name: str, model_id: str, options: dict[str, Any], path: str) -> Any:
    """Load a file as timm loads its own weights (foreign names translated, positions resampled), but strictly."""
    state = read_state_dict(path)
    for key in _CLASSIFIER:
        state.pop(key, None)
    # timm loads strictly only where it believes that the file has as many classes as the model: none
    overlay = {"state_dict": state, "source": "", "num_classes": 0, "label_offset": 0, "custom_load": False}
    try:
        model = _create(name, model_id, options | {"pretrained": True, "pretrained_cfg_overlay": overlay})
    except (RuntimeError, KeyError, AttributeError) as error:
        raise weights_mismatch(f"--weights {path}", model_id, error) from error
    model.pretrained_cfg["state_dict"] = None  # timm keeps the overlay, and with it a second copy of the weights
    return model


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


def timm_names() -> list[str]:
    """timm's plain vision transformers."""
    return [name for module in TIMM_MODULES for name in timm.list_models(module=module)]


TIMM = ModelFamily(
    form="timm/NAME[.TAG][?ARGUMENT=VALUE&...]",
    open=open_timm,
    names=lambda: [f"timm/{name}" for name in timm_names()],
    groups=(
        ModelGroup("DINOv3", "timm/vit_base_patch16_dinov3.lvd1689m", "dinov3", "CLS and 4 registers"),
        ModelGroup("DINOv2", "timm/vit_base_patch14_dinov2.lvd142m", "dinov2", "_reg4_: 4 registers"),
        ModelGroup("SigLIP", "timm/vit_base_patch16_siglip_224.webli", "siglip", "no CLS"),
        ModelGroup("EVA02", "timm/eva02_base_patch14_224.mim_in22k", "^timm/eva02", "enormous: --tap block"),
        ModelGroup("CLIP", "timm/vit_base_patch16_clip_quickgelu_224.openai", "_clip_", "final: not projected"),
        ModelGroup("EVA", "timm/eva_giant_patch14_224.clip_ft_in1k", "^timm/eva_"),
        ModelGroup("BEiT", "timm/beitv2_base_patch16_224.in1k_ft_in22k", "^timm/beit"),
        ModelGroup(
            "DeiT",
            "timm/deit_base_distilled_patch16_224.fb_in1k",
            "^timm/deit",
            "distilled: a second prefix token, in no kind",
        ),
        ModelGroup("Perception Encoder", "timm/vit_pe_core_base_patch16_224.fb", "_pe_"),
        ModelGroup("AIMv2", "timm/aimv2_large_patch14_224.apple_pt", "^timm/aimv2", "no CLS"),
        ModelGroup("FlexiViT", "timm/flexivit_base.1200ep_in1k", "flexivit"),
        ModelGroup("NaFlexViT", "timm/naflexvit_base_patch16_gap.e300_s576_in1k", "naflexvit", "at one size"),
        ModelGroup("ViTamin", "timm/vitamin_base_224.datacomp1b_clip", "vitamin", "convolutions below the blocks"),
        ModelGroup("relative positions", "timm/vit_relpos_base_patch16_224.sw_in1k", "relpos", "_rpn_: --tap block"),
        ModelGroup("hybrid", "timm/vit_base_r50_s16_224.orig_in21k", r"_r\d+_|_r_|_r26|resnet|_mci_|hybrid"),
        ModelGroup("ViT, MAE", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", note="MAE: vit_base_patch16_224.mae"),
    ),
    without_tag=without_tag,
    tags=lambda model_id: pretrained_tags(model_id.removeprefix("timm/").partition("?")[0]),
)
