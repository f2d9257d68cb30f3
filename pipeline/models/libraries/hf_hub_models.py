"""`hf-hub:ORG/NAME` or `ORG/NAME`: repositories of the Hugging Face hub, which hold a model of open_clip, timm or transformers."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import RequestError
from ..families import ModelFamily
from ..tower import Tower
from ..weights import hub_file


def open_hf_hub(model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    """Build the model of a repository, by the library that its description is written for.

    Raises:
        RequestError: no such repository, no such weights, or no vision transformer.
        WorkError: the hub cannot be reached.
    """
    model_id = f"hf-hub:{model_id.removeprefix('hf-hub:')}"
    repository, _, arguments = model_id.removeprefix("hf-hub:").partition("?")
    if repository.rpartition("/")[2].isdigit():  # ViT-B/16 is a name of papers
        from .timm_models import unknown_model

        raise unknown_model(repository, "the hub, timm or open_clip", repository, ())
    if hub_file(repository, "open_clip_config.json", model_id) is not None:
        from .open_clip_models import open_open_clip as open_model
    elif _is_transformers_repository(repository, model_id):
        from .transformers_models import open_transformers as open_model

        model_id = f"transformers:{repository}"
    else:
        from .timm_models import open_timm

        return open_timm(model_id, weights=weights, tap=tap, image_size=image_size, seed=seed)
    if arguments:
        raise RequestError("models.no_arguments", model=model_id, arguments=arguments)
    return open_model(model_id, weights=weights, tap=tap, image_size=image_size, seed=seed)


def _is_transformers_repository(repository: str, model_id: str) -> bool:
    """Whether config.json describes a model of transformers; timm's file of that name has other keys."""
    file = hub_file(repository, "config.json", model_id)
    if file is None:
        return False
    try:
        return "model_type" in json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        return False  # timm says what is wrong with it


HF_HUB = ModelFamily(form="hf-hub:ORG/NAME or ORG/NAME (of timm, open_clip or transformers)", open=open_hf_hub)
