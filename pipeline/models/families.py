"""Model families: how the models of one library are opened and listed. The families are a registry that plug-ins can extend.

The name of a family begins the ids of its models, before the first slash or colon: `open_clip/ViT-B-32/openai` and
`torchhub:OWNER/REPO:ENTRY` belong to `open_clip` and `torchhub`. An id without either is a timm name, and `ORG/NAME` a repository
of the Hugging Face hub, unless ORG looks like the name of a family. Importing this module imports none of the libraries.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..errors import RequestError
from ..events import OnEvent, ignore
from ..registry import Registry
from .trust import CodeOf, CodePermission

if TYPE_CHECKING:
    from .tower import Tower

RANDOM = "random"  # in place of a file of weights


class OpenModel(Protocol):
    def __call__(self, model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
        """Build a model in float32 on torch's default device.

        Args:
            model_id: with the name of its family.
            weights: None for the pretrained ones, "random", or a file.
            tap: norm2, block or `module:PATTERN`.
            image_size: pixels a side; None for the model's own.
            seed: seed for random weights.
        """


@dataclass(frozen=True)
class ModelGroup:
    """Models of a family that are listed together.

    Attributes:
        name: its name in `layerbank models`.
        example: a model id.
        matches: a regular expression on model ids; a model belongs to the first group of its family that matches.
        note: a remark on its tokens or taps.
    """

    name: str
    example: str
    matches: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """The models of one library; a plug-in registers one under the entry point group `layerbank.models`.

    Attributes:
        form: form of its ids, such as `timm/NAME`.
        open: opens a model.
        names: ids of its models, without tags of weights; () where they cannot be listed.
        groups: groups of the listed models; the last one should match all of them.
        without_tag: model id -> the id without a tag of weights.
        tags: model id without a tag -> tags of its pretrained weights.
        open_blank: opens a model of the same shape with random weights, for `layerbank models`; None if `open` does.
        code_of: for models that run code which their id names; a model is then opened only with permission for that code.
    """

    form: str
    open: OpenModel
    names: Callable[[], Sequence[str]] = tuple
    groups: tuple[ModelGroup, ...] = ()
    without_tag: Callable[[str], str] = str
    tags: Callable[[str], Sequence[str]] = lambda model_id: ()
    open_blank: OpenModel | None = None
    code_of: CodeOf | None = None


MODEL_FAMILIES = Registry(
    "layerbank.models",
    "model family",
    ModelFamily,
    {
        "demo": "layerbank.models.libraries.demo_weights:DEMO",
        "open_clip": "layerbank.models.libraries.open_clip_models:OPEN_CLIP",
        "timm": "layerbank.models.libraries.timm_models:TIMM",
        "transformers": "layerbank.models.libraries.transformers_models:TRANSFORMERS",
        "hf-hub": "layerbank.models.libraries.hf_hub_models:HF_HUB",
        "torchhub": "layerbank.models.libraries.torchhub_models:TORCHHUB",
    },
)


def find_family(model_id: str) -> ModelFamily:
    """The family of a model id.

    Raises:
        RequestError: the id begins with the name of no family, or with that of a plug-in that cannot be loaded.
    """
    return MODEL_FAMILIES.require(_family_name(model_id))


def open_tower(
    model_id: str,
    *,
    weights: str | None,
    tap: str,
    image_size: int | None,
    seed: int,
    permission: CodePermission,
    weights_key: str | None = None,
    blank: bool = False,
    on_event: OnEvent = ignore,
) -> Tower:
    """Open a model of any family; every model is opened here.

    Args:
        model_id, weights, tap, image_size, seed: as `OpenModel` takes them.
        permission: which models may run code of their own.
        weights_key: which set of weights of the file; None chooses, see `weights_file.py`.
        blank: open it by `open_blank`.
        on_event: called with `WeightsChosen` if the file has several.

    Raises:
        RequestError: no such family, code that is not allowed to run, a key that the family does not ask for, or what the family
            raises.
    """
    family = find_family(model_id)
    if family.code_of is not None:
        permission.require(model_id, family.code_of)
    if weights_key is not None and weights in (None, RANDOM):
        raise RequestError("models.weights_key_without_file", key=weights_key, model=model_id)
    from .weights_file import weights_chosen_by  # and with it torch

    open_model = (family.open_blank or family.open) if blank else family.open
    with weights_chosen_by(weights_key, on_event) as choice:
        tower = open_model(model_id, weights=weights, tap=tap, image_size=image_size, seed=seed)
    if weights_key is not None and not blank and not choice.was_asked:
        raise RequestError("models.weights_key_not_asked", key=weights_key, model=model_id)
    return tower


def models_with_code(models: Iterable[str], permission: CodePermission) -> tuple[str, ...]:
    """Return those of some models that run code, for worker processes, which may lack the user's trust file.

    Raises:
        RequestError: one of them is not allowed to.
    """
    found = []
    for model_id in models:
        family = MODEL_FAMILIES.get(_family_name(model_id))
        if family is not None and family.code_of is not None:
            permission.require(model_id, family.code_of)
            found.append(model_id)
    return tuple(found)


def _family_name(model_id: str) -> str:
    prefix = re.match(r"([^/:]+)[/:]", model_id)
    if prefix is None:
        return "timm"
    names = [*MODEL_FAMILIES, *MODEL_FAMILIES.broken]
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+(\?.*)?", model_id) is not None
    if is_repository and not difflib.get_close_matches(prefix[1], names, n=1, cutoff=0.8):
        return "hf-hub"
    return prefix[1]
