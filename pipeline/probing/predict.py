"""Predict for new images with a saved probe: from image files to classes with probabilities, or numbers, without a store.

Tokens are computed exactly as stage one computes them (same weights, transform, tap, rounding to the storage dtype), so a test
image gets the prediction that the probe was tested with. A backbone other than the one the probe was trained on is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
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
        label: name of the most probable class; a number, as text, for a task without classes.
        probability: probability of that class, in [0, 1]; None for a task without classes.
        target: name of the true class, None where the source has no labels.
    """

    sample_id: str
    label: str
    probability: float | None
    target: str | None


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
            found, confidence = self.task.predict(outputs).item(), self.task.confidence(outputs)
            yield Prediction(
                sample_id=source.ids[one.row],
                label=self.class_names[int(found)] if self.class_names else f"{found:g}",
                probability=None if confidence is None else float(confidence),
                target=self._target(source, one.row),
            )

    def _target(self, source: ImageSource, row: int) -> str | None:
        """The name of the true class of an image; None where there are no classes, or it has none."""
        has_class = self.class_names and source.labels[row] != NO_LABEL
        return source.class_names[source.labels[row]] if has_class else None

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
    """Yield the lines of a CSV file in UTF-8: a header, then one line an image."""
    yield csv_line(["id", "predicted", "probability", "target"]).encode()
    for one in predictions:
        probability = "" if one.probability is None else f"{one.probability:.6f}"
        yield csv_line([one.sample_id, one.label, probability, one.target]).encode()
