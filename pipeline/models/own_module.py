"""A vision transformer from a module of the user's own: any module with one list of blocks.

Its code is not known, so its identity is the text of its modules and the digest of its weights; a change of the forward function
alone is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from xxhash import xxh3_64_hexdigest

from ..errors import RequestError, first_line, nearest_name
from .libraries.timm_models import transform_text
from .libraries.torchhub_models import EVALUATION
from .tap_modules import named_blocks, tap_candidates, tap_pattern
from .tower import Tower
from .vit_parts import block_lists, final_norm, layout_of, second_norm_of


def tower_from(
    module: nn.Module,
    *,
    blocks: str,
    name: str,
    image_size: int,
    transform: Callable[[Any], Tensor] | None,
    tap: str,
) -> Tower:
    """Find the parts of a module; for the arguments see `layerbank.model_from`.

    Raises:
        RequestError: no such list of blocks, no patch embedding, or a module that does not run at this size.
    """
    model, size = module.eval(), (image_size, image_size)
    found = _list_of_blocks(model, blocks, name)
    layout = layout_of(model, name, size, chosen=True)
    forward: Callable[[Tensor], Any] = getattr(model, "forward_features", model)
    weight = next(model.parameters())
    try:
        with torch.inference_mode():
            forward(torch.zeros(1, 3, *size, dtype=weight.dtype, device=weight.device))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise RequestError("models.does_not_run", model=name, size=image_size, reason=first_line(error)) from error
    if (pattern := tap_pattern(tap)) is not None:
        named_blocks(model, pattern, name, lambda: tap_candidates(model, forward, size))
    if transform is not None:
        _check_transform(transform, size)
    holder = model.get_submodule(blocks.rpartition(".")[0])
    last, final, how = final_norm(holder if hasattr(holder, "norm") else model, found)
    config: dict[str, Any] = EVALUATION | {"input_size": (3, *size)}
    text = transform_text(config) if transform is None else repr(transform)
    digest = xxh3_64_hexdigest(repr(model).encode())
    return Tower(
        name=name,
        model=model,
        forward=forward,
        blocks=found,
        second_norm=second_norm_of(found[0]),
        last=last,
        final=final,
        layout=layout,
        image_size=size,
        transform=create_transform(**config, is_training=False) if transform is None else transform,
        transform_id=text,
        architecture=f"own module blocks={blocks} image={image_size}x{image_size} final={how} modules={digest}",
    )


def _check_transform(transform: Callable[[Any], Tensor], size: tuple[int, int]) -> None:
    try:
        output = transform(Image.new("RGB", (size[1] + 32, size[0] + 16)))
    except Exception as error:  # any function may come here, and it may fail in any way
        raise RequestError(
            "models.transform_output", size=list(size), got=f"{type(error).__name__}: {error}"
        ) from error
    is_tensor = isinstance(output, Tensor)
    if not is_tensor or output.dtype != torch.float32 or output.shape != (3, *size):
        got = f"{output.dtype} {list(output.shape)}" if is_tensor else type(output).__name__
        raise RequestError("models.transform_output", size=list(size), got=got)


NO_LIST = "Put its blocks, which are of one type, into an nn.ModuleList or nn.Sequential of the module."


def _list_of_blocks(model: nn.Module, blocks: str, name: str) -> tuple[nn.Module, ...]:
    lists = block_lists(model)
    if blocks not in dict(model.named_modules()) or not isinstance(
        found := model.get_submodule(blocks), nn.ModuleList | nn.Sequential
    ):
        todo = f"Give one of these as `blocks`, such as blocks={nearest_name(blocks, lists)!r}." if lists else NO_LIST
        candidates = ", ".join(lists) or "none"
        raise RequestError("models.no_list_of_blocks", model=name, blocks=blocks, candidates=candidates, todo=todo)
    return tuple(found)
