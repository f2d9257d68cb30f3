"""Predict for new images with a saved probe: from image files to classes with probabilities, or numbers, without a store.

Tokens are computed exactly as stage one computes them (same weights, transform, tap, rounding to the storage dtype), so a test
image gets the prediction that the probe was tested with. A backbone other than the one the probe was trained on is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from layerbank.cache import ModelSpec, model_of_format1
from layerbank.probes import load_probe, restore_task

from ..data.image_source import NO_LABEL
from ..data.pixels import recorded_rule
from ..data.sources import ImageSource
from ..errors import RequestError
from ..events import ImageSkipped, OnEvent, ignore
from ..extraction.batch_size import choose_batch_size
from ..extraction.decoding import Rows, decode_batches
from ..models.backbone import Backbone
from ..models.request import ModelRequest
from ..models.trust import CodePermission
from ..outputs import csv_line
from .module import ProbeModule
from .probe_spec import ProbeSpec

BACKBONE_FIELDS = ("architecture", "weights", "token_rule", "transform")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        sample_id: as the source names it.
        label: name of the predicted class; a number, as text; of several labels the names of those that are present, with "; "
            between, of several numbers all of them.
        probability: probability of that class, in [0, 1]; None where there is not one class.
        target: the truth in the same form, None where the source does not have it.
        values: label -> its probability, of several labels; output -> its number, of several numbers; else empty.
    """

    sample_id: str
    label: str
    probability: float | None
    target: str | None
    values: Mapping[str, float] = field(default_factory=dict)


class Scores(NamedTuple):
    """The outputs [C] float32 of a row of a source."""

    row: int
    logits: NDArray[np.float32]


class SavedProbe:
    """A trained probe and the backbone it belongs to, ready to predict.

    Args:
        folder: a folder that `layerbank probe` saved: runs/<...>/<name>-<key>.
        weights: where the backbone's weights are now; None if they have not moved.
        device: where the backbone runs.
        allow_code: ids of models that may run code of their own.

    Raises:
        ProbeError: no readable probe in the folder.
        RequestError: the backbone is not the one the probe was trained on, its code is not allowed to run, or its task is not in
            the registry.
    """

    def __init__(
        self, folder: Path, *, weights: str | None = None, device: str = "cpu", allow_code: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        head, config = load_probe(folder)
        permission = CodePermission(allow_code, str(folder / "probe.json"))
        try:
            request = ModelRequest.from_dict(config["model"], permission)
            self.named = ProbeSpec.from_dict(config["probe"])
            self.class_names = [str(name) for name in config["class_names"]]
            self.task = restore_task(config.get("task"), len(self.class_names))
            model = trained_model(config)
            self.pixels = recorded_rule(config)
        except (KeyError, TypeError, AttributeError) as error:
            raise RequestError("probing.damaged_description", folder=folder, reason=repr(error)) from error
        self.backbone = (replace(request, weights=weights) if weights else request).open(device)
        _check_backbone(folder, model, self.backbone)
        self.module = ProbeModule(self.backbone, self.named, head, model.dtype_of)

    def predict(
        self,
        source: ImageSource,
        *,
        batch_size: int | None = None,
        num_workers: int = 1,
        on_bad_image: str = "stop",
        on_event: OnEvent = ignore,
    ) -> Iterator[Prediction]:
        """The predictions for every image of a source, in order; skipped images are left out. For the arguments see `scores`."""
        how: dict[str, Any] = {"num_workers": num_workers, "on_bad_image": on_bad_image, "on_event": on_event}
        for one in self.scores(source, batch_size=batch_size, **how):
            outputs = torch.from_numpy(one.logits)
            found, probabilities = self.task.predict(outputs), self.task.probabilities(outputs)
            is_one_class = probabilities is not None and found.dim() == 0
            yield Prediction(
                sample_id=source.ids[one.row],
                label=text_of_target(found.numpy(), self.class_names, are_labels=probabilities is not None) or "",
                probability=probabilities[found].item() if probabilities is not None and is_one_class else None,
                target=self._target(source, one.row),
                values=self._values(found if probabilities is None else probabilities) if found.dim() else {},
            )

    def _values(self, values: torch.Tensor) -> dict[str, float]:
        names = self.class_names or map(str, range(len(values)))
        return dict(zip(names, values.tolist(), strict=True))

    def _target(self, source: ImageSource, row: int) -> str | None:
        """The truth of an image as text; None where the source does not have it."""
        if bool(self.class_names) != bool(source.class_names):
            return None
        return text_of_target(source.labels[row], source.class_names, are_labels=bool(self.class_names))

    def scores(
        self,
        source: ImageSource,
        *,
        batch_size: int | None = None,
        num_workers: int = 1,
        on_bad_image: str = "stop",
        on_event: OnEvent = ignore,
    ) -> Iterator[Scores]:
        """The logits of every image of a source, in order; skipped images are left out.

        Args:
            source: the images.
            batch_size: images a forward pass; None is what an extraction would choose.
            num_workers: decoding processes; 0 decodes in this one.
            on_bad_image: stop or skip.
            on_event: called with images that are skipped.

        Raises:
            BadImage: an image could not be read and `on_bad_image` is `stop`.
        """
        source = copy(source)  # the caller's keeps its own rule
        source.pixel_rule = self.pixels.within(source.value_range)
        if batch_size is None:
            batch_size = choose_batch_size(self.backbone, self.module.tokens_of)
        ranges = [Rows(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
        decoded_batches = decode_batches(source, [self.backbone.geometry], ranges, num_workers=num_workers)
        with closing(decoded_batches):
            for decoded in decoded_batches:
                for bad in decoded.bad.values():
                    if on_bad_image == "stop":
                        raise bad
                    on_event(ImageSkipped(sample_id=bad.id, file=bad.file, reason=bad.reason))
                logits = self.module(decoded.images[0]).cpu().numpy()
                for row in range(decoded.start, decoded.stop):
                    if row not in decoded.bad:
                        yield Scores(row, logits[row - decoded.start])


def text_of_target(value: NDArray[Any], class_names: Sequence[str], *, are_labels: bool) -> str | None:
    """A target or prediction, [] or [K], as text; None for a class or number that is not known.

    >>> text_of_target(np.array(1), ["cat", "dog"], are_labels=True), text_of_target(np.array(2.5), [], are_labels=False)
    ('dog', '2.5')
    >>> text_of_target(np.array([1, 0, 1]), ["cat", "dog", "owl"], are_labels=True)
    'cat; owl'
    """
    if value.ndim:
        names = class_names or [str(number) for number in range(len(value))]
        chosen = [name for name, one in zip(names, value, strict=True) if one == 1]
        return "; ".join(chosen if are_labels else [f"{one:g}" for one in value.tolist()])
    if are_labels:
        return class_names[int(value)] if class_names and value != NO_LABEL else None
    return f"{value.item():g}" if np.isfinite(value) else None


def trained_model(config: Mapping[str, Any]) -> ModelSpec:
    """The model that a saved probe was trained on, by its `probe.json`; that of a run of format 1 lies among other fields."""
    if "model_spec" in config:
        return ModelSpec.from_dict(config["model_spec"])
    return model_of_format1(config["cache"])


def _check_backbone(folder: Path, model: ModelSpec, backbone: Backbone) -> None:
    here = {
        "architecture": backbone.architecture,
        "weights": backbone.weights_digest,
        "token_rule": backbone.token_rule,
        "transform": backbone.transform_id,
    }
    differing = [name for name in BACKBONE_FIELDS if getattr(model, name) != here[name]]
    if differing:
        raise RequestError(
            "probing.other_backbone",
            folder=folder,
            trained_on="; ".join(f"{name} = {getattr(model, name)!r}" for name in differing),
            found="; ".join(f"{name} = {here[name]!r}" for name in differing),
        )


def predictions_csv(predictions: Iterable[Prediction]) -> Iterator[bytes]:
    """Yield the lines of a CSV file in UTF-8: a header, then one line an image; `Prediction.values` have a column each."""
    rest = iter(predictions)
    first = list(islice(rest, 1))
    names = [name for one in first for name in one.values]
    yield csv_line(["id", "predicted", "probability", "target", *names]).encode()
    for one in chain(first, rest):
        probability = "" if one.probability is None else f"{one.probability:.6f}"
        values = [f"{value:.6f}" for value in one.values.values()]
        yield csv_line([one.sample_id, one.label, probability, one.target, *values]).encode()
