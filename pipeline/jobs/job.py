"""What is to be done, as data: frozen, serialisable descriptions that the command line, recipes and Python make alike.

A job has no behaviour; `extract.py`, `probe.py` and `units.py` do it. Its fields are the options of the command of the same name.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from ..data.views import ViewRule
from ..errors import RequestError, nearest_name

VERSION = 1  # raised when the meaning of a field changes
NEVER_IN_FILES = ("allow_code",)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The fields that all jobs with a model and data have.

    Attributes:
        data: URI of the data.
        cache_root: folder of all stores.
        weights_seed: seed for random initial weights.
        tap: norm2 or block; None is norm2.
        tap_module: pattern of module names in place of `tap`.
        image_size: side of the square input in pixels; None for the model's own.
        precision: auto, float32, float16 or bfloat16.
        storage_dtype: dtype of tokens on disk, or one for each kind.
        parity_threshold: minimum cosine similarity of a token to a float32 run; None checks nothing.
        views, view_scale, view_flip: augmented views of each training image, and how they are drawn.
        device: auto, cpu, cuda, ...
        batch_size: images in a forward pass; None chooses it.
        compile_model: whether to use torch.compile; None does on a GPU.
        workers: decoding processes; None chooses it.
        on_bad_image: stop or skip.
        trust_files: take content hashes from stores of the same data set and split with images of the same names and sizes.
        allow_code: ids of models that may run code of their own. Not part of a job as data: `to_dict` leaves it out, and
            `from_dict` refuses it, because no file may give that permission.
    """

    data: str
    cache_root: Path = Path("caches")
    weights_seed: int = 0
    tap: str | None = None
    tap_module: str | None = None
    image_size: int | None = None
    precision: str = "auto"
    storage_dtype: str = "float16"
    parity_threshold: float | None = None
    views: int = 0
    view_scale: float = 0.08
    view_flip: bool = True
    device: str = "auto"
    batch_size: int | None = None
    compile_model: bool | None = None
    workers: int | None = None
    on_bad_image: str = "stop"
    trust_files: bool = False
    allow_code: tuple[str, ...] = ()

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.type == "Path":  # as it is written above
                object.__setattr__(self, one.name, Path(getattr(self, one.name)))

    @property
    def rule(self) -> ViewRule | None:
        """How the augmented views of training images are drawn; None without any."""
        if not self.views:
            return None
        return ViewRule(num_views=self.views, min_scale=self.view_scale, flip=self.view_flip)

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON and TOML can hold it."""
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
            raise RequestError("jobs.other_job", where=where, version=VERSION, got=got)
        given = {name: value for name, value in values.items() if name not in ("job", "version")}
        found = {name: job_value(cls, name, value, where) for name, value in given.items()}
        required = [one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING]
        if missing := [name for name in required if name not in found]:
            raise RequestError(
                "jobs.missing_job_keys", where=where, required=", ".join(required), missing=", ".join(missing)
            )
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class ExtractJob(Job):
    """`layerbank extract`: the tokens of some splits by some models.

    Attributes:
        models: pairs of a model id and its weights (None for the pretrained ones, "random", or a file).
        splits: names of the splits.
        views_split: the split whose images get augmented views.
        levels: every, a layer set, or names of levels.
        kinds: kinds of tokens, with commas between.
        overwrite: delete the stores of these images alone and compute their rows again; rows that lie in a store with others, or in
            one of format 1, are kept.
    """

    models: tuple[tuple[str, str | None], ...]
    splits: tuple[str, ...] = ("train", "test")
    views_split: str = "train"
    levels: str = "every"
    kinds: str = "cls,ap"
    overwrite: bool = False

    kind: ClassVar[str] = "extract"


@dataclass(frozen=True, kw_only=True)
class ProbeJob(Job):
    """`layerbank probe`: probes on the tokens of one model and data set; missing tokens are extracted first.

    Attributes:
        model, weights: the model id, and its weights (None for the pretrained ones, "random", or a file).
        probes: names of probes.
        protocol: paper, quick, or a TOML file.
        sweep: full or halving; None is the protocol's.
        compute: precision of matrix products; None is the protocol's.
        num_heads: train each probe that has heads once with each of these.
        seeds: the whole protocol is run once for each.
        reference_quirks: repeat what the paper's code does and the paper does not say.
        train_split, test_split: names of the splits.
        may_extract: whether missing tokens may be computed.
        may_verify: whether to check the stores against their checksums first.
        memory: host memory that this may use, such as 4GB; None is 80 % of what is free.
        train_views: how many of the views to train on; None is all.
        retrain: train again what is there.
        runs_root: folder of all results.
    """

    model: str
    weights: str | None = None
    probes: tuple[str, ...]
    protocol: str = "paper"
    sweep: str | None = None
    compute: str | None = None
    num_heads: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    reference_quirks: bool = False
    train_split: str = "train"
    test_split: str = "test"
    may_extract: bool = True
    may_verify: bool = True
    memory: str | None = None
    train_views: int | None = None
    retrain: bool = False
    runs_root: Path = Path("runs")

    kind: ClassVar[str] = "probe"


def job_value(job: type[Job], name: str, value: Any, where: str) -> Any:
    """The value of a field as the job holds it.

    Raises:
        RequestError: no such field (names the nearest), one that no file may set, or a value of another type.
    """
    if name in NEVER_IN_FILES:
        raise RequestError("jobs.permission_in_file", where=where, key=name)
    every = get_type_hints(job)
    hints = {one.name: every[one.name] for one in fields(job)}
    if name not in hints:
        raise RequestError("jobs.unknown_job_key", where=where, key=name, nearest=nearest_name(name, list(hints)))
    if not _fits(value, hints[name]):
        raise RequestError(
            "jobs.wrong_job_value", where=where, key=name, type=_type_name(hints[name]), value=repr(value)[:80]
        )
    return _converted(value, hints[name])


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(each) == len(value) and all(_fits(one, kind) for one, kind in zip(value, each, strict=True))
    if hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    return isinstance(value, str | Path) if hint is Path else type(value) is hint


def _converted(value: Any, hint: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_converted(one, None) for one in value)
    return Path(value) if hint is Path else value


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", None) if get_origin(hint) is None else str(hint).replace("typing.", "")  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
