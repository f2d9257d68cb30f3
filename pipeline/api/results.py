"""Probing, its results as a table, and classifiers made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.classes import labels_by_name, uneven_classes
from ..data.image_source import ImageSource
from ..errors import RequestError
from ..events import OnEvent
from ..jobs.job import ProbeJob, job_value
from ..jobs.probe import prepare_trainings
from ..models.request import choose_device
from ..probing.attention import read_attention
from ..probing.predict import SavedProbe
from ..probing.probe import run_folder
from ..probing.probe_sizes import check_heads, leave_out_unfit
from ..probing.probe_spec import ProbeSpec, parse_probes
from ..probing.protocols import open_protocol
from ..probing.rows.results import COLUMNS, Row, metric_of, results_table, summarize
from ..probing.rows.row_files import row_folder
from ..probing.task_options import check_task_options
from .arguments import check_kind, folder_from, output_folder_from
from .data import images_from
from .progress import Progress, listening
from .tokens import Tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..probing.tokens.split_tokens import SplitRequest


class Classifier:
    """A trained probe with its backbone: images in, classes, labels or numbers out. Safe to use from several threads.

    Attributes:
        task: type of the task that the probe was trained for.
        class_names: C names; none for numbers.
        module: the `torch.nn.Module` that it runs: uint8 images [B, 3, H, W] at the model's size -> outputs [B, C] float32.

    >>> import tempfile, layerbank as lb
    >>> model = lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu")
    >>> folder = tempfile.mkdtemp()
    >>> images = [lb.open_images("demo:digits?train=60&test=20", split) for split in ("train", "test")]
    >>> train, test = (lb.extract(model, one, levels="last", cache=folder, progress=False) for one in images)
    >>> results = lb.probe(train, test, probes=["ridge-cls"], runs=folder + "/runs", progress=False)
    >>> classifier = lb.Classifier(results.best.folder)
    >>> probabilities = classifier.predict_proba(lb.open_images("demo:digits?train=60&test=20", "test"))
    >>> probabilities.shape, len(classifier.class_names)
    ((20, 10), 10)
    """

    def __init__(
        self, folder: str | Path, *, weights: str | None = None, device: str = "cpu", allow_code: Sequence[str] = ()
    ) -> None:
        """Open a folder that `probe` saved: runs/DATASET/MODEL/PROBE-KEY.

        Args:
            folder: the folder.
            weights: where the weights of the backbone are now; None if they have not moved.
            device: where the backbone runs.
            allow_code: ids of models that may run code of their own.

        Raises:
            ProbeError: there is no readable probe.
            RequestError: the backbone is not the one that the probe was trained on, or its code is not allowed to run.
        """
        folder = folder_from(folder, "Classifier, folder")
        self._saved = SavedProbe(folder, weights=weights, device=choose_device(str(device)), allow_code=allow_code)
        self.task: str = self._saved.task.type
        self.class_names = list(self._saved.class_names)
        self.module = self._saved.module

    def preprocess(self, image: Any) -> Tensor:
        """An image as `module` takes it: resized and cropped, uint8 [3, H, W].

        Args:
            image: one of what `images_from` takes a list of: a path, a PIL image, an array [H, W, 3] or encoded bytes.

        Raises:
            RequestError: something else.
            BadImage: the image cannot be read.
        """
        source = images_from([image], split="predict")
        source.pixel_rule = self._saved.pixels
        return self._saved.backbone.geometry(source.load(0)[0])

    def predict(self, images: Any, *, batch_size: int | None = None) -> Any:
        """The answer for each image.

        Returns:
            a list of N class names; of several labels an image, a list of N lists of names; of numbers float64 [N] or [N, K].

        Args:
            images: what `images_from` takes (paths, PIL images, arrays, encoded bytes), or what it or `open_images` returns.
            batch_size: images in a forward pass; None chooses it.

        Raises:
            RequestError: no sequence of images, or a wrong batch size.
            BadImage: an image cannot be read.
        """
        found = self._saved.task.predict(self._outputs(images, batch_size)).numpy()
        if not self.class_names:
            return found
        if found.ndim == 1:
            return [self.class_names[number] for number in found.tolist()]
        return [[name for name, one in zip(self.class_names, row, strict=True) if one] for row in found.tolist()]

    def predict_proba(self, images: Any, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """The probability of each class or label, [N, C] float32.

        Raises:
            RequestError: the probe answers numbers; or as `predict`.
            BadImage: as `predict`.
        """
        found = self._saved.task.probabilities(self._outputs(images, batch_size))
        if found is None:
            raise RequestError("api.no_probabilities", task=self.task)
        probabilities: NDArray[np.float32] = found.numpy()
        return probabilities

    def _outputs(self, images: Any, batch_size: int | None) -> Tensor:
        batch_size = job_value(ProbeJob, "batch_size", batch_size, "predict")
        source = images if isinstance(images, ImageSource) else images_from(images, split="predict")
        logits = [one.logits for one in self._saved.scores(source, batch_size=batch_size, num_workers=0)]
        return torch.from_numpy(np.stack(logits))


class Result:
    """One row of results: a probe that was trained and tested.

    Attributes:
        row: all its numbers, as results.jsonl has them.
        folder: its files.

    >>> import tempfile, layerbank as lb
    >>> model = lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu")
    >>> folder = tempfile.mkdtemp()
    >>> images = [lb.open_images("demo:digits?train=60&test=20", split) for split in ("train", "test")]
    >>> train, test = (lb.extract(model, one, levels="last", cache=folder, progress=False) for one in images)
    >>> results = lb.probe(train, test, probes=["ridge-cls"], runs=folder + "/runs", progress=False)
    >>> result = results[0]
    >>> result.probe, 0 <= result.balanced_accuracy <= 1
    ('ridge-cls', True)
    """

    def __init__(self, row: Row, folder: Path) -> None:
        self.row, self.folder = row, folder

    @property
    def probe(self) -> str:
        """The name of the probe."""
        return str(self.row["probe"])

    @property
    def balanced_accuracy(self) -> float:
        """On the test images, in [0, 1]; NaN where every setting diverged, and for tasks without it."""
        return float((self.row["test"] or {}).get("balanced_accuracy", "nan"))

    @property
    def score(self) -> float:
        """The metric that settings were chosen by, `metric`, on the test images; NaN where every setting diverged."""
        return float("nan") if self.row["test"] is None else float(self.row["test"][self.metric])

    @property
    def metric(self) -> str:
        """Name of the metric that settings were chosen by."""
        return metric_of(self.row).key

    def classifier(self, device: str = "cpu", *, allow_code: Sequence[str] = ()) -> Classifier:
        """The trained probe with its backbone; for `allow_code` see `open_model`."""
        return Classifier(self.folder, device=device, allow_code=allow_code)

    def plot_attention(self) -> Figure:
        """Attention over levels and kinds, averaged over heads and test images: a matplotlib figure.

        Raises:
            RequestError: the probe does not attend.
        """
        from matplotlib.figure import Figure

        kept = read_attention(self.folder)
        mass = np.mean([head["mass"] for head in kept["heads"]], axis=0)  # [L, K]
        figure = Figure(figsize=(1.5 + 0.4 * len(mass), 1.2 + 0.4 * mass.shape[1]), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(mass.T, cmap="cividis", aspect="auto")
        levels = [level.removeprefix("block.") for level in kept["levels"]]
        axes.set(xlabel="level", title=f"{self.probe}: attention on the test images")
        axes.set_xticks(range(len(levels)), levels)
        axes.set_yticks(range(len(kept["kinds"])), kept["kinds"])
        figure.colorbar(image, ax=axes, label="share", format=lambda share, _: f"{share:.0%}")
        return figure

    def __repr__(self) -> str:
        return f"Result({self.probe!r}, {self.metric}={self.score:.3f})"


class Results(Sequence[Result]):
    """The results of one call of `probe`, in the order asked for, one for each probe and seed.

    Attributes:
        folder: where results.jsonl and the folders of the probes are.

    >>> import tempfile, layerbank as lb
    >>> model = lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu")
    >>> folder = tempfile.mkdtemp()
    >>> images = [lb.open_images("demo:digits?train=60&test=20", split) for split in ("train", "test")]
    >>> train, test = (lb.extract(model, one, levels="last", cache=folder, progress=False) for one in images)
    >>> results = lb.probe(train, test, probes=["ridge-cls"], runs=folder + "/runs", progress=False)
    >>> len(results), sorted(results.records()[0])[:3]
    (1, ['key', 'num_parameters', 'probe'])
    """

    def __init__(self, rows: Sequence[Row], folder: Path) -> None:
        self.folder = folder
        self._results = [Result(row, row_folder(folder, row)) for row in rows]

    @property
    def best(self) -> Result:
        """The result with the highest validation accuracy, of the first of equals; the test decides nothing.

        Raises:
            RequestError: every probe diverged.
        """
        finished = [one for one in self._results if one.row["test"] is not None]
        if not finished:
            raise RequestError("api.no_finished_probe", folder=self.folder)
        return max(finished, key=lambda one: float(one.row["validation"]))

    def to_frame(self) -> Any:
        """A pandas data frame, a line for each probe and seed: probe, seed, validation, test, parameters, seconds, key.

        Raises:
            RequestError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]
        except ImportError:
            raise RequestError("api.no_pandas") from None
        return pandas.DataFrame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """The lines of `to_frame` as dicts; validation and test are those of `Result.metric`, accuracies in [0, 1]."""
        return [
            {
                "probe": one.probe,
                "seed": one.row["protocol"]["seed"],
                "validation": one.row["validation"],
                "test": one.score,
                "num_parameters": one.row["num_parameters"],
                "seconds": sum(one.row["seconds"].values()),
                "key": one.row["key"],
            }
            for one in self._results
        ]

    def __getitem__(self, index: Any) -> Any:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    def __repr__(self) -> str:
        table = [list(COLUMNS), *results_table([one.row for one in self._results])]
        widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        return "\n".join(lines)

    def summary(self) -> list[dict[str, Any]]:
        """One dict for each probe: mean and standard deviation over seeds."""
        return [one.to_dict() for one in summarize([one.row for one in self._results])]


def probe(
    train: Tokens,
    test: Tokens,
    *,
    probes: Sequence[str] = ("linear-cls", "linear-all", "alf"),
    protocol: str = "quick",
    task: str = "auto",
    metric: str | None = None,
    class_weights: str | None = None,
    seeds: Sequence[int] = (0,),
    runs: str | Path = "runs",
    memory: str | None = None,
    retrain: bool = False,
    verify: bool = True,
    progress: Progress = True,
) -> Results:
    """Train probes on the tokens of one split, choose their settings on held-out images, and test them once on another.

    Args:
        train, test: of `extract`, by the same model, with the levels and kinds that the probes read.
        probes: names of probes; see `layerbank probes`.
        protocol: "quick", "paper", or a TOML file.
        task: "multiclass", "multilabel", "ordinal" or "regression"; "auto" is what the labels show.
        metric: the metric that settings are chosen by, such as "auroc"; None is the task's first.
        class_weights: "balanced", "none", or the weight of a training image by its class, "cat=1,dog=2.5"; None is balanced.
        seeds: the whole protocol is run once for each.
        runs: folder of all results. What it has already is not trained again.
        memory: memory that this may use, such as "4GB"; None is 80 % of what is free.
        retrain: train again what is there.
        verify: check the stored tokens against their checksums first.
        progress: True for progress bars, False for none, or a function that is called with every event.

    Raises:
        RequestError: unknown probes, splits of different classes or models, or a wrong value of another argument.
        CacheError: the tokens lack a level or kind of a probe, or are damaged.

    >>> import tempfile, layerbank as lb
    >>> model = lb.open_model("timm/vit_tiny_patch16_224", weights="random", image_size=32, device="cpu")
    >>> folder = tempfile.mkdtemp()
    >>> images = [lb.open_images("demo:digits?train=60&test=20", split) for split in ("train", "test")]
    >>> train, test = (lb.extract(model, one, levels="last", cache=folder, progress=False) for one in images)
    >>> results = lb.probe(train, test, probes=["ridge-cls"], runs=folder + "/runs", progress=False)
    >>> results.best.probe, results.records()[0]["seed"]
    ('ridge-cls', 0)
    """
    given = {"probes": probes, "protocol": str(protocol), "seeds": seeds, "may_verify": verify}
    asked = {"task": task, "metric": metric, "class_weights": class_weights}
    how: dict[str, Any] = {"memory": memory, "retrain": retrain}
    checked, runs = _checked(given | asked | how), output_folder_from(runs, "probe, runs")
    named = _probes_of(train, test, checked["probes"])
    protocols = [open_protocol(checked["protocol"], seed=seed) for seed in checked["seeds"]]
    how |= {"verify": verify, "config": train.description, "device": train.model.backbone.device}
    with listening(progress) as on_event:
        splits = _splits_of(train, test, named, asked, on_event)
        trainings = prepare_trainings(*splits, named, protocols, runs, on_event=on_event, **how)
        return Results([row for training in trainings for row in training()], run_folder(runs, splits[0]))


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `probe` as a job has them."""
    checked = {name: job_value(ProbeJob, name, value, "probe") for name, value in given.items()}
    check_task_options(checked["task"], checked["metric"])
    return checked


def _splits_of(
    train: Tokens,
    test: Tokens,
    named: Sequence[ProbeSpec],
    asked: Mapping[str, Any],
    on_event: OnEvent,
) -> tuple[SplitRequest, SplitRequest]:
    """The requests for both splits, with the arrays of the probes and the classes of the training split."""
    arrays = tuple(dict.fromkeys(array for one in named for array in one.arrays))
    record, other = (one.request.record.with_task(asked["task"]) for one in (train, test))
    if uneven := uneven_classes(record, other):
        on_event(uneven)
    matched = replace(other, labels=labels_by_name(record, other), class_names=record.class_names)
    wanted = {"arrays": arrays, "metric": asked["metric"], "class_weights": asked["class_weights"]}
    return replace(train.request, record=record, **wanted), replace(test.request, record=matched, **wanted)


def _probes_of(train: Tokens, test: Tokens, probes: Sequence[str]) -> list[ProbeSpec]:
    check_kind(train, Tokens, "probe, train", "Tokens of extract")
    check_kind(test, Tokens, "probe, test", "Tokens of extract")
    backbone = train.model.backbone
    named = leave_out_unfit(parse_probes(list(probes), backbone.depth), backbone.row_shape)
    check_heads(named, backbone.row_shape)
    return named
