"""In which dtype each kind of token is stored.

The decision taken here: one text says it for a whole store, `float16` or `float16,cls=float32`: the dtype of every kind, then
the kinds that have another one. It has one form only, because it is part of a store's identity.
"""

from __future__ import annotations

import re

from .errors import SpecError

# logical dtype -> dtype on disk; Zarr v3 has no bfloat16, so its bits are kept as uint16
STORAGE_DTYPES = {"float16": "float16", "float32": "float32", "bfloat16": "uint16"}
DEFAULT = "float16"


def storage_dtypes_text(text: str) -> str:
    """The one form of a text in which kinds may come in any order and the dtype of the others may be left out.

    Raises:
        SpecError: a dtype that is none, or a kind that is named twice.

    >>> storage_dtypes_text("cls=float32,ap=float16"), storage_dtypes_text(" bfloat16 ")
    ('float16,cls=float32', 'bfloat16')
    """
    default: str | None = None
    by_kind: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",")):
        kind, equals, dtype = part.rpartition("=")
        twice = kind in by_kind or (not equals and default is not None)
        if dtype not in STORAGE_DTYPES or twice or (equals and not re.fullmatch(r"[A-Za-z0-9_.-]+", kind)):
            raise SpecError(
                where="storage dtype",
                expected=f"one of {', '.join(STORAGE_DTYPES)}, or dtypes by kind such as cls=float32,ap=float16",
                got=f"{part!r} twice" if twice else repr(text),
                todo="Name each kind once; kinds that are not named have the dtype that stands alone, else float16.",
            )
        if equals:
            by_kind[kind] = dtype
        else:
            default = dtype
    default = default or DEFAULT
    return ",".join([default, *(f"{kind}={by_kind[kind]}" for kind in sorted(by_kind) if by_kind[kind] != default)])


def storage_dtype_of(text: str, kind: str) -> str:
    """The logical dtype of one kind.

    >>> storage_dtype_of("float16,cls=float32", "cls"), storage_dtype_of("float16,cls=float32", "ap")
    ('float32', 'float16')
    """
    default, *others = text.split(",")
    return dict(other.split("=") for other in others).get(kind, default)


def kinds_with_own_dtype(text: str) -> list[str]:
    """The kinds that a text names.

    >>> kinds_with_own_dtype("float16,cls=float32")
    ['cls']
    """
    return [part.partition("=")[0] for part in text.split(",")[1:]]
