"""layerbank: run a vision foundation model once, keep the tokens of every layer, train attentive probes by the hundred.

In Python:

    import layerbank as lb

    model = lb.open_model("timm/vit_small_patch14_dinov2.lvd142m")
    train, test = (lb.extract(model, lb.open_images("folder:photos", split)) for split in ("train", "test"))
    results = lb.probe(train, test, probes=["linear-cls", "alf"])
    results.best.classifier().predict(["new.jpg"])

`layerbank.cache` is the token store, `layerbank.probes` holds heads and their trainer; the other packages connect them to images,
models and the command line. Importing `layerbank` imports neither torch nor zarr: the names below are loaded when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import LayerbankError, RequestError, WorkError

if TYPE_CHECKING:
    from .api.data import images_from, open_images
    from .api.estimator import LayerProbe
    from .api.models import Model, model_from, open_model
    from .api.results import Classifier, Result, Results, probe
    from .api.tokens import RowArray, Tokens, extract
    from .data.image_source import ImageSource
    from .executors.local import LocalExecutor
    from .executors.ray_executor import RayExecutor
    from .executors.run import run
    from .jobs.job import ExtractJob, ProbeJob, StudyJob
    from .jobs.recipe import open_recipe

__version__ = "0.2.0"
__all__ = [
    "open_images",
    "images_from",
    "ImageSource",
    "open_model",
    "model_from",
    "Model",
    "extract",
    "Tokens",
    "RowArray",
    "probe",
    "Results",
    "Result",
    "Classifier",
    "LayerProbe",
    "run",
    "ExtractJob",
    "ProbeJob",
    "StudyJob",
    "open_recipe",
    "LocalExecutor",
    "RayExecutor",
    "LayerbankError",
    "RequestError",
    "WorkError",
    "__version__",
]
_HOMES = {
    "open_images": "api.data",
    "images_from": "api.data",
    "ImageSource": "data.image_source",
    "open_model": "api.models",
    "model_from": "api.models",
    "Model": "api.models",
    "extract": "api.tokens",
    "Tokens": "api.tokens",
    "RowArray": "api.tokens",
    "probe": "api.results",
    "Results": "api.results",
    "Result": "api.results",
    "Classifier": "api.results",
    "LayerProbe": "api.estimator",
    "run": "executors.run",
    "ExtractJob": "jobs.job",
    "ProbeJob": "jobs.job",
    "StudyJob": "jobs.job",
    "open_recipe": "jobs.recipe",
    "LocalExecutor": "executors.local",
    "RayExecutor": "executors.ray_executor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
