"""Stores made from features that other tools have computed: one file, or a folder, with tokens, ids and targets.

The decision taken here: nothing is known of the images, so a row is known by the bytes of its features, and the transform in the
identity of the model says so. Two files whose features one model has computed are stores of one model if they are given one name.
All features of a file are held in memory.

Knows `.npz`, `.npy`, HDF5 and Parquet, what `features.write_features` writes, folders of thingsvision, and files of TRIDENT.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64

from ..errors import SpecError
from ..rows import RowSet
from ..spec import FINAL, ArraySpec, ModelSpec, StoreSpec, path_name
from ..targets import LABEL, TARGET_TYPES, Target, write_target
from ..writing.writer import CacheWriter
from .hdf5_inside import place_outside

TRANSFORM = "none: rows are known by their features, not by images"
TAP = "block"
LEVELS, TOKENS = "levels", "tokens"
"""What the second axis of features [N, L, D] or [N, T, D] may be."""

_ARRAY_NAME = re.compile(r"(block\.\d+|final)/([A-Za-z0-9][A-Za-z0-9_.-]*)")
_FEATURES = ("features", "embeddings", "feats", "x", "X", "data")
_IDS = ("ids", "id", "sample_ids", "file_names", "filenames", "paths", "names")
_LABELS = ("labels", "label", "targets", "target", "y")
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, SyntaxError),
    *(struct.error, zipfile.BadZipFile, zlib.error, RecursionError),
)
BATCH_ROWS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features of N samples.

    Attributes:
        tokens: (level, kind) -> [N, D] or [N, T, D], float16 or float32.
        ids: N names.
        targets: name -> target of N rows.
        model: what computed them, if the file says so.
    """

    tokens: Mapping[tuple[str, str], NDArray[Any]]
    ids: list[str]
    targets: Mapping[str, Target]
    model: str = ""


def store_features(
    file: str | Path, root: str | Path, *, model: str = "", name: str = "", second_axis: str | None = None
) -> Path:
    """Make a store of the features in a file, or in a folder; one that is there already stays as it is.

    Args:
        file: see `read_features`.
        root: the cache folder.
        model: what computed the features; "" takes what the file says, else `features`.
        name: name of the data; "" takes that of the file.
        second_axis: what axis 1 of an array without a level and kind is, `levels` or `tokens`; None where there is none.

    Returns:
        The path of the store.

    Raises:
        SpecError: as `read_features`.
        CacheError: the disk refuses, or something else lies at the path.
    """
    file = Path(file)
    found = read_features(file, second_axis=second_axis)
    model = model or found.model or "features"
    arrays = [
        ArraySpec(level=one, kind=kind, row_shape=values.shape[1:], tap=TAP)
        for (one, kind), values in found.tokens.items()
    ]
    tokens = {array.name: found.tokens[array.level, array.kind] for array in arrays}
    rows = RowSet(hashes=_row_hashes(tokens))
    spec = StoreSpec.of_rows(
        ModelSpec(
            architecture=f"features of {model}",
            weights=hashlib.sha256(model.encode()).hexdigest()[:32],
            token_rule="as given",
            transform=TRANSFORM,
            compute_dtype="float32",
            storage_dtype=_storage_dtypes(found),
            name=model,
        ),
        rows,
        name or path_name(file.stem),
    )
    path = spec.path(root)
    about = {"features": {"file": file.name, "rows": TRANSFORM}}
    names: dict[str, Any] = {"name": spec.name, "sample_ids": found.ids, "attributes": about}
    with CacheWriter.open(path, spec.model, rows, arrays, batch_size=BATCH_ROWS, **names) as writer:
        for batch in writer.pending():
            part = slice(batch.start, batch.stop)
            writer.append(
                batch, {one.name: tokens[one.name][part] for one in batch.arrays}, content_hashes=rows.hashes[part]
            )
        for target_name, target in found.targets.items():
            write_target(path, target_name, target, num_rows=len(rows))
        writer.complete()
    return path


def read_features(file: Path, *, second_axis: str | None = None) -> Features:
    """Read features of another tool.

    Arrays called `block.6/cls` or `final/ap` are taken as they are called. Of others one is taken, by a usual name (`features`,
    `embeddings`, `x`) or because it is the only one that can be: [N, D] is `final/cls`, [N, T, D] `final/patch`, and [N, L, D] are
    `block.0/cls`, `block.1/cls`, ... and `final/cls`. Names are found as `ids`, `file_names`, ...;
    targets as `targets/<name>` or `labels`.

    Args:
        file: a `.npz`, `.npy`, `.h5`, `.hdf5` or `.parquet` file, or a folder of thingsvision or of TRIDENT.
        second_axis: `levels` or `tokens`, for an array [N, ?, D].

    Raises:
        SpecError: no such file, damage, no features in it, values that are not finite, ids that are not distinct, or another number
            of rows in one of the arrays.
    """
    if not file.exists():
        raise _unreadable(file, "nothing there")
    try:
        if file.is_dir():
            return _read_folder(file, second_axis)
        if not file.is_file():
            raise _unreadable(file, "no regular file")
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            raise SpecError("cache.unknown_features", file=file, extensions=" ".join(READERS))
        return _features_of(file, reader(file), second_axis)
    except ImportError:
        raise SpecError("cache.no_pyarrow", file=file.name) from None
    except SpecError:
        raise
    except _DAMAGE as error:
        raise _unreadable(file, str(error).partition("\n")[0] or type(error).__name__) from error


def _read_folder(folder: Path, second_axis: str | None) -> Features:
    if (folder / "file_names.txt").is_file():  # thingsvision
        found = [one for one in sorted(folder.glob("features.*")) if one.suffix.lower() in READERS]
        if len(found) != 1:
            raise _unreadable(folder, f"{len(found)} files features.npy or features.hdf5 beside file_names.txt")
        arrays = READERS[found[0].suffix.lower()](found[0])
        ids = (folder / "file_names.txt").read_text(encoding="utf-8").splitlines()
        return _features_of(folder, {**arrays, "ids": np.array(ids)}, second_axis)
    files = sorted(folder.glob("*.h5"))
    if not files:
        raise _unreadable(folder, "neither file_names.txt of thingsvision nor *.h5 files of TRIDENT")
    parts = [_features_of(file, _read_hdf5(file), second_axis) for file in files]
    shapes = {str([(key, values.shape[1:]) for key, values in part.tokens.items()]) for part in parts}
    models = {part.model for part in parts}
    if len(shapes) > 1 or len(models) > 1:
        raise _unreadable(folder, "files of different shapes or encoders")
    tokens = {key: np.concatenate([part.tokens[key] for part in parts]) for key in parts[0].tokens}
    return Features(tokens=tokens, ids=[id for part in parts for id in part.ids], targets={}, model=models.pop())


def _features_of(place: Path, arrays: Mapping[str, NDArray[Any]], second_axis: str | None) -> Features:
    arrays = _of_trident(place, arrays)
    named = {name: match.groups() for name in arrays if (match := _ARRAY_NAME.fullmatch(name))}
    tokens: dict[tuple[str, str], NDArray[Any]]
    if named:
        tokens = {(level, kind): arrays[name] for name, (level, kind) in named.items()}
    else:
        fitting = [name for name, values in arrays.items() if values.dtype.kind in "fiu" and values.ndim in (2, 3)]
        usual = [name for name in _FEATURES if name in fitting]
        if not usual and len(fitting) != 1:
            present = ", ".join(f"{name} {list(values.shape)}" for name, values in arrays.items()) or "none"
            raise SpecError("cache.no_features", file=place, present=present)
        tokens = _by_level(place, arrays[(usual or fitting)[0]], second_axis)
    num_rows = len(next(iter(tokens.values())))
    names = next((arrays[name] for name in _IDS if name in arrays), None)
    ids = [_text(one) for one in names.tolist()] if names is not None else [str(row) for row in range(num_rows)]
    targets = _targets_of(arrays)
    counts = {"ids": len(ids)} | {"/".join(key): len(values) for key, values in tokens.items()}
    counts |= {name: len(target.values) for name, target in targets.items()}
    if len(set(counts.values())) > 1 or not num_rows:
        raise _unreadable(place, "different numbers of rows: " + ", ".join(f"{n} {c:,}" for n, c in counts.items()))
    if twice := [id for id, count in Counter(ids).items() if count > 1 or not id]:
        raise _unreadable(place, f"ids that are empty or occur twice, {twice[0]!r} first")
    plain = {key: _as_floats(place, "/".join(key), values) for key, values in tokens.items()}
    model = arrays["model"].item() if "model" in arrays and arrays["model"].ndim == 0 else ""
    return Features(tokens=plain, ids=ids, targets=targets, model=_text(model))


def _by_level(place: Path, values: NDArray[Any], second_axis: str | None) -> dict[tuple[str, str], NDArray[Any]]:
    if values.ndim == 2:
        return {(FINAL, "cls"): values}
    if second_axis not in (LEVELS, TOKENS):
        raise SpecError("cache.second_axis", file=place, shape=list(values.shape))
    if second_axis == TOKENS:
        return {(FINAL, "patch"): values}
    last = values.shape[1] - 1
    return {(f"block.{level}" if level < last else FINAL, "cls"): values[:, level] for level in range(last + 1)}


def _of_trident(place: Path, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Patches of a slide, called by the slide and their corner; or a slide; other arrays as they are."""
    features, coords = arrays.get("features"), arrays.get("coords")
    if features is None or coords is None or coords.ndim != 2 or features.ndim > 2:
        return arrays
    if features.ndim == 1:
        return {**arrays, "features": features[None], "ids": np.array([place.stem])}
    corners = [",".join(map(str, corner)) for corner in coords.tolist()]
    return {**arrays, "ids": np.array([f"{place.stem}[{corner}]" for corner in corners])}


def _targets_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Target]:
    found = {name.removeprefix("targets/"): name for name in arrays if name.startswith("targets/")}
    if not found:
        labels = next((name for name in _LABELS if name in arrays), None)
        found = {} if labels is None else {LABEL: labels}
    return {target: _target_of(arrays, target, arrays[name]) for target, name in found.items()}


def _target_of(arrays: Mapping[str, NDArray[Any]], name: str, values: NDArray[Any]) -> Target:
    names = arrays.get(f"class_names/{name}", arrays.get("class_names") if name == LABEL else None)
    class_names = [] if names is None else [_text(one) for one in names.tolist()]
    kind = _text(arrays[f"target_types/{name}"].item()) if f"target_types/{name}" in arrays else ""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind not in "iubf":
        texts = [None if one is None else _text(one) for one in values.tolist()]
        class_names = class_names or sorted({text for text in texts if text is not None})
        number_of = {text: number for number, text in enumerate(class_names)}
        values = np.array([-1 if text is None else number_of[text] for text in texts], dtype=np.int64)
    elif values.dtype.kind in "iub" and values.ndim == 1 and not class_names and kind in ("", "multiclass"):
        known, values = np.unique(values, return_inverse=True)
        class_names = [str(one) for one in known.tolist()]
    is_class = values.dtype.kind in "iub" and values.ndim == 1
    if kind not in TARGET_TYPES:
        are_flags = values.ndim == 2 and bool(np.isin(values, (0, 1)).all())
        kind = "multiclass" if is_class else "multilabel" if are_flags else "regression"
    return Target(values=values, type=kind, class_names=class_names, source="features")


def _as_floats(place: Path, name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "fiu" or values.ndim not in (2, 3) or 0 in values.shape:
        raise _unreadable(place, f"{name} has {values.dtype} of shape {list(values.shape)}")
    with np.errstate(over="ignore"):
        plain = values if values.dtype in (np.float16, np.float32) else values.astype(np.float32)
    if not np.isfinite(plain).all():
        raise _unreadable(place, f"{name} has values that are not finite in {plain.dtype}")
    return np.ascontiguousarray(plain)


def _storage_dtypes(found: Features) -> str:
    """The dtype of each kind: float16 where all its arrays are."""
    kinds = {kind for _, kind in found.tokens}
    wide = {kind for (_, kind), values in found.tokens.items() if values.dtype != np.float16}
    if wide in (set(), kinds):
        return "float32" if wide else "float16"
    return ",".join(["float16", *(f"{kind}=float32" for kind in sorted(wide))])


def _row_hashes(tokens: Mapping[str, NDArray[Any]]) -> NDArray[np.uint64]:
    """[N] xxh3_64 of names, dtypes, shapes and bytes of the tokens of each row."""
    names = sorted(tokens)
    head = "\n".join(f"{name} {tokens[name].dtype.str} {tokens[name].shape[1:]}" for name in names).encode()
    hashes = np.zeros(len(tokens[names[0]]), dtype=np.uint64)
    for row in range(len(hashes)):
        digest = xxh3_64(head)
        for name in names:
            digest.update(tokens[name][row].data)
        hashes[row] = digest.intdigest() or 1
    return hashes


def _read_npz(file: Path) -> dict[str, NDArray[Any]]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def _read_npy(file: Path) -> dict[str, NDArray[Any]]:
    return {"features": np.load(file, allow_pickle=False)}


def _read_hdf5(file: Path) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            if place := place_outside(opened, name):
                raise ValueError(f"{name} leads out of the file, to {place}")
            is_text = h5py.check_string_dtype(item.dtype) is not None
            found[name] = np.asarray(item.asstr()[()], dtype=np.str_) if is_text else np.asarray(item[()])
            if name == "features" and (encoder := item.attrs.get("encoder")):  # of TRIDENT
                found["model"] = np.array(str(encoder))

    with h5py.File(file, "r") as opened:
        opened.visititems(take)
    return found


def _read_parquet(file: Path) -> dict[str, NDArray[Any]]:
    from pyarrow import parquet, types

    table = parquet.read_table(file)
    found: dict[str, NDArray[Any]] = {}
    for field in table.schema:
        column, about = table.column(field.name).combine_chunks(), field.metadata or {}
        if types.is_list(field.type) or types.is_fixed_size_list(field.type) or types.is_large_list(field.type):
            lengths = set(column.value_lengths().to_pylist()) if not types.is_fixed_size_list(field.type) else set()
            if len(lengths) > 1 or column.null_count:
                raise ValueError(f"lists of different lengths in column {field.name}")
            flat = column.flatten().to_numpy(zero_copy_only=False)
            shape = [int(one) for one in about.get(b"shape", b"-1").decode().split()]
            found[field.name] = flat.reshape(table.num_rows, *shape)
        else:
            values = column.to_pylist()
            found[field.name] = np.array(values, dtype=object if None in values else None)
        for key, name in ((b"class_names", "class_names"), (b"type", "target_types")):
            if key in about:
                found[f"{name}/{field.name.removeprefix('targets/')}"] = np.array(json.loads(about[key]))
    return found


def _text(value: Any) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _unreadable(file: Path, reason: str) -> SpecError:
    return SpecError("cache.unreadable_features", file=file, reason=reason)


READERS: dict[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".parquet": _read_parquet,
}
