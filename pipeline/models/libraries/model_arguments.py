"""Arguments of a timm model's constructor in its id: `timm/NAME?init_values=1e-5&reg_tokens=4`.

Some models are a timm architecture with arguments (UNI, Virchow, H-optimus). The values are read by the types that the constructor
names, and their canonical text is part of the architecture's, hence of the identity of a store.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import timm.layers
from torch import nn

from ...errors import RequestError, nearest_name

_FIXED = ("img_size", "num_classes", "in_chans", "device", "dtype")
"""Arguments that layerbank gives itself."""


def split_arguments(model_id: str) -> tuple[str, dict[str, str]]:
    """An id without its arguments, and the texts of these by name.

    Raises:
        RequestError: what follows the question mark is no list of names and values.

    >>> split_arguments("timm/vit_large_patch16_224?init_values=1e-5&reg_tokens=4")
    ('timm/vit_large_patch16_224', {'init_values': '1e-5', 'reg_tokens': '4'})
    """
    plain, mark, text = model_id.partition("?")
    pairs = [one.partition("=") for one in text.split("&")] if mark else []
    arguments = {name: value for name, _, value in pairs}
    if not all(name and value for name, _, value in pairs) or len(arguments) < len(pairs):
        raise RequestError("models.bad_arguments", model=model_id, text=text)
    return plain, arguments


def arguments_text(arguments: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Canonical text of arguments, with its question mark: values as Python writes them, layers by name; "" for none.

    >>> arguments_text({"reg_tokens": 4, "init_values": 0.00001}, {"reg_tokens": "4", "init_values": "1e-5"})
    '?init_values=1e-05&reg_tokens=4'
    """
    plain = (bool, int, float, str, NoneType)
    values = (
        f"{name}={value if isinstance(value, plain) else texts[name]}" for name, value in sorted(arguments.items())
    )
    return f"?{'&'.join(values)}" if arguments else ""


def read_arguments(texts: Mapping[str, str], model_class: Callable[..., Any], model_id: str) -> dict[str, Any]:
    """Values of arguments by the types of a constructor.

    Args:
        texts: of `split_arguments`.
        model_class: the class of the model.
        model_id: for messages.

    Raises:
        RequestError: no such argument, one that layerbank gives itself, or a value of another type.
    """
    known = [name for name in inspect.signature(model_class).parameters if name not in _FIXED]
    types = get_type_hints(model_class.__init__)
    found = {}
    for name, text in texts.items():
        if name in _FIXED:
            raise RequestError("models.fixed_argument", model=model_id, name=name, fixed=", ".join(_FIXED))
        if name not in known:
            nearest = nearest_name(name, known)
            values = {"type": model_class.__name__, "name": name, "nearest": nearest}
            raise RequestError("models.unknown_argument", model=model_id, **values)
        try:
            found[name] = _value(text, types.get(name, str))
        except ValueError as error:
            raise RequestError("models.bad_argument", model=model_id, name=name, types=error, text=text) from error
    return found


def _value(text: str, hint: Any) -> Any:
    """The value of a text as the first of some types that it can be.

    Raises:
        ValueError: it is of none of them; names them.

    >>> _value("1e-5", float | None), _value("true", bool), _value("Mlp", type[nn.Module]).__name__
    (1e-05, True, 'Mlp')
    """
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    names = []
    for one in hints:
        if one is NoneType and text.lower() == "none":
            return None
        if one is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if one in (int, float):
            try:
                if math.isfinite(number := one(text)):
                    return number
            except ValueError:
                pass
        if get_origin(one) is Literal and text in get_args(one):
            return text
        if one not in (str, int, float, bool) and (layer := _layer(text)) is not None:
            return layer
        is_number = one in (bool, int, float, NoneType)
        options = " or ".join(map(repr, get_args(one))) if get_origin(one) is Literal else "a layer of timm.layers"
        names.append(one.__name__.removesuffix("Type") if is_number else "text" if one is str else options)
    if str in hints:  # last: a layer's name is a text too
        return text
    raise ValueError(" or ".join(dict.fromkeys(names)))


def _layer(name: str) -> Any:
    """A layer of timm by its name: a class, or one with arguments (SwiGLUPacked); None if there is no such layer."""
    found = getattr(timm.layers, name, None)
    made = found.func if isinstance(found, partial) else found
    return found if inspect.isclass(made) and issubclass(made, nn.Module) else None
