"""timm's vision transformers by name: built, given weights, and opened up as a `Tower`.

Any model is welcome that has `blocks` over one sequence of tokens: plain ViT, DeiT, BEiT, EVA02, DINOv2,
DINOv3, SigLIP, MAE, CLIP towers, NaFlexViT at one size. The classifier takes no part and is left out, so two checkpoints that
differ in it alone are the same backbone.

`final` is the model's `norm`, or its `fc_norm` on every token: see `vit_parts.final_norm`.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import load_model_config_from_hf
from torch import nn

from ..errors import RequestError
from .tower import Tower
from .vit_parts import final_norm, find_blocks, layout_of
from .weights import RANDOM, from_the_hub, read_state_dict, weights_mismatch

POSITIONS = "bicubic antialiased"
"""How timm fits position embeddings to another image size: part of the function, so of its text too."""

_WIDE_CROP = 0.875  # 224 / 256

_CLASSIFIER = (
    "head.weight",
    "head.bias",
    "head_dist.weight",
    "head_dist.bias",
)  # in all of timm's ViT families


def open_timm(name: str, *, model_id: str, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    """Build a timm model.

    Args:
        name: timm's name with or without a pretrained tag, or `hf-hub:<org>/<repo>`.
        model_id: what the user wrote, for messages.
        weights: None for pretrained, "random", or a file.
        tap: norm2, block or `module:PATTERN`.
        image_size: pixels a side; None for the size of the model's own evaluation.
        seed: of random weights.

    Raises:
        RequestError: unknown name, no such weights, or no vision transformer.
        WorkError: the hub cannot be reached.
    """
    if name.startswith("hf-hub:"):
        with from_the_hub(model_id):  # it stays in the hub's cache: what fails after this is not the hub
            load_model_config_from_hf(name.removeprefix("hf-hub:"))
    else:
        _check_name(name, model_id, pretrained=weights is None)
    options: dict[str, Any] = {"num_classes": 0} | ({} if image_size is None else {"img_size": image_size})
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


def tower_from_timm(
    model: Any,
    model_id: str,
    image_size: int | None,
    *,
    tap: str = "norm2",
    crop_pct: float | None = None,
    positions: str = POSITIONS,
) -> Tower:
    """Open up a timm model that is already built.

    Args:
        model: in evaluation mode, without a classifier.
        model_id: for messages and for the architecture's text.
        image_size: pixels a side it was built for; None for the size in its data configuration.
        tap: norm2, block or `module:PATTERN`, which says where the blocks are.
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
    named = model_id if model_id.startswith("hf-hub:") else model_id.partition(".")[0]  # a tag names weights
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
    """timm's evaluation settings of a model, at another size where one is asked for.

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
        near = difflib.get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.4)
        raise RequestError(
            where=f"--model {model_id}",
            expected="the name of a timm model",
            got=f"{architecture!r}, which timm does not know",
            todo="Nearest: " + (", ".join(near) or "none") + ".",
        )
    known = [
        full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}*") if _is_tag_of(full, architecture)
    ]
    if (tag and tag not in known) or (pretrained and not known):
        raise RequestError(
            where=f"--model {model_id}",
            expected=f"weights that timm has for {architecture}" if known else "a model that timm has weights for",
            got=f"tag {tag!r}" if tag else f"{architecture}, which has none",
            todo=f"Tags: {', '.join(known)}." if known else 'Give --weights FILE, or --weights "random".',
        )
    if "_clip_" in architecture and "quickgelu" not in architecture and (tag or (known[:1] or [""])[0]) == "openai":
        sibling = architecture.replace("_clip_", "_clip_quickgelu_")
        raise RequestError(
            where=f"--model {model_id}",
            expected="OpenAI's CLIP weights with the QuickGELU they were trained with",
            got=f"{architecture}, which runs GELU",
            todo=f"Use timm/{sibling}.openai.",
        )


def _is_tag_of(full: str, architecture: str) -> bool:
    return full.partition(".")[0] == architecture


def _create(name: str, model_id: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        raise RequestError(
            where=f"--model {model_id}",
            expected="a vision transformer whose image size can be chosen",
            got=str(error),
            todo="Choose a plain ViT, or leave --image-size out.",
        ) from error


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
