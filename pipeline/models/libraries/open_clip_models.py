"""open_clip's vision towers by `open_clip/<arch>/<pretrained>`: its own transformer, or a timm trunk.

`final` is the output of the last norm and of the projection, on **every** token, although CLIP itself pools in between. With timm
trunks the projection is applied where it is linear and follows the pooling of tokens; SigLIP's attention pooling comes after the
tokens, so there `final` is the trunk's norm.

OpenAI's weights, and others that were trained so, run QuickGELU (x sigmoid(1.702 x)) whatever the architecture's name says. The
text tower takes no part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip  # type: ignore[import-untyped]
import torch
from open_clip.model import resize_pos_embed  # type: ignore[import-untyped]
from open_clip.timm_model import TimmModel  # type: ignore[import-untyped]
from open_clip.transform import PreprocessCfg, image_transform_v2  # type: ignore[import-untyped]
from open_clip.transformer import VisionTransformer  # type: ignore[import-untyped]
from torch import Tensor, nn

from ...errors import RequestError
from ..families import RANDOM, ModelFamily, ModelGroup
from ..tap_modules import named_blocks, tap_candidates, tap_pattern
from ..taps import TokenLayout
from ..tower import Tower, check_structure
from ..vit_parts import check_image_size, final_norm, find_blocks, layout_of, no_blocks
from ..weights import from_the_hub, load_strictly, quiet_libraries
from ..weights_file import read_state_dict
from .timm_models import POSITIONS, timm_names, unknown_model

_NO_TEXT = {"context_length": 1, "vocab_size": 2, "width": 64, "heads": 1, "layers": 1}
"""A text tower as small as possible, where its weights are not needed."""

_TRANSFORM_FIELDS = ("mean", "std", "interpolation", "resize_mode")


def open_open_clip(model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    """Build the vision tower of an open_clip model; for the arguments see `families.OpenModel`.

    Args:
        model_id: `open_clip/<arch>/<pretrained>`, or with a comma before `<pretrained>`, which may be left out with other weights.
            Or `hf-hub:<org>/<repo>`.
        weights: a file may hold a whole CLIP model or its vision tower.
        tap: names in a pattern are relative to the vision tower.

    Raises:
        RequestError: unknown architecture or tag, weights that do not fit, or no vision transformer.
        WorkError: the hub cannot be reached.
    """
    model_id = _canonical(model_id)
    if weights is None:
        random = partial(open_open_clip, model_id, weights=RANDOM, tap=tap, image_size=image_size, seed=seed)
        check_structure(random, tap)
    device = torch.empty(0).device  # get_default_device of torch 2.6 does not know of a `with torch.device`
    options: dict[str, Any] = {"force_preprocess_cfg": {}, "device": device}
    if model_id.startswith("hf-hub:"):
        arch, tag = model_id, None
    else:
        arch, tag = _split(model_id, pretrained=weights is None)
        described = open_clip.get_pretrained_cfg(arch, tag) if tag else _first_described(arch)
        options["force_preprocess_cfg"] = {name: described[name] for name in _TRANSFORM_FIELDS if name in described}
        options["force_quick_gelu"] = tag is not None and bool(described.get("quick_gelu"))
    if image_size is not None:
        if "timm_model_name" in open_clip.get_model_config(arch)["vision_cfg"]:
            options["force_preprocess_cfg"]["size"] = image_size  # the trunk follows once it has its weights
        else:
            options["force_image_size"] = image_size
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(seed)
        if weights is None:
            with from_the_hub(model_id):
                model = open_clip.create_model(arch, pretrained=tag, require_pretrained=True, **options)
        else:
            model = open_clip.create_model(arch, load_weights=False, text_cfg=_NO_TEXT, **options)
    if weights not in (None, RANDOM):
        _load_file(model, weights)
    visual = model.visual.eval()
    if isinstance(visual, VisionTransformer):
        return _native_tower(visual, model_id, tap, image_size)
    if isinstance(visual, TimmModel):
        return _trunk_tower(visual, model_id, tap, image_size)
    raise no_blocks(model_id, visual)


def _canonical(model_id: str) -> str:
    """The id with a slash before the tag; open_clip itself writes a comma there.

    >>> _canonical("open_clip/ViT-B-32,openai")
    'open_clip/ViT-B-32/openai'
    """
    return model_id.replace(",", "/") if model_id.startswith("open_clip/") else model_id


def _native_tower(visual: Any, model_id: str, tap: str, image_size: int | None) -> Tower:
    """The tower of open_clip's own VisionTransformer."""
    if image_size is not None:
        check_image_size(model_id, visual.image_size, visual.patch_size)
    poolers = visual.attn_pool is not None

    def final(tokens: Tensor) -> Tensor:
        if poolers:  # CoCa: its last norm comes after the pooling of tokens, whose own norm of the tokens is this
            keys: Tensor = visual.attn_pool.ln_k(tokens)
            return keys
        normed: Tensor = visual.ln_post(tokens)
        return normed if visual.proj is None else normed @ visual.proj

    blocks = tuple(visual.transformer.resblocks)
    if (pattern := tap_pattern(tap)) is not None:
        candidates = partial(tap_candidates, visual, visual, tuple(visual.image_size))
        blocks = tuple(named_blocks(visual, pattern, model_id, candidates))
    activation = type(blocks[0].mlp.gelu).__name__
    return _tower(
        visual,
        model_id,
        forward=visual,
        blocks=blocks,
        second_norm="ln_2",
        last=visual.transformer,
        final=final,
        layout=TokenLayout(grid_size=tuple(visual.grid_size), has_cls=True),
        how=f"activation={activation} final={'attn_pool.ln_k' if poolers else 'ln_post+proj'}",
    )


def _trunk_tower(visual: Any, model_id: str, tap: str, image_size: int | None) -> Tower:
    """The tower of a timm model that serves as vision tower."""
    trunk = visual.trunk
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None) or _size_of(visual)
    blocks = find_blocks(trunk, model_id, tap, trunk.forward_features, size, root=visual)
    if image_size is not None:
        check_image_size(model_id, (image_size, image_size), trunk.patch_embed.patch_size)
        trunk.set_input_size(img_size=(image_size, image_size))  # open_clip itself leaves the trunk at its own size
    last, norm, how = final_norm(trunk, blocks)
    projection = _linear_projection(visual)
    return _tower(
        visual,
        model_id,
        forward=trunk.forward_features,
        blocks=blocks,
        second_norm="norm2",
        last=last,
        final=lambda tokens: projection(norm(tokens)),
        layout=layout_of(trunk, model_id, tuple(trunk.patch_embed.img_size), chosen=False),
        how=f"final={how}" + ("+proj" if len(projection) else ""),
    )


def _tower(
    visual: Any,
    model_id: str,
    *,
    forward: Callable[[Tensor], Any],
    blocks: tuple[nn.Module, ...],
    second_norm: str,
    last: nn.Module,
    final: Callable[[Tensor], Tensor],
    layout: TokenLayout,
    how: str,
) -> Tower:
    preprocess = PreprocessCfg(**visual.preprocess_cfg)
    height, width = _size_of(visual)
    named = model_id if model_id.startswith("hf-hub:") else "/".join(model_id.split("/")[:2])  # without the tag
    return Tower(
        name=model_id,
        model=visual,
        forward=forward,
        blocks=blocks,
        second_norm=second_norm,
        last=last,
        final=final,
        layout=layout,
        image_size=(height, width),
        transform=image_transform_v2(preprocess, is_train=False),
        transform_id=transform_text(preprocess),
        architecture=f"{named} image={height}x{width} {how} positions={POSITIONS}",
    )


def _size_of(visual: Any) -> tuple[int, int]:
    """Height and width that images are prepared to."""
    size = PreprocessCfg(**visual.preprocess_cfg).size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def transform_text(preprocess: PreprocessCfg) -> str:
    """Canonical text of open_clip's evaluation transform.

    >>> transform_text(PreprocessCfg(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    'resize 224x224 shortest bicubic fill 0; crop 224x224; mean 0.5 0.5 0.5; std 0.5 0.5 0.5'
    """
    size = preprocess.size
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    mean, std = (" ".join(f"{value:.6g}" for value in values) for values in (preprocess.mean, preprocess.std))
    how = f"{preprocess.resize_mode} {preprocess.interpolation} fill {preprocess.fill_color}"
    return f"resize {height}x{width} {how}; crop {height}x{width}; mean {mean}; std {std}"


def _linear_projection(visual: Any) -> nn.Sequential:
    """The linear layers after the pooling of tokens; empty where something else follows it."""
    if getattr(visual.trunk, "attn_pool", None) is not None:
        return nn.Sequential()
    after = [getattr(visual.trunk, "head", nn.Identity()), *visual.head]
    acting = [layer for layer in after if not isinstance(layer, nn.Identity | nn.Dropout)]
    return nn.Sequential(*acting) if all(isinstance(layer, nn.Linear) for layer in acting) else nn.Sequential()


def _load_file(model: Any, path: str) -> None:
    """Load the vision tower strictly, from a file of the whole model or of the tower; positions are resampled."""
    state = read_state_dict(path)
    prefix = "visual."
    if not any(name.startswith(prefix) for name in state):
        state = {prefix + name: tensor for name, tensor in state.items()}
    resize_pos_embed(state, model)
    visual = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    load_strictly(model.visual, visual, f"--weights {path}")


def _split(model_id: str, *, pretrained: bool) -> tuple[str, str | None]:
    """Architecture and tag of an id, both known to open_clip."""
    arch, _, tag = model_id.removeprefix("open_clip/").partition("/")
    known = open_clip.list_models()
    if arch not in known:
        raise unknown_model(model_id, "open_clip", arch, known)
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if not tags and (tag or pretrained):
        raise RequestError("models.no_pretrained_weights", model=model_id)
    if tag and tag not in tags:
        raise RequestError("models.unknown_tag", model=model_id, tag=tag, tags=", ".join(tags))
    if pretrained and not tag:
        raise RequestError("models.no_tag", model=model_id, tags=", ".join(tags))
    return arch, tag or None


def _first_described(arch: str) -> dict[str, Any]:
    """Without a tag, images are prepared as for the first one: SigLIP's mean and std are not CLIP's."""
    tags = open_clip.list_pretrained_tags_by_model(arch)
    return open_clip.get_pretrained_cfg(arch, tags[0]) if tags else {}


def _names() -> list[str]:
    """Ids of the models whose vision tower is a plain vision transformer."""
    plain, found = set(timm_names()), []
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        trunk = vision.get("timm_model_name")
        if trunk in plain if trunk else isinstance(vision.get("layers"), int):  # a ResNet has a list of layers
            found.append(f"open_clip/{name}")
    return found


OPEN_CLIP = ModelFamily(
    form="open_clip/ARCH/PRETRAINED",
    open=open_open_clip,
    names=_names,
    groups=(
        ModelGroup(
            "CoCa", "open_clip/coca_ViT-B-32/laion2b_s13b_b90k", "^open_clip/coca", "final is the norm in its pooler"
        ),
        ModelGroup("SigLIP (open_clip)", "open_clip/ViT-B-16-SigLIP/webli", "^open_clip/.*siglip", "no CLS"),
        ModelGroup("EVA-CLIP (open_clip)", "open_clip/EVA02-B-16/merged2b_s8b_b131k", "^open_clip/EVA"),
        ModelGroup("CLIP (open_clip)", "open_clip/ViT-B-16-quickgelu/openai", note="final is projected: narrower"),
    ),
    without_tag=lambda model_id: "/".join(_canonical(model_id).split("/")[:2]),
    tags=lambda model_id: open_clip.list_pretrained_tags_by_model(model_id.removeprefix("open_clip/")),
)
