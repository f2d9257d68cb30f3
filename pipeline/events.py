"""What the stages report while they work. Stages never print: the console shows these, and a program can read them.

Every event is a small frozen record; times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True, kw_only=True)
class CopyStarted(Event):
    """Data behind a URL are copied to this machine."""

    url: str
    folder: Path  # of the copy
    num_files: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class CopyProgress(Event):
    """Some bytes are copied."""

    url: str
    num_done: int  # files
    num_files: int
    bytes_done: int
    size_bytes: int
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class CopyFinished(Event):
    """The copy is complete."""

    url: str
    folder: Path
    num_files: int
    size_bytes: int
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class HashingStarted(Event):
    """Images of a split are read and hashed, because the content index does not know them."""

    dataset: str
    split: str
    num_images: int  # to hash
    num_rows: int  # of the split
    size_bytes: int  # to read


@dataclass(frozen=True, kw_only=True)
class HashingProgress(Event):
    """Some images are hashed."""

    dataset: str
    split: str
    num_done: int
    num_images: int
    bytes_done: int
    size_bytes: int
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class HashingFinished(Event):
    """All images of a split have a hash."""

    dataset: str
    split: str
    num_images: int  # hashed just now
    size_bytes: int
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class UnevenClasses(Event):
    """Classes of a training and a test split that deserve a look; each tuple may be empty, not all of them."""

    train: str
    test: str
    untested: tuple[str, ...]  # with training images, without test images
    untrained: tuple[str, ...]  # the other way round: only where nothing is trained
    single: tuple[str, ...]  # with one training image: none is left for validation


@dataclass(frozen=True, kw_only=True)
class LookAlikeClasses(Event):
    """Classes of a split whose names differ in case, spaces, Unicode form or leading zeros alone."""

    dataset: str
    split: str
    names: tuple[str, ...]  # those that look alike side by side


@dataclass(frozen=True, kw_only=True)
class ImagesTrusted(Event):
    """Images were not read: their ids and sizes are those of images in a store, and that was to be enough."""

    dataset: str
    split: str
    num_images: int


@dataclass(frozen=True, kw_only=True)
class IndexIgnored(Event):
    """A content index cannot be used; the images are hashed again."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class IndexNotKept(Event):
    """No content index can be written: the images will be hashed again by the next command."""

    dataset: str
    split: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class WeightsChosen(Event):
    """A checkpoint file has several sets of weights, and this one was taken."""

    path: str
    key: str
    others: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExtractionStarted(Event):
    """Stage one begins, or goes on with, a store."""

    store: Path
    backbone: str
    dataset: str
    split: str
    num_rows: int
    num_missing: int  # rows that the store lacks, with those that other workers compute
    num_pending: int  # rows still to compute: fewer than num_rows after a crash or when kinds are added
    num_arrays: int  # (level, kind) pairs that are missing somewhere
    device: str
    precision: str
    batch_size: int
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class PrecisionAdvice(Event):
    """Another precision would be faster on this machine; it was not chosen, because it names another store."""

    precision: str
    speedup: float  # of a matrix product, measured just now


@dataclass(frozen=True, kw_only=True)
class CompileFailed(Event):
    """The compiler could not make a graph of the model; it runs without."""

    backbone: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class BatchHalved(Event):
    """Memory ran out: from now on so many images go through the model at a time; the store's batches stay as they are."""

    backbone: str
    num_images: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExtractionProgress(Event):
    """One batch is on its way to the disk."""

    num_done: int
    num_pending: int
    elapsed_s: float
    decode_s: float  # waiting for decoded images
    compute_s: float  # in the model, the cast and the copy to the host
    write_s: float  # waiting for the writer
    num_workers: int = 0  # that decode; of each process where there are several


@dataclass(frozen=True, kw_only=True)
class ImageSkipped(Event):
    """An image could not be read and `--on-bad-image skip` was given; its id is recorded in the store."""

    sample_id: str
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FilesLeftOut(Event):
    """Files, and members of archives, beside the images of a split, by their names."""

    dataset: str
    split: str
    counts: Mapping[str, int]  # extension -> files; or what else was left out -> how often


@dataclass(frozen=True, kw_only=True)
class TwoLabels(Event):
    """Images that are byte for byte an image of the same split with another label."""

    dataset: str
    split: str
    num_images: int
    first: str  # id


@dataclass(frozen=True, kw_only=True)
class SharedImages(Event):
    """Test images that are training images too."""

    train: str
    test: str
    num_shared: int
    num_test: int
    num_relabelled: int  # of the shared ones, with another label


@dataclass(frozen=True, kw_only=True)
class FlatImages(Event):
    """Images with hardly any contrast once they are 8-bit RGB: a single colour, or fewer than 16 levels."""

    dataset: str
    split: str
    num_images: int
    first: str  # id


@dataclass(frozen=True, kw_only=True)
class TokensOutOfRange(Event):
    """Values that the storage dtype could not hold, or that were not finite, in one array so far."""

    array: str
    num_saturated: int
    num_nonfinite: int
    storage_dtype: str


@dataclass(frozen=True, kw_only=True)
class ParityMeasured(Event):
    """How far the tokens of a split's first images are from a float32 run; details are in the store."""

    backbone: str
    split: str
    num_images: int
    compute_dtype: str  # float32: only the rounding of storage was measured
    storage_dtype: str
    cosine_min: float
    cosine_level: str  # where the least cosine is
    max_relative_error: float
    error_level: str
    num_saturated: int
    num_nonfinite: int


@dataclass(frozen=True, kw_only=True)
class PrecisionFellBack(Event):
    """A float16 model overflowed on a split's first images, so it runs in bfloat16; no store was made yet."""

    backbone: str
    split: str
    level: str  # the first one with values that are finite in float32 only
    num_nonfinite: int


@dataclass(frozen=True, kw_only=True)
class ExtractionFinished(Event):
    """The store is complete."""

    store: Path
    num_rows: int
    num_computed: int
    size_bytes: int
    elapsed_s: float
    decode_s: float
    compute_s: float
    write_s: float
    num_workers: int = 0


@dataclass(frozen=True, kw_only=True)
class StoreRepaired(Event):
    """Arrays of a store were damaged; their damaged row blocks are computed again, whether they were asked for or not."""

    store: Path
    arrays: tuple[str, ...]  # their paths in the store
    num_blocks: int


@dataclass(frozen=True, kw_only=True)
class ShareFinished(Event):
    """One of several workers has computed what it was to; the store still lacks rows of others."""

    store: Path
    worker: str  # index/count
    num_missing: int


@dataclass(frozen=True, kw_only=True)
class WorkerLost(Event):
    """A worker process was killed; those that are left take over its rows."""

    worker: str  # index/count
    reason: str
    num_left: int
    is_replaced: bool = False


@dataclass(frozen=True, kw_only=True)
class ClusterJoined(Event):
    """The workers will run on a Ray cluster."""

    num_nodes: int
    num_workers: int  # at a time
    num_gpus: int  # of each worker
    num_cpus: int  # of each worker


@dataclass(frozen=True, kw_only=True)
class ClusterBusy(Event):
    """The cluster has not started any worker yet: all of its resources are in use."""

    waited_s: float
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class RowsFound(Event):
    """The rows of a split were looked up in the stores of a model.

    Attributes:
        num_rows: rows of the split: images, or images times views.
        num_views: augmented views of an image.
        num_found, num_missing: rows that are in the cache, and rows to compute; equal images count each.
        num_skipped: rows that are in the cache without usable tokens, since the image could not be decoded.
        num_unreadable: rows of images that could not be read at all.
        stores: the stores that are to be written.
    """

    backbone: str
    dataset: str
    split: str
    num_rows: int
    num_views: int
    num_found: int
    num_missing: int
    num_unreadable: int
    num_skipped: int = 0
    stores: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class StoresIgnored(Event):
    """Some stores of a model cannot be read, so what they hold counts as missing."""

    backbone: str
    reasons: Mapping[Path, str]


@dataclass(frozen=True, kw_only=True)
class CopiesTogether(Event):
    """Training images that are byte for byte another one lie on the same side of the validation split as that one."""

    dataset: str
    split: str
    num_images: int  # that have a copy
    num_moved: int  # of these, to the other side than a split that ignores copies would choose


@dataclass(frozen=True, kw_only=True)
class ProbeStarted(Event):
    """The sweep of one probe begins."""

    probe: str
    num_settings: int  # that are trained: several that train to the same bits are one
    num_rows: int
    token_shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Event):
    """Probes begin to train together, or one to be solved."""

    probes: tuple[str, ...]
    num_settings: int  # of all of them
    num_passes: int  # over the batches of the training of the grids; more than one where memory is short


@dataclass(frozen=True, kw_only=True)
class MemoryPlanned(Event):
    """How the sweep of one probe will use the memory, that of the probes it trains together with included."""

    probe: str
    budget_bytes: int  # of the memory probes are trained in: the host's, or a GPU's own
    planned_bytes: int  # at most: training, tokens and buffers as far as they lie in that memory
    tokens: str  # "resident" or "streamed"
    on_gpu: bool  # that memory is a GPU's, and resident tokens lie there
    tokens_bytes: int  # of all of them, as they are stored
    num_banks: int  # the grid in so many parts, one after the other; 0 for a solved probe
    probes_at_once: int
    group_size: int  # attentive probes that go through together; 0 for linear ones
    chunk_size: int  # images of a full group that go through together; 0 for linear probes


@dataclass(frozen=True, kw_only=True)
class UploadFailed(Event):
    """Another program took the memory that tokens were to lie in; they are streamed."""

    probes: tuple[str, ...]
    tokens_bytes: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProbeProgress(Event):
    """Steps of a phase (`select`, `validate`, `refit` or `test`) of probes that train together."""

    probes: tuple[str, ...]
    phase: str
    step: int
    num_steps: int
    num_probes: int  # settings of all of them that are trained or evaluated at once
    probe_steps_per_s: float | None = None
    best: float | None = None  # highest validation score so far, of any setting of any of them
    metric: str = "balanced_accuracy"  # what `best` is


@dataclass(frozen=True, kw_only=True)
class ProbeAwaited(Event):
    """Another process trains a probe; its row is taken over when it is there."""

    probe: str
    owner: str  # the process


@dataclass(frozen=True, kw_only=True)
class ProbeFinished(Event):
    """One row of results."""

    probe: str
    row: dict[str, object]
    reused: bool


@dataclass(frozen=True, kw_only=True)
class ResultSkipped(Event):
    """A line of results.jsonl, or the files of a row, are not as they were written: the row is not reused."""

    where: str
    expected: str
    got: str
    todo: str


@dataclass(frozen=True, kw_only=True)
class StudyShortOfDiskSpace(Event):
    """The disk does not take all the tokens that a study still lacks; it begins all the same, with what fits."""

    cache_root: Path
    num_units: int  # that lack tokens
    needed_bytes: int  # at least
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class StudyUnit(Event):
    """A study begins with one model on one data set."""

    model: str
    dataset: str


@dataclass(frozen=True, kw_only=True)
class StudyUnitFinished(Event):
    """A study has done what could be done of one model on one data set."""

    model: str
    dataset: str
    num_rows: int  # those of earlier runs too
    num_failures: int
    num_done: int  # units so far
    num_units: int  # of the study


@dataclass(frozen=True, kw_only=True)
class StudyUnitAgain(Event):
    """The worker of a unit was lost; another goes on with it."""

    model: str
    dataset: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class StudyFailed(Event):
    """A part of a study could not be done; the rest goes on. failures.jsonl has a line for each."""

    model: str
    dataset: str
    probe: str | None  # None: nothing could be done for this model on this data set
    seed: int | None = None  # the seed that failed, if the recipe has several
    where: str
    expected: str
    got: str
    todo: str


@dataclass(frozen=True, kw_only=True)
class ReportStep(Event):
    """A report begins a step that reads tokens and takes long."""

    what: str
    done: int  # of its kind
    total: int


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Do nothing: the default callback."""
