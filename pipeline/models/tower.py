"""The common form of all vision transformers: how to run one, which modules to hook, and the order of its tokens.

Every model family returns a `Tower`; all other code treats the families alike. The attributes of a model are checked against one
forward pass over a blank image, because they differ between families and between versions of their libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import RequestError
from .layers import FINAL, level_names
from .tap_modules import tap_candidates, tap_pattern, tokens_of
from .taps import TAPS, TokenLayout
from .vit_parts import child_names
from .weights import quiet_libraries


@dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """One vision transformer; in float32 on the CPU until a backbone moves its model.

    Attributes:
        name: model id, for messages.
        model: holds every weight that takes part; its state dict is the identity of the weights.
        forward: runs it as far as `last`; its result is ignored.
        blocks: the transformer blocks, in order.
        second_norm: name, inside a block, of the LayerNorm between attention and MLP.
        last: module whose output [B, T, D] is the input of `final`.
        final: [B, T, D] -> [B, T, D'], the model's last norm (and CLIP's projection) on every token.
        layout: order of CLS, registers and patches.
        image_size: height and width in pixels.
        transform: PIL image -> float32 tensor [3, H, W]; picklable.
        transform_id: canonical text of the transform.
        architecture: canonical text of everything but the weights that changes the function.
    """

    name: str
    model: nn.Module
    forward: Callable[[Tensor], Any]
    blocks: tuple[nn.Module, ...]
    second_norm: str
    last: nn.Module
    final: Callable[[Tensor], Tensor]
    layout: TokenLayout
    image_size: tuple[int, int]
    transform: Callable[[Any], Tensor]
    transform_id: str
    architecture: str


def tapped_modules(tower: Tower, tap: str) -> dict[str, nn.Module]:
    """The module to hook at each level.

    Args:
        tower: a model that was opened with this tap.
        tap: norm2, block or `module:PATTERN`.

    Raises:
        RequestError: no such tap, or the blocks lack a norm of that name.
    """
    levels = level_names(len(tower.blocks))
    if (pattern := tap_pattern(tap)) is not None:
        named = dict(tower.model.named_modules())
        hooked = [named[pattern.replace("{i}", str(index))] for index in range(len(tower.blocks))]
        return dict(zip(levels, (*hooked, tower.last), strict=True))
    if tap not in TAPS:
        raise RequestError("models.unknown_tap", tap=tap, taps=" or ".join(TAPS))
    modules = tower.blocks
    if tap == "norm2":
        missing = [block for block in tower.blocks if not hasattr(block, tower.second_norm)]
        if missing:
            raise _no_second_norm(tower, f"{type(missing[0]).__name__} with {child_names(missing[0])}")
        modules = tuple(getattr(block, tower.second_norm) for block in tower.blocks)
    return dict(zip(levels, (*modules, tower.last), strict=True))


def measure_widths(tower: Tower, tap: str) -> dict[str, int]:
    """Run one blank image; check that every level carries the layout's tokens, and measure its width D.

    For `norm2` it also checks the place of the norm in its block, because some families use the name for a norm elsewhere: its
    input is not the block's own input (a parallel block), and its output is the input of an MLP (not a norm after the MLP).

    Raises:
        RequestError: another number of tokens than the layout says, or a norm in another place.
    """
    modules = tapped_modules(tower, tap)
    weight = next(tower.model.parameters())
    seen: dict[str, Any] = {}
    hooks = [module.register_forward_hook(partial(_keep, seen, level)) for level, module in modules.items()]
    places: list[dict[str, Any]] = []
    if tap == "norm2":
        for block, norm in zip(tower.blocks, modules.values(), strict=False):
            places.append({"fed": []})
            hooks += _watch(block, norm, places[-1])
    try:
        with torch.inference_mode():
            tower.forward(torch.zeros(1, 3, *tower.image_size, device=weight.device, dtype=weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    for place in places:
        if all(fed is not place["written"] for fed in place["fed"]) or place["read"] is place["entered"]:
            got = f"{type(tower.blocks[0]).__name__}, whose {tower.second_norm} stands elsewhere"
            raise _no_second_norm(tower, got)
    for level in modules:
        _check_tokens(tower, level, seen.get(level))
    with torch.inference_mode():
        seen[FINAL] = tower.final(seen[FINAL])
    return {level: tokens.shape[-1] for level, tokens in seen.items()}


def check_structure(build: Callable[[], Tower], tap: str) -> None:
    """Refuse a model that is no vision transformer before its weights are downloaded.

    Args:
        build: builds it with random weights.
        tap: norm2, block or `module:PATTERN`.

    Raises:
        RequestError: as `measure_widths`, or as `build` does.
    """
    try:
        with quiet_libraries(), torch.device("meta"):
            tower = build()
            tower.model.to("meta")
            measure_widths(tower, tap)
    except NotImplementedError:
        pass  # it computes with values, which a model without memory has not


def _keep(seen: dict[str, Any], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    seen[name] = tokens_of(output)


def _watch(block: nn.Module, norm: nn.Module, place: dict[str, Any]) -> list[RemovableHandle]:
    """Record the input of the block, input and output of its second norm, and the inputs of parts that may be its MLP.

    These are the parts with weights of two axes, by whatever name, except attention.
    """

    def entered(_block: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        place["entered"] = next(iter((*args, *named.values())), None)

    hooks = [
        block.register_forward_pre_hook(entered, with_kwargs=True),
        norm.register_forward_hook(lambda _, inputs, output: place.update(read=inputs[0], written=output)),
    ]
    for name, part in block.named_children():
        if "att" not in name and any(weight.ndim >= 2 for weight in part.parameters()):
            hooks.append(part.register_forward_pre_hook(lambda _, inputs: place["fed"].extend(inputs[:1])))
    return hooks


def _check_tokens(tower: Tower, level: str, tokens: Any) -> None:
    layout = tower.layout
    if isinstance(tokens, Tensor) and tokens.ndim == 3 and tokens.shape[1] == layout.num_tokens:
        return
    found = f"shape {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
    rows, columns = layout.grid_size
    values = {"model": tower.name, "level": level, "prefix": layout.num_prefix_tokens, "rows": rows, "columns": columns}
    raise RequestError("models.other_tokens", found=found, **values)


def _no_second_norm(tower: Tower, found: str) -> RequestError:
    candidates = ", ".join(tap_candidates(tower.model, tower.forward, tower.image_size)) or "none"
    return RequestError(
        "models.no_second_norm", model=tower.name, norm=tower.second_norm, found=found, candidates=candidates
    )
