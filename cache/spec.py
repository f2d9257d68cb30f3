"""The identity of a store, and the arrays in it with their dtypes.

The decision taken here: a store is a list of rows of one model. What determines the bits of a token is the model
(architecture, weights, definitions of the kinds, transform, precisions) and the row's image; so identity is the digest of the
model and the digest of the rows (`rows.py`). Names are for people: they choose the folder, never the identity. One text gives
the storage dtypes of all kinds, `float16` or `float16,cls=float32`; it has one canonical form, because it is part of the
identity.

Does not touch files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .errors import FieldDifference, SpecError
from .rows import RowSet

MODEL_FIELDS = ("architecture", "weights", "token_rule", "transform", "compute_dtype", "storage_dtype")
FINAL = "final"  # the one level that does not depend on the tap
MODULE_TAP = "module:"  # then a pattern of module names, such as module:blocks.{i}.norm2
COMPUTE_DTYPES = ("float32", "float16", "bfloat16")
# logical dtype -> dtype on disk; Zarr v3 has no bfloat16, so its bits are kept as uint16
STORAGE_DTYPES = {"float16": "float16", "float32": "float32", "bfloat16": "uint16"}
DEFAULT_STORAGE_DTYPE = "float16"

_HEX = re.compile(r"[0-9a-f]{8,128}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What computes the tokens of a store.

    Args:
        architecture: the network and its input size, e.g. ``"timm/vit_small_patch14_dinov2 img_size=98"``.
        weights: hex digest of the weights.
        token_rule: version of the definitions of the kinds.
        transform: canonical text of the evaluation transform.
        compute_dtype: precision of the forward pass: float32, float16 or bfloat16.
        storage_dtype: precision in the store: float16, float32 or bfloat16, and kinds that differ: ``float16,cls=float32``.
        name: model id, for people; not part of the identity.

    Raises:
        SpecError: naming every field that is empty, of the wrong type or not one of the allowed values.
    """

    architecture: str
    weights: str
    token_rule: str
    transform: str
    compute_dtype: str
    storage_dtype: str
    name: str

    def __post_init__(self) -> None:
        values = asdict(self)
        empty = [name for name, value in values.items() if not isinstance(value, str) or not value.strip()]
        wrong = [(name, "a text that is not empty") for name in empty]
        if "weights" not in empty and not _HEX.fullmatch(self.weights):
            wrong.append(("weights", "8 to 128 lower-case hex digits"))
        if self.compute_dtype not in COMPUTE_DTYPES:
            wrong.append(("compute_dtype", f"one of {', '.join(COMPUTE_DTYPES)}"))
        if isinstance(self.storage_dtype, str) and not _is_canonical(self.storage_dtype):
            wrong.append(
                ("storage_dtype", f"one of {', '.join(STORAGE_DTYPES)}, then kinds that differ: float16,cls=float32")
            )
        if wrong:
            expected = "; ".join(f"{name} to be {rule}" for name, rule in wrong)
            got = "; ".join(f"{name} = {getattr(self, name)!r}" for name, _ in wrong)
            raise SpecError("cache.invalid_spec", spec=type(self).__name__, expected=expected, got=got)

    @property
    def digest(self) -> str:
        """64 hex digits: SHA-256 of the identity fields as JSON with sorted keys, no spaces and ASCII only."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def identity(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in MODEL_FIELDS}

    def difference(self, other: ModelSpec) -> list[FieldDifference]:
        """The identity fields in which `other` (got) differs from this model (expected), in the order of the format."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in MODEL_FIELDS)
        return [FieldDifference(name, expected, got) for name, expected, got in pairs if expected != got]

    def dtype_of(self, kind: str) -> str:
        return storage_dtype_of(self.storage_dtype, kind)

    def folder(self, root: str | Path) -> Path:
        """The folder of the stores of this model: ``<root>/<name>-<first 8 of the digest>``."""
        return Path(root) / f"{path_name(self.name)}-{self.digest[:8]}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`.

        Raises:
            SpecError: for a field that is missing, unknown or wrong.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise SpecError(
                "cache.wrong_spec_fields",
                names=", ".join(sorted(names)),
                missing=sorted(names - set(values)),
                unknown=sorted(set(values) - names),
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """The identity of a store: its model and its rows.

    Args:
        model: what computes the tokens.
        rows_digest: 64 hex digits, see `RowSet.digest`.
        num_rows: N, at least 1.
        hash_rule: version of the definition of a content hash.
        view_rule: canonical text of how augmented views are drawn; empty where every row is a centre view.
        name: name of the data that the store was made for, for people; not part of the identity.

    Raises:
        SpecError: naming every wrong field.
    """

    model: ModelSpec
    rows_digest: str
    num_rows: int
    hash_rule: int
    view_rule: str
    name: str

    def __post_init__(self) -> None:
        checks = {
            "rows_digest": isinstance(self.rows_digest, str) and _HEX.fullmatch(self.rows_digest),
            "num_rows": type(self.num_rows) is int and self.num_rows >= 1,
            "hash_rule": type(self.hash_rule) is int and self.hash_rule >= 1,
            "view_rule": isinstance(self.view_rule, str),
            "name": isinstance(self.name, str) and self.name.strip(),
        }
        wrong = [name for name, is_right in checks.items() if not is_right]
        if wrong:
            got = "; ".join(f"{name} = {getattr(self, name)!r}" for name in wrong)
            expected = "a hex digest, at least one row, a hash rule from 1, a text, and a name that is not empty"
            raise SpecError("cache.invalid_spec", spec=type(self).__name__, expected=expected, got=got)

    @classmethod
    def of_rows(cls, model: ModelSpec, rows: RowSet, name: str) -> StoreSpec:
        """The spec of a store of these rows."""
        return cls(
            model=model,
            rows_digest=rows.digest,
            num_rows=len(rows),
            hash_rule=rows.hash_rule,
            view_rule=rows.view_rule,
            name=name,
        )

    @property
    def fingerprint(self) -> str:
        """64 hex digits: SHA-256 of the digests of model and rows."""
        return hashlib.sha256(f"{self.model.digest} {self.rows_digest}".encode("ascii")).hexdigest()

    def numbered(self) -> Iterator[StoreSpec]:
        """This spec, then the same by the names ``<name>-2``, ``<name>-3``, ...: stores of equal rows need different paths."""
        yield self
        yield from (replace(self, name=f"{self.name}-{number}") for number in itertools.count(2))

    def difference(self, other: StoreSpec) -> list[FieldDifference]:
        """The fields of the identity in which `other` (got) differs from this spec (expected)."""
        differences = self.model.difference(other.model)
        if self.rows_digest != other.rows_digest:
            differences.append(FieldDifference("rows", self.rows_digest, other.rows_digest))
        elif self.num_rows != other.num_rows:  # one of them is not what it says
            differences.append(FieldDifference("num_rows", self.num_rows, other.num_rows))
        return differences

    def path(self, root: str | Path) -> Path:
        """``<root>/<model>-<8 of its digest>/<name>-<8 of the row digest>.zarr``, the names made fit for a path."""
        return self.model.folder(root) / f"{path_name(self.name)}-{self.rows_digest[:8]}.zarr"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One token array of a store.

    Args:
        level: ``block.0`` .. ``block.{depth-1}`` or ``final``.
        kind: ``cls``, ``ap``, ``grid{g}``, ``patch`` or ``register``.
        row_shape: shape of one sample's tokens, ``(D,)`` or ``(T, D)``.
        tap: the output that is read in each block: ``norm2``, ``block``, or ``module:`` and a pattern; `final` has none, "".
        name: path of the array inside the store; made from the other fields.

    Raises:
        SpecError: for a name that is no path part, a tap without a name, or a shape of another rank.
    """

    level: str
    kind: str
    row_shape: tuple[int, ...]
    tap: str = "norm2"
    name: str = ""

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.row_shape)
        object.__setattr__(self, "row_shape", shape)
        object.__setattr__(self, "tap", "" if self.level == FINAL else self.tap)
        tap = [] if self.level == FINAL else [tap_folder(self.tap)]
        object.__setattr__(self, "name", self.name or "/".join(["tokens", *tap, self.level, self.kind]))
        for field, name in (("level", self.level), ("kind", self.kind)):
            if not _NAME.fullmatch(name):
                raise SpecError("cache.invalid_array_name", field=field, name=name)
        if tap and (not self.tap.strip() or self.tap == FINAL):
            raise SpecError("cache.invalid_tap", tap=self.tap)
        if len(shape) not in (1, 2) or min(shape) < 1:
            raise SpecError("cache.invalid_row_shape", array=self.name, shape=shape)


def tap_folder(tap: str) -> str:
    """The part of an array's path that stands for a tap.

    >>> tap_folder("norm2"), tap_folder("module:blocks.{i}.norm2")
    ('norm2', 'module-blocks.-i-.norm2-412b2ec0')
    """
    if _NAME.fullmatch(tap):
        return tap
    return f"{path_name(tap)}-{hashlib.sha256(tap.encode()).hexdigest()[:8]}"


def array_order(spec: ArraySpec) -> tuple[list[Any], list[Any], str]:
    """Sort key: levels by depth (``block.2``, ``block.10``, ``final``), then kinds by name and number, then taps.

    >>> names = [("final", "cls"), ("block.10", "cls"), ("block.2", "cls"), ("block.2", "ap")]
    >>> arrays = [ArraySpec(level=level, kind=kind, row_shape=(4,)) for level, kind in names]
    >>> [array.name for array in sorted(arrays, key=array_order)]
    ['tokens/norm2/block.2/ap', 'tokens/norm2/block.2/cls', 'tokens/norm2/block.10/cls', 'tokens/final/cls']
    """
    return natural_order(spec.level), natural_order(spec.kind), spec.tap


def natural_order(name: str) -> list[Any]:
    """Sort key that takes digits as numbers."""
    # re.split with a group alternates text and digits, so equal positions always hold equal types
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def path_name(text: str) -> str:
    """`text` as one safe part of a path: other characters become ``-``; never hidden, never empty.

    >>> path_name("timm/vit_small_patch14_dinov2"), path_name("../x y"), path_name("...")
    ('timm-vit_small_patch14_dinov2', 'x-y', 'unnamed')
    """
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[:100] or "unnamed"


def storage_dtypes_text(text: str) -> str:
    """The canonical form of a storage dtype text: kinds may come in any order, and the dtype of the others may be left out.

    Raises:
        SpecError: an unknown dtype, or a kind that is named twice.

    >>> storage_dtypes_text("cls=float32,ap=float16"), storage_dtypes_text(" bfloat16 ")
    ('float16,cls=float32', 'bfloat16')
    """
    default: str | None = None
    by_kind: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",")):
        kind, equals, dtype = part.rpartition("=")
        if dtype not in STORAGE_DTYPES or (equals and not re.fullmatch(r"[A-Za-z0-9_.-]+", kind)):
            raise SpecError("cache.invalid_storage_dtype", dtypes=", ".join(STORAGE_DTYPES), text=text)
        if kind in by_kind or (not equals and default is not None):
            raise SpecError("cache.repeated_storage_dtype", part=part)
        if equals:
            by_kind[kind] = dtype
        else:
            default = dtype
    default = default or DEFAULT_STORAGE_DTYPE
    return ",".join([default, *(f"{kind}={by_kind[kind]}" for kind in sorted(by_kind) if by_kind[kind] != default)])


def storage_dtype_of(text: str, kind: str) -> str:
    """The logical dtype in which a kind is stored.

    >>> storage_dtype_of("float16,cls=float32", "cls"), storage_dtype_of("float16,cls=float32", "ap")
    ('float32', 'float16')
    """
    default, *others = text.split(",")
    return dict(other.split("=") for other in others).get(kind, default)


def kinds_with_own_dtype(text: str) -> list[str]:
    """The kinds whose dtype a text gives separately.

    >>> kinds_with_own_dtype("float16,cls=float32")
    ['cls']
    """
    return [part.partition("=")[0] for part in text.split(",")[1:]]


def _is_canonical(storage_dtype: str) -> bool:
    try:
        return storage_dtypes_text(storage_dtype) == storage_dtype
    except SpecError:
        return False
