"""Lists models with their levels, widths and tokens, without downloading anything.

A model is built on torch's meta device, where tensors have shapes and no memory, and examined by the same code that opens it for
work, so that the list says what `layerbank extract` will find: 0.1 s a model.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import cache

import torch

from ..errors import RequestError, advice
from .families import MODEL_FAMILIES, RANDOM, ModelGroup, find_family, open_tower
from .tower import Tower, measure_widths
from .trust import NO_CODE, CodePermission
from .weights import quiet_libraries


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Properties of a model that do not depend on its weights.

    Attributes:
        model: its id, without a tag.
        family: name of its group.
        image_size: pixels a side of its own evaluation: height, width.
        depth: number of transformer blocks; it has depth + 1 levels.
        embed_dim: width D of the blocks.
        final_dim: width D of `final`.
        grid_size: rows and columns of patches.
        has_cls: whether it has a class token.
        num_register_tokens: register tokens.
        num_prefix_tokens: all tokens before the patches, a distillation token among them.
        taps: norm2 and block, or block alone where blocks have no norm between attention and MLP.
        num_parameters: number of parameters of the modules that run: without classifier and text tower.
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


def model_groups() -> list[ModelGroup]:
    """The groups of all families."""
    return [group for family in MODEL_FAMILIES.values() for group in family.groups]


def model_names() -> list[str]:
    """Ids of all models that can be listed, without tags of weights."""
    return [name for family in MODEL_FAMILIES.values() for name in family.names()]


def match_models(pattern: str) -> list[str]:
    """Ids that a pattern means: with wildcards as in file names, else those that contain it; without regard to case.

    Raises:
        RequestError: none does; names the nearest.
    """
    names = {
        name: (name.lower(), name.lower().partition("/")[2]) for name in model_names()
    }  # with and without its family
    wanted = pattern.lower().removesuffix("/")
    glob = wanted if any(sign in wanted for sign in "*?[") else f"*{wanted}*"
    exact = [name for name, forms in names.items() if wanted in forms]
    found = exact or [name for name, forms in names.items() if fnmatch.filter(forms, glob)]
    if not found:
        todo = advice(wanted, names, most=4, otherwise="`layerbank models` lists all.")
        raise RequestError("models.no_match", pattern=pattern, advice=todo)
    return found


_SHORT = {"s": "small", "b": "base", "l": "large", "h": "huge", "14": "patch14", "16": "patch16", "32": "patch32"}


def models_with_words(name: str) -> list[str]:
    """At most four ids with pretrained weights that have all words of a name, those with the fewest other words first.

    Args:
        name: in any spelling, such as `dinov2`, `ViT-B/16` or `facebook/dinov2-small`; of the last the owner is left out.
    """
    _, _, rest = name.lower().partition("/")
    words = _words(rest if rest and not rest.isdigit() else name)
    found = []
    for one in model_names():
        has = _words(one)
        if all(word in has or _SHORT.get(word) in has for word in words):
            found.append((len(has), one))
    chosen: list[str] = []
    for _, one in sorted(found):
        if tags := find_family(one).tags(one):
            chosen.append(f"{one}/{tags[0]}" if one.startswith("open_clip/") else one)
        if len(chosen) == 4:
            break
    return chosen


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def group_of(model_id: str) -> ModelGroup:
    """The group of a listed model."""
    groups = find_family(model_id).groups
    return next(group for group in groups if re.search(group.matches, model_id, re.IGNORECASE))


@cache
def describe(model_id: str) -> ModelFacts:
    """Build a model on the meta device and collect its properties.

    Args:
        model_id: of `model_names`, or with a tag of weights.

    Raises:
        RequestError: it is no plain vision transformer.
    """
    family = find_family(model_id)
    tower = open_meta_tower(model_id, tap="block", image_size=None)
    taps: tuple[str, ...] = ("norm2", "block")
    with quiet_libraries(), torch.device("meta"):
        try:
            widths = measure_widths(tower, "norm2")
        except RequestError:  # no norm between attention and MLP; the next line raises if there are no tokens at all
            taps, widths = ("block",), measure_widths(tower, "block")
    plain = family.without_tag(model_id)
    return ModelFacts(
        model=plain,
        family=group_of(model_id).name,
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
        weights=tuple(family.tags(plain)),
    )


def open_meta_tower(model_id: str, *, tap: str, image_size: int | None, permission: CodePermission = NO_CODE) -> Tower:
    """A model without its weights, on torch's meta device.

    Args:
        model_id: of `model_names`, or with a tag of weights.
        tap: norm2 or block.
        image_size: pixels a side; None for the model's own.
        permission: which models may run code of their own.

    Raises:
        RequestError: it is no plain vision transformer, or its code is not allowed to run.
    """
    untagged = find_family(model_id).without_tag(model_id)
    with quiet_libraries(), torch.device("meta"):
        try:
            tower = open_tower(
                untagged, weights=RANDOM, tap=tap, image_size=image_size, seed=0, permission=permission, blank=True
            )
        except NotImplementedError as error:  # no vision transformer is built by numbers that it computes itself
            reason = str(error).partition(": ")[0]
            raise RequestError("models.not_built_without_weights", model=model_id, reason=reason) from error
    tower.model.to("meta")  # timm 1.0.21 makes the buffers of DINOv3 on the CPU all the same
    return tower
