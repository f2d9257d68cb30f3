"""Extraction, and its tokens as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import TokenArray

from ..data.image_source import ImageSource
from ..data.splits.split_rows import SplitRows
from ..data.views import ViewRule
from ..errors import RequestError
from ..events import OnEvent
from ..extraction.extract import ExtractConfig
from ..jobs.extract import RequestedExtraction, open_rows, report_data, settle_and_check_disk
from ..jobs.job import ExtractJob, Names, job_value, typed_value
from ..models.layers import choose_levels
from ..models.request import ModelRequest, choose_storage_dtype
from ..models.rounding import float_tokens
from ..probing.tokens.split_tokens import SplitRequest, SplitTokens
from .arguments import check_kind, output_folder_from
from .models import Model
from .progress import Progress, listening


class Tokens:
    """The tokens of the images of one split by one model; made by `extract`.

    `tokens["block.6", "cls"]` is an array of all rows that could be read.

    Attributes:
        model: what computed them.
        request: which rows, and where they are looked for.
        labels: [N] int64.
        ids: N sample ids.
        class_names: C names.

    >>> import tempfile, layerbank as lb
    >>> model = lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu")
    >>> images = lb.open_images("demo:digits?train=40&test=20", split="test")
    >>> tokens = lb.extract(model, images, levels="last", cache=tempfile.mkdtemp(), progress=False)
    >>> tokens.arrays, len(tokens), tokens["final", "ap"].shape
    ([('final', 'cls'), ('final', 'ap')], 20, (20, 192))
    """

    def __init__(self, model: Model, request: SplitRequest, description: dict[str, Any]) -> None:
        self.model, self.request, self.description = model, request, description
        self._open: SplitTokens = request.open()
        self.labels: NDArray[np.int64] = self._open.targets
        self.ids: list[str] = self._open.sample_ids
        self.class_names: list[str] = self._open.class_names

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """The (level, kind) pairs."""
        return list(self._open.arrays)

    @property
    def stores(self) -> list[Path]:
        """The stores that hold the rows."""
        return list(self._open.stores)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, array: tuple[str, str]) -> RowArray:
        """The tokens of a level and kind.

        Raises:
            RequestError: the key is no pair of a level and a kind.
            MissingArrayError: they were not extracted.
        """
        if not (isinstance(array, tuple) and len(array) == 2 and all(isinstance(one, str) for one in array)):
            got = repr(array)[:80]
            raise RequestError("api.wrong_argument", where="Tokens[...]", expected="a pair (level, kind)", got=got)
        level, kind = array
        return RowArray(self._open.tokens(level, kind), self._open.positions)

    def __repr__(self) -> str:
        return f"Tokens({self.request.name!r}, {len(self):,} images, {len(self.arrays)} arrays of {self.request.model.name!r})"


class RowArray:
    """Tokens [N, D] or [N, T, D] of a level and kind, read from the disk where they are used.

    Slices, integers, lists and boolean masks along the first axis give NumPy arrays; `np.asarray` reads everything. Values are
    float16 or float32; bfloat16 becomes float32.

    Attributes:
        shape, dtype: of the array.

    Raises:
        RequestError: an index of another form.
        IndexError: a row that is not there.

    >>> import tempfile, layerbank as lb
    >>> model = lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu")
    >>> images = lb.open_images("demo:digits?train=40&test=20", split="test")
    >>> tokens = lb.extract(model, images, levels="last", cache=tempfile.mkdtemp(), progress=False)
    >>> array = tokens["final", "cls"]
    >>> array[3].shape, array[5:9, :10].shape, array[tokens.labels == 1].shape[1:]
    ((192,), (4, 10), (192,))
    """

    def __init__(self, tokens: TokenArray, positions: NDArray[np.int64]) -> None:
        self._tokens, self._positions = tokens, positions
        self.shape: tuple[int, ...] = (len(positions), *tokens.shape[1:])
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if tokens.logical_dtype == "bfloat16" else tokens.logical_dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        first, *rest = rows if isinstance(rows, tuple) else (rows,)
        if any(not isinstance(one, int | np.integer | slice) for one in rest) or first is None or np.ndim(first) > 1:
            raise RequestError("api.wrong_rows", got=repr(rows)[:80])
        if first is Ellipsis:
            first, rest = slice(None), [slice(None)] * (len(self.shape) - 1 - len(rest)) + rest
        places = self._positions[first]
        return self._read(places)[(*[slice(None)] * places.ndim, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._read(self._positions).astype(self.dtype if dtype is None else dtype, copy=False)

    def _read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        stored = self._tokens.take(np.atleast_1d(positions)).reshape(*positions.shape, *self.shape[1:])
        if self._tokens.logical_dtype == "bfloat16":
            stored = float_tokens(stored, "bfloat16").float().numpy()
        return stored

    def __repr__(self) -> str:
        return f"RowArray(shape={self.shape}, dtype={self.dtype})"


def extract(
    model: Model,
    images: ImageSource,
    *,
    kinds: Sequence[str] = ("cls", "ap"),
    levels: str | Sequence[str] = "every",
    cache: str | Path = "caches",
    storage_dtype: str = "float16",
    views: int = 0,
    batch_size: int | None = None,
    workers: int = 0,
    on_bad_image: str = "stop",
    trust_files: bool = False,
    overwrite: bool = False,
    progress: Progress = True,
) -> Tokens:
    """Compute the tokens of some images that no store of the model holds, and open all of them.

    Args:
        model: of `open_model` or `model_from`.
        images: of `open_images` or `images_from`.
        kinds: "cls", "ap", "grid2", "patch", "register", ...
        levels: "every", a layer set ("last", "mid", "quarterly", "all"), or names such as ("block.3", "final").
        cache: folder of all stores.
        storage_dtype: "float16", "float32", "bfloat16", or one for each kind: "cls=float32,ap=float16".
        views: augmented views of each image beside the centre one.
        batch_size: images in a forward pass; None chooses it.
        workers: decoding processes; 0 decodes in this one.
        on_bad_image: "stop", or "skip" and leave the image out.
        trust_files: take hashes from stores of the same data set and split with images of the same names and sizes, without
            reading the images; of folders and archives of encoded images alone.
        overwrite: delete the stores of these images alone and compute their rows again; rows that lie in a store with others, or in
            one of format 1, are kept.
        progress: True for progress bars, False for none, or a function that is called with every event.

    Raises:
        RequestError: the model lacks a level or kind, wrong options, or a disk that is too small.
        BadImage: an image cannot be read and `on_bad_image` is "stop".
        CacheError: a store is held by another process, or the images changed while they were read.

    >>> import tempfile, layerbank as lb
    >>> model = lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu")
    >>> images = lb.open_images("demo:digits?train=40&test=20", split="train")
    >>> folder = tempfile.mkdtemp()
    >>> tokens = lb.extract(model, images, levels="last", cache=folder, progress=False)
    >>> tokens["final", "cls"]
    RowArray(shape=(40, 192), dtype=float16)
    """
    check_kind(model, Model, "extract, model", "a Model of open_model or model_from")
    check_kind(images, ImageSource, "extract, images", "images of open_images or images_from")
    given = {"storage_dtype": storage_dtype, "views": views, "batch_size": batch_size, "workers": workers}
    given |= {"on_bad_image": on_bad_image, "trust_files": trust_files, "overwrite": overwrite}
    checked = {name: job_value(ExtractJob, name, value, "extract") for name, value in given.items()}
    config = _config_of(model, kinds, levels, checked)
    cache = output_folder_from(cache, "extract, cache", is_written=False)
    rule = ViewRule(num_views=checked["views"]) if views else None
    rows = partial(open_rows, images, cache, rule=rule, trust_files=trust_files)
    with listening(progress) as on_event:
        return _extract(model, rows, config, cache, on_event)


def _config_of(
    model: Model, kinds: Sequence[str], levels: str | Sequence[str], checked: Mapping[str, Any]
) -> ExtractConfig:
    kinds = typed_value(kinds, Names, "extract", "kinds")
    return ExtractConfig(
        arrays=tuple((level, kind) for level in _levels(model, levels) for kind in kinds),
        storage_dtype=choose_storage_dtype(checked["storage_dtype"]),
        batch_size=checked["batch_size"],
        num_workers=checked["workers"],
        on_bad_image=checked["on_bad_image"],
        overwrite=checked["overwrite"],
    )


def _levels(model: Model, levels: str | Sequence[str]) -> Sequence[str]:
    if not isinstance(levels, str):
        return list(typed_value(levels, Names, "extract", "levels"))
    return model.levels if levels == "every" else choose_levels(levels, model.backbone.depth)


def _extract(
    model: Model, open_: Callable[..., SplitRows], config: ExtractConfig, cache: Path, on_event: OnEvent
) -> Tokens:
    rows = open_(on_event=on_event)
    report_data(rows, on_event)
    backbone = model.backbone
    request = model.request or ModelRequest(model=backbone.model_id, tap=backbone.tap)
    data = rows.source.uri or f"python:{rows.source.name}"
    work = RequestedExtraction(backbone, request, data, cache, config, rows.source.pixel_rule, on_event=on_event)
    (work,) = settle_and_check_disk([work], [rows])
    if work.backbone is not backbone:
        model = replace(model, backbone=work.backbone, request=work.request)
    (tokens,) = work.extract([rows])
    return Tokens(model, replace(tokens, stores=None), work.description())
