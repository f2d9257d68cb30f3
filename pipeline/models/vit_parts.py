"""Finds the blocks, the last norm and the token layout of a vision transformer by timm's names, which most others use too.

Prefix tokens are counted from the parameters that hold them, not from attributes such as `num_prefix_tokens`, which several
families lack or mean otherwise. Where names differ, `--tap-module` says where the blocks are. One forward pass checks all of it
(`tower.measure_widths`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import RequestError
from .tap_modules import named_blocks, tap_candidates, tap_pattern, tokens_of
from .taps import TokenLayout

CLS_PARAMETERS = ("cls_token", "class_token", "class_embedding", "cls")
OTHER_PARAMETERS = ("dist_token", "distillation_token")
REGISTER_PARAMETERS = ("reg_token", "register_tokens", "storage_tokens")  # timm, DINOv2's and DINOv3's own code
PATCH_EMBEDDINGS = ("patch_embed", "embeds", "embeddings")  # the last one in transformers
SECOND_NORMS = ("norm2", "layernorm_after", "layer_norm2", "rms_norm2")  # timm; transformers


def find_blocks(
    model: Any,
    name: str,
    tap: str,
    forward: Callable[[Tensor], Any],
    image_size: tuple[int, int],
    *,
    root: nn.Module | None = None,
) -> tuple[nn.Module, ...]:
    """The transformer blocks of a model: the ones that the tap's pattern names, else its list `blocks`.

    Args:
        model: in evaluation mode.
        name: the model's, for messages.
        tap: norm2, block or `module:PATTERN`.
        forward: runs the model, to find patterns that would work if no blocks are found.
        image_size: height and width in pixels, for that run.
        root: the module that names of a pattern are relative to; None for the model itself.

    Raises:
        RequestError: no such modules; names the patterns that would work.
    """

    def candidates() -> list[str]:
        return tap_candidates(named_from, forward, image_size)

    named_from = model if root is None else root
    if (pattern := tap_pattern(tap)) is not None:
        return tuple(named_blocks(named_from, pattern, name, candidates))
    blocks = getattr(model, "blocks", None)
    embeds = hasattr(getattr(model, "patch_embed", None), "patch_size") or hasattr(model, "embeds")
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not embeds or not hasattr(model, "norm"):
        raise no_blocks(name, model, candidates())
    return tuple(blocks)


def final_norm(model: nn.Module, blocks: Sequence[nn.Module]) -> tuple[nn.Module, Callable[[Tensor], Tensor], str]:
    """Module to hook for `final`, the function to apply to each token there, and a word for the architecture's text.

    That is `norm`. Models that normalise after pooling have an empty `norm` and a `fc_norm`, which is applied to every token, as
    CLIP's last norm is. Where names differ it is the last norm beside the blocks, and without any the residual stream itself.
    """
    norm, after_pooling = getattr(model, "norm", None), getattr(model, "fc_norm", None)
    if isinstance(norm, nn.Module):
        if not isinstance(norm, nn.Identity):
            return norm, nn.Identity(), "norm"
        if isinstance(after_pooling, nn.Module) and not isinstance(after_pooling, nn.Identity):
            return norm, after_pooling, "fc_norm"
        return norm, nn.Identity(), "none"
    named = [(name, child) for name, child in model.named_children() if "Norm" in type(child).__name__]
    if named:
        return named[-1][1], nn.Identity(), named[-1][0]
    return blocks[-1], nn.Identity(), "none"


def norm_after(
    model: nn.Module, blocks: Sequence[nn.Module], run: Callable[[], object]
) -> tuple[nn.Module, Callable[[Tensor], Tensor], str]:
    """What `final_norm` returns, found by running the model: the first norm that runs after the last block.

    A norm of all tokens is hooked. One of a pooled token (CLIP's, BEiT's) is applied to every token that the last block outputs.

    Args:
        model: in evaluation mode.
        blocks: its transformer blocks.
        run: runs the model on one image.
    """
    inside = {id(module) for block in blocks for module in block.modules()}
    norms = {
        name: module
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ and id(module) not in inside
    }
    shapes: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: shapes.append((name, output.shape)))
        for name, module in norms.items()
    ]
    hooks.append(blocks[-1].register_forward_hook(lambda _m, _i, output: shapes.append(("", tokens_of(output).shape))))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    (_, tokens), *after = shapes[[name for name, _ in shapes].index("") :]
    if not after:
        return blocks[-1], nn.Identity(), "none"
    name, shape = after[0]
    return (norms[name], nn.Identity(), name) if shape == tokens else (blocks[-1], norms[name], name)


def block_lists(model: nn.Module) -> list[str]:
    """Names of the lists of modules of one class."""
    return [
        path
        for path, child in model.named_modules()
        if isinstance(child, nn.ModuleList | nn.Sequential)
        and len(child) > 1
        and len({type(one) for one in child}) == 1
    ]


def second_norm_of(block: nn.Module) -> str:
    """The usual name of the norm between attention and MLP that a block has; `norm2` if it has none of them."""
    return next((name for name in SECOND_NORMS if hasattr(block, name)), SECOND_NORMS[0])


def no_blocks(name: str, model: nn.Module, candidates: Sequence[str] = ()) -> RequestError:
    """The error for a model whose blocks cannot be found; names its modules, and patterns that would work."""
    values = {"model": name, "type": type(model).__name__, "children": child_names(model)}
    if candidates:
        patterns = ", ".join(f"'{one}'" for one in candidates)
        return RequestError("models.blocks_of_other_names", candidates=patterns, **values)
    return RequestError("models.no_blocks", **values)


def child_names(module: nn.Module) -> str:
    """Names of a module's children, for messages."""
    names = [name for name, _ in module.named_children()]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no parts"


def layout_of(model: nn.Module, name: str, image_size: tuple[int, int], *, chosen: bool) -> TokenLayout:
    """Layout of a vision transformer.

    Args:
        model: has its patch embedding as one of `PATCH_EMBEDDINGS`, else as its first convolution without overlap.
        name: the model's, for messages.
        image_size: height and width in pixels.
        chosen: the user chose the size, so it must be a multiple of the patch size. A model's own size need not be (SigLIP's
            So400m/14 is evaluated at 384 pixels, 27 patches and a border).

    Raises:
        RequestError: no patch embedding, or a chosen size that is no multiple of the patch size.
    """
    embed: Any = next((found for one in PATCH_EMBEDDINGS if (found := getattr(model, one, None)) is not None), None)
    patch_size = pair(getattr(embed, "patch_size", None)) or _first_stride(embed if embed is not None else model)
    if patch_size is None:
        raise RequestError("models.no_patch_embedding", model=name, type=type(model).__name__)
    if chosen:
        check_image_size(name, image_size, patch_size)
    grid_size = pair(getattr(embed, "grid_size", None))
    if grid_size is None:
        grid_size = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
    owners = [model] if embed is None else [model, embed]

    def count(*names: str) -> int:
        held = (getattr(owner, name, None) for owner in owners for name in names)
        shapes = (tokens.shape for tokens in held if isinstance(tokens, Tensor) and tokens.ndim)
        return next((1 if len(shape) == 1 else shape[-2] for shape in shapes), 0)

    return TokenLayout(
        grid_size=grid_size,
        has_cls=count(*CLS_PARAMETERS) == 1,
        num_register_tokens=count(*REGISTER_PARAMETERS),
        num_other_tokens=count(*OTHER_PARAMETERS),
    )


def check_image_size(name: str, image_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """Refuse an image size that leaves pixels over at the border: patch embeddings drop them silently."""
    for size, patch in zip(image_size, patch_size, strict=True):
        if size % patch or size <= 0:
            below = max(size // patch * patch, patch)
            raise RequestError(
                "models.image_size_of_no_patches", model=name, size=size, patch=patch, one=below, other=below + patch
            )


def pair(value: Any) -> tuple[int, int] | None:
    """
    >>> pair(16), pair((14, 14)), pair(None)
    ((16, 16), (14, 14), None)
    """
    if isinstance(value, int):
        return (value, value)
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) and len(value) == 2 else None


def _first_stride(model: nn.Module) -> tuple[int, int] | None:
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return next(
        (pair(one.stride) for one in convolutions if one.kernel_size == one.stride and one.in_channels == 3), None
    )
