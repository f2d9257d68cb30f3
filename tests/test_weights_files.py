"""Checkpoint files as training scripts leave them: which weights are taken, which files are refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from commands import run
from messages import raises, refuses
from model_errors import refuses_model
from photos import TINY_MODEL, write_photos
from torch import Tensor

import layerbank
from layerbank import RequestError
from layerbank.events import Event, WeightsChosen
from layerbank.models.backbone import open_backbone
from layerbank.models.request import ModelRequest
from layerbank.models.weights_file import read_state_dict

State = dict[str, Tensor]
OPTIONS: dict[str, Any] = {"image_size": 32}


@pytest.fixture(scope="module")
def state() -> State:
    model = timm.create_model(TINY_MODEL.removeprefix("timm/"), num_classes=0, img_size=32)
    return model.state_dict()  # type: ignore[no-any-return]


def prefixed(prefix: str, state: State, value: float | None = None) -> State:
    """The tensors under longer names, all of one value if one is given."""
    return {prefix + name: one if value is None else torch.full_like(one, value) for name, one in state.items()}


def opened(file: Path, **options: Any) -> tuple[float, list[Event]]:
    """A value of the weights that a file gives, and the events."""
    events: list[Event] = []
    backbone = open_backbone(TINY_MODEL, weights=str(file), on_event=events.append, **OPTIONS, **options)
    return float(backbone.tower.model.get_parameter("norm.bias")[0]), events


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "some.pth")
    return folder / "some.pth"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one: one,
        lambda one: prefixed("_orig_mod.", one),
        lambda one: prefixed("module._orig_mod.backbone.", one) | {"module._orig_mod.head.weight": torch.ones(3, 192)},
        lambda one: {"model": prefixed("encoder.", one), "epoch": 3},
        lambda one: {"state_dict": prefixed("model.", one), "hyper_parameters": {"lr": 0.1}},
        lambda one: {"model": one, "optimizer": {"state": {0: {"exp_avg": torch.ones(9, 9)}}, "param_groups": []}},
        lambda one: {"model": one, "args": argparse.Namespace(lr=0.1, name="x"), "best": np.float64(0.5)},
        lambda one: {"checkpoint": {"net": one}, "step": torch.tensor(3), "count": np.int64(2)},
    ],
)
def test_a_single_set_of_weights_is_found_under_any_prefix_and_beside_anything(
    wrap: Any, state: State, tmp_path: Path
) -> None:
    assert opened(saved(tmp_path, wrap(prefixed("", state, 2.0)))) == (2.0, [])


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("student.module.backbone", "teacher.module.backbone"),
        ("encoder.module", "target_encoder.module"),
    ],
)
@pytest.mark.parametrize("is_flat", [False, True])
def test_of_several_sets_the_average_is_taken_and_named_and_a_key_chooses_another(
    plain: str, average: str, is_flat: bool, state: State, tmp_path: Path
) -> None:
    content: dict[str, Any] = {}
    for path, value in ((plain, 1.0), (average, 2.0)):
        key, _, prefix = path.partition(".")
        inner = prefixed(f"{prefix}." if prefix else "", state, value)
        content |= prefixed(f"{key}.", inner) if is_flat else {key: inner}
    file = saved(tmp_path, content)
    assert opened(file) == (2.0, [WeightsChosen(path=str(file), key=average, others=(plain,))])
    for key in (plain, plain.partition(".")[0]):
        value, (chosen,) = opened(file, weights_key=key)
        assert value == 1.0
        assert isinstance(chosen, WeightsChosen)
        assert chosen.key == plain


def test_sets_among_which_no_rule_chooses_are_refused_by_name(state: State, tmp_path: Path) -> None:
    for names in (("model", "state_dict"), ("teacher", "model_ema")):
        file = saved(tmp_path, dict.fromkeys(names, state))
        options = OPTIONS | {"weights": str(file)}
        refuses_model("models.several_weights", TINY_MODEL, options, path=file, names=", ".join(names))
        options["weights_key"] = "net"
        refuses_model("models.unknown_weights_key", TINY_MODEL, options, path=file, key="net", names=", ".join(names))
        assert opened(file, weights_key=names[1])[0] == float(state["norm.bias"][0])


def test_a_key_names_one_set_exactly_or_the_only_one_below_it(state: State, tmp_path: Path) -> None:
    flat = prefixed("", state, 1.0) | prefixed("teacher.", state, 2.0) | prefixed("head.", state, 3.0)
    for content, path in ((flat, ""), ({"model": flat}, "model.")):
        file = saved(tmp_path, content)
        root = path.rstrip(".") or "."
        values = {root: 1.0, f"{path}teacher": 2.0, f"{path}head": 3.0}
        assert {key: opened(file, weights_key=key)[0] for key in values} == values
    file = saved(tmp_path, {"net": prefixed("one.", state, 1.0) | prefixed("ema.", state, 2.0)})
    options = OPTIONS | {"weights": str(file), "weights_key": "net"}
    refuses_model("models.unknown_weights_key", TINY_MODEL, options, path=file, key="net", names="net.ema, net.one")


def test_a_dictionary_that_contains_itself_is_no_checkpoint(state: State, tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": state}
    content["self"] = content
    file = saved(tmp_path, content)
    refuses_model("models.unreadable_weights", TINY_MODEL, OPTIONS | {"weights": str(file)}, path=file)


def test_a_key_without_a_file_is_refused_everywhere(tmp_path: Path) -> None:
    values = {"key": "teacher", "model": TINY_MODEL}
    refuses_model(
        "models.weights_key_without_file",
        TINY_MODEL,
        OPTIONS | {"weights": "random", "weights_key": "teacher"},
        **values,
    )
    for kind, options in (
        (layerbank.ProbeJob, {"data": "demo:digits", "model": TINY_MODEL, "probes": ["alf"]}),
        (layerbank.ExtractJob, {"data": "demo:digits", "models": [(TINY_MODEL, "random")]}),
        (layerbank.StudyJob, {"data": ["demo:digits"], "models": [TINY_MODEL], "probes": ["alf"]}),
    ):
        with raises("models.weights_key_without_file", RequestError, key="teacher", model=f"{kind.kind} job"):
            kind(weights_key="teacher", **options)  # type: ignore[arg-type]


def test_a_prefix_that_the_model_itself_has_stays(tmp_path: Path) -> None:
    content = {"encoder.patch_embed.weight": torch.ones(2, 2), "head.bias": torch.ones(2)}
    file = str(saved(tmp_path, {"model": content}))
    assert read_state_dict(file, expected=content).keys() == content.keys()
    assert read_state_dict(file).keys() == {"patch_embed.weight"}


def test_weights_with_other_names_are_the_largest_dictionary(tmp_path: Path) -> None:
    content = {f"module.layers.{number}.weight": torch.ones(2) for number in range(5)}
    file = saved(tmp_path, {"net": content, "loss": {"center": torch.ones(1, 4)}})
    assert list(read_state_dict(str(file))) == [f"layers.{number}.weight" for number in range(5)]


def test_a_file_is_read_by_its_content_not_its_name(state: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "weights.bin")
    assert read_state_dict(str(tmp_path / "weights.bin")).keys() == state.keys()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_files_that_stand_for_others_are_named(name: str, tmp_path: Path) -> None:
    for key, content in (
        ("models.weights_are_lfs_pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
        ("models.weights_are_web_page", "\n<!DOCTYPE html><html>Sign in</html>"),
        ("models.weights_are_web_page", "<HTML><body>404</body></HTML>"),
    ):
        (tmp_path / name).write_text(content)
        options = OPTIONS | {"weights": str(tmp_path / name)}
        refuses_model(key, TINY_MODEL, options, path=tmp_path / name)


def test_nothing_in_a_file_is_executed(state: State, tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    for content in ({"model": state, "args": Planted()}, {"model": state, "args": argparse.Namespace(x=Planted())}):
        file = saved(tmp_path, content)
        refuses_model("models.unreadable_weights", TINY_MODEL, OPTIONS | {"weights": str(file)}, path=file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_at_the_model_before_any_image(
    value: float, state: State, photos: Path, tmp_path: Path
) -> None:
    broken = {name: one.clone() for name, one in state.items()}
    broken["blocks.3.mlp.fc1.weight"][5, 7] = value
    file = saved(tmp_path, broken)
    values = {"model": TINY_MODEL, "number": 1, "first": "blocks.3.mlp.fc1.weight"}
    refuses_model("models.weights_not_finite", TINY_MODEL, OPTIONS | {"weights": str(file)}, **values)
    arguments = ["extract", "--model", TINY_MODEL, "--weights", str(file), "--image-size", "32"]
    arguments += ["--data", f"folder:{photos}", "--cache", str(tmp_path / "caches")]
    refuses(run(*arguments), "models.weights_not_finite", **values)
    assert not (tmp_path / "caches").exists()


def test_the_command_says_which_weights_it_takes_and_what_it_saves_opens_the_same_again(
    state: State, tmp_path: Path
) -> None:
    file = saved(tmp_path, {"student": state, "teacher": prefixed("", state)})
    data = write_photos(tmp_path / "few", {"train": 2, "test": 1})
    arguments = ["extract", "--model", TINY_MODEL, "--weights", str(file), "--image-size", "32", "--workers", "0"]
    shown = run(*arguments, "--data", f"folder:{data}", "--cache", str(tmp_path / "caches")).stderr
    assert " ".join(shown.split()).count("the weights teacher are used, not student") == 1
    request = ModelRequest(model=TINY_MODEL, weights=str(file), weights_key="student", image_size=32)
    assert ModelRequest.from_dict(request.to_dict()) == request
    assert "weights_key" not in ModelRequest(model=TINY_MODEL).to_dict()
    model = layerbank.open_model(TINY_MODEL, weights=file, weights_key="student", image_size=32, device="cpu")
    assert model.request == request
