"""What is to be done, as data: frozen, serialisable descriptions that the command line, recipes and Python make alike.

A job checks the types and ranges of its fields, and has no other behaviour: `extract.py`, `probe.py` and `units.py` do it. Its
fields are the options of the command of the same name.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from ..data.pixels import MOST_PIXELS, PixelRule
from ..data.views import ViewRule
from ..errors import RequestError, advice, shown
from ..models.families import RANDOM
from ..outputs import check_local

VERSION = 1  # raised when the meaning of a field changes
NEVER_IN_FILES = ("allow_code",)

LARGEST = 10**18 - 1  # what an int64 holds, in digits

Natural = Annotated[int, 0, LARGEST]
"""A whole number from 0."""

Positive = Annotated[int, 1, LARGEST]
"""A whole number from 1."""

Names = Annotated[tuple[str, ...], 1]
"""At least one text."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The fields that all jobs have.

    Attributes:
        cache_root: folder of all stores.
        weights_seed: seed for random initial weights.
        weights_key: which set of weights of each checkpoint file; None chooses.
        tap: norm2 or block; None is norm2.
        tap_module: pattern of module names in place of `tap`.
        image_size: side of the square input in pixels; None for the model's own.
        precision: auto, float32, float16 or bfloat16.
        storage_dtype: dtype of tokens on disk, or one for each kind.
        parity_threshold: minimum cosine similarity of a token to a float32 run, 0 to 1; None checks nothing.
        background: white, black, #rrggbb or drop; the ground of transparent images.
        exif_orientation: whether images are turned as their EXIF data say.
        max_pixels: width x height above which an image is a bad one.
        views, view_scale, view_flip: augmented views of each training image, and how they are drawn.
        device: auto, cpu, cuda, ...
        batch_size: images in a forward pass; None chooses it.
        compile_model: whether to use torch.compile; None does on a GPU.
        workers: decoding processes; None chooses it.
        on_bad_image: stop or skip.
        trust_files: take content hashes from stores of the same data set and split with images of the same names and sizes.
        allow_code: ids of models that may run code of their own. Not part of a job as data: `to_dict` leaves it out, and
            `from_dict` refuses it, because no file may give that permission.

    Raises:
        RequestError: a value of another type or out of its range, or a `weights_key` without a checkpoint file.
    """

    cache_root: Path = Path("caches")
    weights_seed: Natural = 0
    weights_key: str | None = None
    tap: Literal["norm2", "block"] | None = None
    tap_module: str | None = None
    image_size: Positive | None = None
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    storage_dtype: str = "float16"
    parity_threshold: Annotated[float, 0, 1] | None = None
    background: str = "white"
    exif_orientation: bool = False
    max_pixels: Positive = MOST_PIXELS
    views: Natural = 0
    view_scale: Annotated[float, 0, 1] = 0.08
    view_flip: bool = True
    device: str = "auto"
    batch_size: Positive | None = None
    compile_model: bool | None = None
    workers: Natural | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    trust_files: bool = False
    allow_code: tuple[str, ...] = ()

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = job_value(type(self), one.name, getattr(self, one.name))
            object.__setattr__(self, one.name, value)
        self.pixels  # noqa: B018  # refuses an unknown background
        if self.weights_key is not None and set(self._all_weights()) <= {None, RANDOM}:
            raise RequestError("models.weights_key_without_file", key=self.weights_key, model=f"{self.kind} job")

    def _all_weights(self) -> Iterable[str | None]:
        """The weights of each model."""
        return ()

    @property
    def pixels(self) -> PixelRule:
        """How images become pixels."""
        return PixelRule(background=self.background, exif_orientation=self.exif_orientation, max_pixels=self.max_pixels)

    @property
    def rule(self) -> ViewRule | None:
        """How the augmented views of training images are drawn; None without any."""
        if not self.views:
            return None
        return ViewRule(num_views=self.views, min_scale=self.view_scale, flip=self.view_flip)

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON can hold it."""
        values = {one.name: _plain(getattr(self, one.name)) for one in fields(self) if one.name not in NEVER_IN_FILES}
        return {"job": self.kind, "version": VERSION} | values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The job that `to_dict` wrote; fields that are left out have their defaults.

        Raises:
            RequestError: an unknown key (names the nearest), one that is missing, a value of another type, a permission to run
                code, or a job of a newer version.
        """
        where = f"{cls.kind} job"
        if values.get("version", VERSION) != VERSION or values.get("job", cls.kind) != cls.kind:
            got = f"{values.get('job', cls.kind)} job of version {values.get('version', VERSION)}"
            raise RequestError("jobs.other_job", where=where, kind=cls.kind, version=VERSION, got=got)
        given = {name: value for name, value in values.items() if name not in HEADER}
        if forbidden := [name for name in given if name in NEVER_IN_FILES]:
            raise RequestError("jobs.permission_in_file", where=where, key=forbidden[0])
        names = [one.name for one in fields(cls)]
        if unknown := [name for name in given if name not in names]:
            raise RequestError("jobs.unknown_job_key", where=where, key=unknown[0], advice=advice(unknown[0], names))
        required = [one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING]
        if missing := [name for name in required if name not in given]:
            raise RequestError(
                "jobs.missing_job_keys", where=where, required=", ".join(required), missing=", ".join(missing)
            )
        return cls(**given)


HEADER = ("job", "version")
"""Keys of `to_dict` that are no fields."""


@dataclass(frozen=True, kw_only=True)
class ExtractJob(Job):
    """`layerbank extract`: the tokens of some splits by some models.

    Attributes:
        data: URI of the data.
        models: pairs of a model id and its weights (None for the pretrained ones, "random", or a file).
        splits: names of the splits.
        views_split: the split whose images get augmented views.
        levels: every, a layer set, or names of levels.
        kinds: kinds of tokens, with commas between.
        overwrite: delete the stores of these images alone and compute their rows again; rows that lie in a store with others, or in
            one of format 1, are kept.

    >>> import layerbank as lb
    >>> job = lb.ExtractJob(data="folder:photos", models=[("timm/vit_tiny_patch16_224", None)], kinds="cls")
    >>> lb.ExtractJob.from_dict(job.to_dict()) == job
    True
    """

    data: str
    models: Annotated[tuple[tuple[str, str | None], ...], 1]
    splits: Names = ("train", "test")
    views_split: str = "train"
    levels: str = "every"
    kinds: str = "cls,ap"
    overwrite: bool = False

    kind: ClassVar[str] = "extract"

    def _all_weights(self) -> Iterable[str | None]:
        return (weights for _, weights in self.models)


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """The fields that `ProbeJob` and `StudyJob` have in common.

    Attributes:
        probes: names of probes, as `layerbank probe --probe` takes them.
        protocol: paper, quick, or a TOML file, from the folder where the job runs.
        sweep: full or halving; None is the protocol's.
        compute: precision of matrix products; None is the protocol's.
        task: type of the task, a name in `layerbank.probes.TASKS`; auto is what the labels show.
        metric: the metric that settings are chosen by; None is the task's first.
        class_weights: of the loss: balanced, none, or NAME=WEIGHT,...; None is balanced.
        num_heads: train each probe that has heads once with each of these; empty: what its name says.
        seeds: the whole protocol is run once for each.
        reference_quirks: repeat what the paper's code does and the paper does not say.
        train_split, test_split: names of the splits.
        labels: a table that is joined to the images, by sample id or path.
        targets: columns of that table, or of the data's own, to predict one after the other; empty: the labels of the data.
        allow_missing: leave out images without a row or a value, and rows without an image.
        group: column of groups, such as patients, that are never on two sides.
        split_column: column that names the split of each image.
        val_split: the split that settings are chosen by; None holds a fraction of the training images out.
        train_rows, test_rows: files of sample ids, one a line: of each split these images alone.
        shots: numbers of images of each class to train on, each a case of its own.
        train_fractions: parts of the training images to train on, above 0 to 1.
        draws: how many times shots and fractions are drawn.
        folds: test each image of the training split once, by probes trained on the other folds.
        may_extract: whether missing tokens may be computed.
        may_verify: whether to check the stores against their checksums first.
        memory: host memory that this may use, such as 4GB; None is 80 % of what is free.
        train_views: how many of the views to train on; None is all.
        retrain: train again what is there.
        runs_root: folder of all results.
    """

    probes: Names
    protocol: str = "paper"
    sweep: Literal["full", "halving"] | None = None
    compute: Literal["auto", "float32", "tf32", "bfloat16"] | None = None
    task: str = "auto"
    metric: str | None = None
    class_weights: str | None = None
    num_heads: tuple[Positive, ...] = ()
    seeds: Annotated[tuple[Natural, ...], 1] = (0,)
    reference_quirks: bool = False
    train_split: str = "train"
    test_split: str = "test"
    labels: Path | None = None
    targets: tuple[str, ...] = ()
    allow_missing: bool = False
    group: str | None = None
    split_column: str | None = None
    val_split: str | None = None
    train_rows: Path | None = None
    test_rows: Path | None = None
    shots: tuple[Positive, ...] = ()
    train_fractions: tuple[Annotated[float, 0, 1], ...] = ()
    draws: Positive = 1
    folds: Annotated[int, 2, LARGEST] | None = None
    may_extract: bool = True
    may_verify: bool = True
    memory: str | None = None
    train_views: Natural | None = None
    retrain: bool = False
    runs_root: Path = Path("runs")


@dataclass(frozen=True, kw_only=True)
class ProbeJob(TrainingJob):
    """`layerbank probe`: probes on the tokens of one model and data set; missing tokens are extracted first.

    Attributes:
        data: URI of the data.
        model, weights: the model id, and its weights (None for the pretrained ones, "random", or a file).

    >>> import layerbank as lb
    >>> lb.ProbeJob(data="folder:photos", model="timm/vit_tiny_patch16_224", probes=["alf"], seeds=range(3)).seeds
    (0, 1, 2)
    """

    data: str
    model: str
    weights: str | None = None

    kind: ClassVar[str] = "probe"

    def _all_weights(self) -> Iterable[str | None]:
        return (self.weights,)


@dataclass(frozen=True, kw_only=True)
class StudyJob(TrainingJob):
    """`layerbank study`: every model on every data set, every probe, every seed. Its fields are the keys of a recipe.

    Attributes:
        models: ids of backbones.
        data: URIs (`demo:digits`, `folder:DIR`), or names of the catalogue (`cifar10`), looked for under the data root.
        weights: model -> `random` or a file; a model that is not here has its pretrained ones.
        data_root: folder of the catalogue's data sets.
        fetch: whether missing data sets may be fetched.

    >>> import layerbank as lb
    >>> job = lb.StudyJob(models=["timm/vit_tiny_patch16_224"], data=["demo:digits"], probes=["linear-cls", "alf"])
    >>> job.to_dict()["probes"], job.seeds
    (['linear-cls', 'alf'], (0,))
    """

    models: Names
    data: Names
    weights: Mapping[str, str] = field(default_factory=dict)
    data_root: Path = Path("data")
    fetch: bool = True

    kind: ClassVar[str] = "study"

    def _all_weights(self) -> Iterable[str | None]:
        return self.weights.values()


def job_value(job: type[Job], name: str, value: Any, where: str = "") -> Any:
    """The value of a field as the job holds it: lists become tuples, and texts paths where the field is one.

    Args:
        job: the kind of job.
        name: the field.
        value: what was given for it.
        where: who was given it; the job itself by default.

    Raises:
        RequestError: a value of another type, or out of its range.
    """
    hint = _hints_of(job)[name]  # type: ignore[arg-type]  # the class is hashable, its values need not be
    where = where or f"{job.kind} job"
    found = typed_value(value, hint, where, name)
    if isinstance(found, Path):
        check_local(found, f"{where}, {name}")
    return found


def typed_value(value: Any, hint: Any, where: str, name: str) -> Any:
    """A value as a field of this type holds it; for the arguments see `job_value`."""
    try:
        return _converted(value, hint)
    except _Unfit:
        raise RequestError(
            "jobs.wrong_job_value", where=where, key=name, type=_text_of(hint), value=shown(value)
        ) from None


class _Unfit(Exception):
    """A value is none of its type."""


@cache
def _hints_of(job: Any) -> dict[str, Any]:
    return get_type_hints(job, include_extras=True)


def _converted(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # of a type and None
        return None if value is None else _converted(value, arguments[0])
    if origin is Annotated:
        found = _converted(value, arguments[0])
        size = len(found) if isinstance(found, tuple) else found
        _require(arguments[1] <= size <= (*arguments, math.inf)[2])
        return found
    if origin is Literal:
        _require(isinstance(value, str) and value in arguments)
        return value
    if origin is tuple:
        _require(isinstance(value, list | tuple | range))
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        _require(len(value) == len(each))
        return tuple(map(_converted, value, each))
    if origin is Mapping:
        _require(isinstance(value, Mapping))
        return {_converted(key, arguments[0]): _converted(one, arguments[1]) for key, one in value.items()}
    _require(isinstance(value, _ACCEPTED[hint]) and isinstance(value, bool) == (hint is bool))
    if hint in (str, Path):
        _require("\0" not in str(value) and str(value).strip() != "")
    try:
        return hint(value)
    except OverflowError:  # a whole number that no float can hold
        raise _Unfit from None


def _require(fits: bool) -> None:
    if not fits:
        raise _Unfit


_ACCEPTED: Mapping[Any, Any] = {str: str, int: Integral, float: Real, bool: bool, Path: str | Path}
_TEXTS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _text_of(hint: Any) -> str:
    """A type as a message names it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return f"{_text_of(arguments[0])}, or None"
    if origin is Annotated:
        if get_origin(arguments[0]) is tuple:
            return f"{_text_of(arguments[0])}, not empty"
        most = [f" to {most}" for most in arguments[2:] if most != LARGEST]
        return f"{_text_of(arguments[0])} from {arguments[1]}{''.join(most)}"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a pair of {' and '.join(map(_text_of, arguments))}"
    if origin is tuple:
        return f"a list, each {_text_of(arguments[0])}"
    return "a table of texts" if origin is Mapping else _TEXTS[hint]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
