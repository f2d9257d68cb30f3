"""`--tap-module blocks.{i}.norm2`: hooks on modules by name, for models that do not follow the names of their family.

A pattern is a module's name with `{i}` in place of the number of its transformer block. The blocks are the modules that the pattern
names up to and including `{i}`. It is part of a cache's identity as the tap `module:PATTERN`. For a wrong pattern, one blank image
is run to find the modules that output one sequence of tokens at every depth.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RequestError

MODULE_TAP = "module:"
"""Begins the name of a tap that is a pattern: `module:blocks.{i}.norm2`."""

MOST_CANDIDATES = 8
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def tap_pattern(tap: str) -> str | None:
    """The pattern of a tap by module names, None for norm2 and block.

    >>> tap_pattern("module:blocks.{i}.norm2"), tap_pattern("norm2")
    ('blocks.{i}.norm2', None)
    """
    return tap.removeprefix(MODULE_TAP) if tap.startswith(MODULE_TAP) else None


def named_blocks(model: nn.Module, pattern: str, name: str, candidates: Callable[[], list[str]]) -> list[nn.Module]:
    """The blocks of a model, by a pattern.

    Args:
        model: the module that names are relative to.
        pattern: such as `layers.{i}.ffn_norm`.
        name: the model's, for messages.
        candidates: returns patterns that would work; called only if this one does not.

    Raises:
        RequestError: the pattern has not exactly one `{i}` as a part of its own, or a block lacks the module.
    """
    if pattern.split(".").count("{i}") != 1 or pattern.count("{") != 1:
        raise RequestError("models.bad_tap_module", pattern=pattern, candidates=", ".join(candidates()) or "none")
    modules = dict(model.named_modules())
    stem, _, leaf = pattern.partition("{i}")
    blocks: list[nn.Module] = []
    while f"{stem}{len(blocks)}" in modules:
        blocks.append(modules[f"{stem}{len(blocks)}"])
    missing = [f"{stem}{index}{leaf}" for index in range(max(len(blocks), 1)) if f"{stem}{index}{leaf}" not in modules]
    if missing:
        found = {"missing": missing[0], "count": len(missing), "candidates": ", ".join(candidates()) or "none"}
        raise RequestError("models.no_such_module", model=name, pattern=pattern, **found)
    return blocks


def tap_candidates(model: nn.Module, forward: Callable[[Tensor], Any], image_size: tuple[int, int]) -> list[str]:
    """Patterns whose modules output [1, T, D] with one T at every depth; norms first.

    Args:
        model: in evaluation mode.
        forward: runs it.
        image_size: height and width in pixels.

    Returns:
        at most MOST_CANDIDATES patterns; none if the model cannot be run or keeps no sequence of tokens.
    """
    numbered = {
        name: module
        for name, module in model.named_modules()
        if _NUMBER.search(name) and not isinstance(module, nn.Identity | nn.Dropout)
    }
    shapes: dict[str, Any] = {}
    hooks = [module.register_forward_hook(partial(_note_shape, shapes, name)) for name, module in numbered.items()]
    weight = next(model.parameters())
    try:
        with torch.inference_mode():
            forward(torch.zeros(1, 3, *image_size, device=weight.device, dtype=weight.dtype))
    except Exception:  # any model may come here, and it may fail in any way: then there is nothing to propose
        return []
    finally:
        for hook in hooks:
            hook.remove()
    groups: dict[str, dict[int, Any]] = defaultdict(dict)
    for name in numbered:
        number = _NUMBER.search(name)
        assert number is not None
        groups[name[: number.start()] + "{i}" + name[number.end() :]][int(number[0])] = shapes.get(name)
    found = [
        pattern
        for pattern, by_number in groups.items()
        if _is_one_sequence(by_number) and not _is_map(groups.get(pattern.partition("{i}")[0] + "{i}", {}))
    ]
    kinds = {pattern: type(numbered[pattern.replace("{i}", "0")]).__name__ for pattern in found}
    return sorted(found, key=lambda pattern: ("Norm" not in kinds[pattern], pattern.count(".")))[:MOST_CANDIDATES]


def tokens_of(output: Any) -> Any:
    """The output of a module; of a tuple, which the blocks of some models return, its first part."""
    return output[0] if isinstance(output, tuple) and output else output


def _note_shape(shapes: dict[str, Any], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    tokens = tokens_of(output)
    shapes[name] = tuple(tokens.shape) if isinstance(tokens, Tensor) else None


def _is_one_sequence(shapes: dict[int, Any]) -> bool:
    """Whether depths 0..n-1 are all there, each a [1, T, D] of more than one token, with the same T."""
    tokens = {shape[1] if shape and len(shape) == 3 and shape[0] == 1 else 0 for shape in shapes.values()}
    return len(shapes) > 1 and sorted(shapes) == list(range(len(shapes))) and len(tokens) == 1 and tokens.pop() > 1


def _is_map(shapes: dict[int, Any]) -> bool:
    """Whether blocks output maps [B, H, W, D]: SAM's do, and there the tokens inside a block lead nowhere."""
    return any(shape and len(shape) == 4 for shape in shapes.values())
