"""`hf-hub:<org>/<repo>`: repositories of the Hugging Face hub, which hold an open_clip or a timm model."""

from __future__ import annotations

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .families import ModelFamily
from .tower import Tower
from .weights import from_the_hub


def open_hf_hub(model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    """Build the model of a repository, by the library that its description is written for.

    Raises:
        RequestError: no such repository, no such weights, or no vision transformer.
        WorkError: the hub cannot be reached.
    """
    if _is_open_clip_repository(model_id):
        from .open_clip_models import open_open_clip as open_model
    else:
        from .timm_models import open_timm as open_model
    return open_model(model_id, weights=weights, tap=tap, image_size=image_size, seed=seed)


def _is_open_clip_repository(model_id: str) -> bool:
    """Whether a repository of the hub describes an open_clip model; timm's description is another file."""
    with from_the_hub(model_id):
        try:
            hf_hub_download(model_id.removeprefix("hf-hub:"), "open_clip_config.json")
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
                raise  # not an answer: the hub was out of reach
            return False
    return True


HF_HUB = ModelFamily(form="hf-hub:ORG/REPO (of timm or open_clip)", open=open_hf_hub)
