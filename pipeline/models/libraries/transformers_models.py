"""Vision models of Hugging Face transformers by `transformers:DIR` or `transformers:ORG/NAME`.

A folder or a repository of the hub gives `config.json`, the settings of the image processor, and weights. Of a model of images and
texts the vision tower is taken. transformers builds the model and knows older names of its weights; the parts are found by
structure, because their names differ between families and versions: the one list of blocks, and the first norm that runs after
it. **No code of a repository runs**: a model type that transformers does not have is refused.

Pooling heads take no part. `final` is the last norm on every token; CLIP's, which its authors apply to the class token alone, is
not projected.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from xxhash import xxh3_64_hexdigest

from ...errors import RequestError, first_line, nearest_name
from ..families import RANDOM, ModelFamily
from ..tap_modules import named_blocks, tap_candidates, tap_pattern
from ..taps import TokenLayout
from ..tower import Tower, check_structure
from ..vit_parts import block_lists, layout_of, no_blocks, norm_after, pair, second_norm_of
from ..weights import hub_file, keys_mismatch, quiet_libraries, weights_mismatch
from ..weights_file import read_state_dict, shard_names
from .image_processors import SETTINGS_FILES, Preparation, preparation, read_image_processor

WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which they are looked for."""

_NOT_THE_FUNCTION = (
    *("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype"),
    *("id2label", "label2id", "problem_type"),
)
"""Keys of config.json that do not change the tokens."""

_LEFT_OUT = re.compile(r"^(vision_model\.)?(pooler|head)\.|(^|\.)(mask_token|position_ids|relative_position_index)$")
"""Tensors of a checkpoint that take no part: pooling heads, mask tokens, and numbers that the model computes itself."""


def open_transformers(model_id: str, *, weights: str | None, tap: str, image_size: int | None, seed: int) -> Tower:
    """Build the vision model of a folder or of a repository; for the arguments see `families.OpenModel`.

    Raises:
        RequestError: transformers is not installed, no such folder or repository, a file of it that cannot be read, a model type
            that transformers does not have, weights that do not fit, or no vision transformer.
        WorkError: the hub cannot be reached.
    """
    _require_library(model_id)
    source = model_id.removeprefix("transformers:")
    is_folder = source.startswith((".", "/", "~")) or Path(source).is_dir()
    folder = Path(source).expanduser().resolve() if is_folder else _settings_from_the_hub(source, model_id)
    name = f"transformers:{folder.name if is_folder else source}"
    config, model_class = _vision_model(folder, name)
    prepared = preparation(read_image_processor(folder, name), name, image_size)
    tower = partial(_tower, config=config, name=name, tap=tap, prepared=prepared, chosen=image_size is not None)
    with torch.device("meta"):
        blank = _build(model_class, config, None)
    if weights is None:
        check_structure(lambda: tower(blank), tap)
        weights = _weights_in(folder, name) if is_folder else _weights_from_the_hub(source, model_id)
    state = None
    if weights != RANDOM:
        core, path = _core(blank)
        state = {path + key: tensor for key, tensor in read_state_dict(weights, core.state_dict()).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(model_class, config, state, f"--weights {weights}", name)
    return tower(model)


def _tower(model: nn.Module, *, config: Any, name: str, tap: str, prepared: Preparation, chosen: bool) -> Tower:
    core, _ = _core(model.eval())
    size = prepared.image_size
    layout = layout_of(core, name, size, chosen=chosen)
    forward = _forward(core, size != pair(getattr(config, "image_size", size)), layout)
    try:
        _run_blank(core, forward, size)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        if next(core.parameters()).is_meta:
            raise NotImplementedError(first_line(error)) from error
        shown = "x".join(map(str, size))
        raise RequestError("models.does_not_run", model=name, size=shown, reason=first_line(error)) from error
    blocks = _blocks(core, name, tap, forward, size)
    last, final, how = norm_after(core, blocks, lambda: _run_blank(core, forward, size))
    decisive = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_THE_FUNCTION}
    digest = xxh3_64_hexdigest(json.dumps(decisive, sort_keys=True, default=str, allow_nan=False).encode())
    return Tower(
        name=name,
        model=core,
        forward=forward,
        blocks=blocks,
        second_norm=second_norm_of(blocks[0]),
        last=last,
        final=final,
        layout=layout,
        image_size=size,
        transform=prepared.transform,
        transform_id=prepared.text,
        architecture=f"transformers:{config.model_type} config={digest} image={size[0]}x{size[1]} final={how}",
    )


# ---- the model


def _vision_model(folder: Path, name: str) -> tuple[Any, Any]:
    """Configuration and class of the vision model that a folder's config.json describes.

    Raises:
        RequestError: no such file, or it describes no vision model of transformers.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    file = folder / "config.json"
    if not file.is_file():
        raise RequestError("models.no_model_folder", model=name, folder=folder)
    try:
        values = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
        model_type = str(values["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise RequestError("models.bad_model_config", file=file, reason=reason) from error
    if model_type not in CONFIG_MAPPING:
        nearest = nearest_name(model_type, CONFIG_MAPPING)
        raise RequestError("models.unknown_model_type", model=name, type=model_type, nearest=nearest)
    try:
        with quiet_libraries():
            config = CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # each model type checks its own values, in its own way
        raise RequestError("models.bad_model_config", file=file, reason=first_line(error)) from error
    config = getattr(config, "vision_config", config)
    model_class = MODEL_MAPPING.get(type(config), None)
    if model_class is None or getattr(model_class, "main_input_name", "") != "pixel_values":
        raise RequestError("models.no_vision_model", model=name, type=model_type)
    return config, model_class


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant}, which is no number of JSON")


def _build(model_class: Any, config: Any, state: dict[str, Tensor] | None, source: str = "", name: str = "") -> Any:
    """A model of random weights, or of a state dict from `source`; without pooling heads.

    Raises:
        RequestError: the weights are not those of this model.
    """
    config = copy.deepcopy(config)
    config.vision_use_head = config.use_head = False
    config.mask_ratio = 0.0  # of MAE, whose encoder would see a quarter of the patches
    options: dict[str, Any] = {}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        # of BEiT the last norm is in there, if it is pooled over the patches
        options["add_pooling_layer"] = getattr(config, "use_mean_pooling", False) and (
            state is None or any(key.startswith("pooler.layernorm.") for key in state)
        )
    with quiet_libraries(), _no_progress_bar():
        if state is None:
            return model_class(config, **options)
        try:
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **options,
            )
        except (RuntimeError, ValueError, KeyError) as error:
            raise weights_mismatch(source, name, error) from error
    missing, unexpected = (
        sorted(key for key in info[kind] if not _LEFT_OUT.search(key)) for kind in ("missing_keys", "unexpected_keys")
    )
    shapes = [  # transformers 4 gives keys alone
        one if isinstance(one, str) else f"{one[0]} {list(one[1])} for {list(one[2])}"
        for one in info["mismatched_keys"]
    ]
    if missing or unexpected or shapes:
        raise keys_mismatch(source, name, {"missing": missing, "unexpected": unexpected, "of other shapes": shapes})
    return model


def _core(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the embeddings and the blocks, and the beginning of its names in the model."""
    holders = [path for path, _ in model.named_modules() if path.rpartition(".")[2] == "embeddings"]
    path = holders[0].rpartition(".")[0] if len(holders) == 1 else ""
    return model.get_submodule(path), f"{path}." if path else ""


def _blocks(
    core: nn.Module, name: str, tap: str, forward: Callable[[Tensor], Any], size: tuple[int, int]
) -> tuple[nn.Module, ...]:
    """The modules that the tap's pattern names, else the one list of blocks that is in no other list."""

    def candidates() -> list[str]:
        return tap_candidates(core, forward, size)

    if (pattern := tap_pattern(tap)) is not None:
        return tuple(named_blocks(core, pattern, name, candidates))
    lists = block_lists(core)
    outer = [one for one in lists if not any(one.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise no_blocks(name, core, candidates())
    found = core.get_submodule(outer[0])
    assert isinstance(found, nn.ModuleList | nn.Sequential)
    return tuple(found)


# ---- how it is run


def _forward(core: nn.Module, resampled: bool, layout: TokenLayout) -> Callable[[Tensor], Any]:
    """The function from images [B, 3, H, W] to the model's result."""
    parameters = inspect.signature(core.forward).parameters
    if "spatial_shapes" in parameters:
        return partial(_run_on_patches, core, layout.grid_size)
    options = {"interpolate_pos_encoding": True} if resampled and "interpolate_pos_encoding" in parameters else {}
    if "noise" in parameters:
        return partial(_run_in_order, core, layout.grid_size[0] * layout.grid_size[1], options)
    return partial(core, **options)


def _run_in_order(core: nn.Module, num_patches: int, options: dict[str, Any], images: Tensor) -> Any:
    """MAE's encoder sorts its patches by noise, even where it drops none; rising noise leaves them in order."""
    noise = torch.arange(num_patches, dtype=torch.float32, device=images.device).expand(images.shape[0], -1)
    return core(images, noise=noise, **options)


def _run_on_patches(core: nn.Module, grid_size: tuple[int, int], images: Tensor) -> Any:
    """SigLIP2 takes patches [B, T, P P 3] and the shape of their grid; its mask hides padding, of which there is none."""
    rows, columns = grid_size
    batch, channels, height, width = images.shape
    cells = images.view(batch, channels, rows, height // rows, columns, width // columns)
    patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([grid_size] * len(images), device="cpu")  # it is read as numbers
    return core(patches, None, shapes)


def _run_blank(core: nn.Module, forward: Callable[[Tensor], Any], size: tuple[int, int]) -> None:
    weight = next(core.parameters())
    with torch.inference_mode():
        forward(torch.zeros(1, 3, *size, dtype=weight.dtype, device=weight.device))


# ---- files


def _settings_from_the_hub(source: str, model_id: str) -> Path:
    """The folder with the configuration of a repository, without its weights."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise RequestError("models.bad_transformers_id", model=model_id)
    config = hub_file(source, "config.json", model_id, required=True)
    for name in SETTINGS_FILES:
        hub_file(source, name, model_id)
    assert config is not None
    return Path(config).parent


def _weights_in(folder: Path, name: str) -> str:
    """The file of weights of a folder."""
    for file in WEIGHTS_FILES:
        if (folder / file).is_file():
            return str(folder / file)
    raise RequestError("models.no_weights_in_folder", model=name, folder=folder, files=", ".join(WEIGHTS_FILES))


def _weights_from_the_hub(source: str, model_id: str) -> str:
    """The file of weights of a repository, downloaded with its shards."""
    for file in WEIGHTS_FILES:
        path = hub_file(source, file, model_id, required=file == WEIGHTS_FILES[-1])
        if path is not None:
            for shard in shard_names(path):
                hub_file(source, shard, model_id, required=True)
            return path
    raise AssertionError("the last one is required")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _require_library(model_id: str) -> None:
    if find_spec("transformers") is None:
        raise RequestError("models.no_transformers", model=model_id)


TRANSFORMERS = ModelFamily(form="transformers:DIR, transformers:ORG/NAME or ORG/NAME", open=open_transformers)
