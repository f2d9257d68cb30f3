"""Models of a torch hub repository: built by its own code, read as any other, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hub_repository import SIZE, write_repository
from model_errors import refuses_model
from torch import Tensor

from layerbank import WorkError
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.request import ModelRequest
from layerbank.models.trust import CodePermission


def permitted(model_id: str, **options: Any) -> Backbone:
    return open_backbone(model_id, permission=CodePermission(model_id), **options)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repositories") / "tinyhub")


def test_tokens_equal_those_of_a_hook_on_the_repositorys_model(repository: Path) -> None:
    backbone = permitted(f"torchhub:{repository}:tiny", weights="random", image_size=SIZE, seed=3)
    assert backbone.levels == ["block.0", "block.1", "final"]
    assert (backbone.layout.has_cls, backbone.layout.num_register_tokens, backbone.layout.grid_size) == (
        True,
        4,
        (2, 2),
    )
    model: Any = backbone.tower.model
    seen: list[Tensor] = []
    for module in (model.blocks[0].norm2, model.blocks[1].norm2, model.norm):
        module.register_forward_hook(lambda _m, _i, output: seen.append(output))
    images = torch.randn(3, 3, SIZE, SIZE)
    tokens = backbone.compile(backbone.levels, ["cls", "register", "patch"])(images)
    for level, full in zip(backbone.levels, seen, strict=True):
        assert torch.equal(tokens[level]["cls"], full[:, 0])
        assert torch.equal(tokens[level]["register"], full[:, 1:5])
        assert torch.equal(tokens[level]["patch"], full[:, 5:])


def test_weights_are_the_entrys_own_random_by_seed_or_those_of_a_file(repository: Path, tmp_path: Path) -> None:
    model_id = f"torchhub:{repository}:tiny"
    own = permitted(model_id, image_size=SIZE)
    assert all(bool((parameter == 0.5).all()) for parameter in own.tower.model.parameters())
    one, again, other = (permitted(model_id, weights="random", image_size=SIZE, seed=s) for s in (1, 1, 2))
    assert one.weights_digest == again.weights_digest != other.weights_digest
    safetensors.torch.save_file(other.tower.model.state_dict(), tmp_path / "other.safetensors")
    filed = permitted(model_id, weights=str(tmp_path / "other.safetensors"), image_size=SIZE)
    assert filed.weights_digest == other.weights_digest
    assert permitted(f"torchhub:{repository}:fixed", image_size=SIZE).layout.num_prefix_tokens == 1
    options = {"weights": "random", "image_size": SIZE}
    refuses_model("models.entry_without_pretrained", f"torchhub:{repository}:fixed", options, entry="fixed")


def test_the_identity_names_folder_entry_and_code_but_not_where_the_folder_lies(
    repository: Path, tmp_path: Path
) -> None:
    backbone = permitted(f"torchhub:{repository}:tiny", image_size=SIZE)
    assert backbone.model_id == "torchhub:tinyhub:tiny"
    start = "torchhub:tinyhub:tiny image=28x28 final=norm positions=own code="
    assert backbone.architecture.startswith(start)
    assert len(backbone.architecture) == len(start) + 16
    assert backbone.transform_id == (
        "resize 32x32 center bicubic; crop 28x28; mean 0.485 0.456 0.406; std 0.229 0.224 0.225"
    )
    model_id = f"torchhub:{repository}:tiny"
    request = ModelRequest(model=model_id, image_size=SIZE, permission=CodePermission(model_id))
    again = ModelRequest.from_dict(request.to_dict(), request.permission).open("cpu")
    assert (again.architecture, again.weights_digest) == (backbone.architecture, backbone.weights_digest)


def test_wrong_ids_folders_and_entries_are_refused(repository: Path, tmp_path: Path) -> None:
    refuses_model("models.bad_torchhub_id", "torchhub:dinov2", model="torchhub:dinov2")
    refuses_model("models.no_hubconf", f"torchhub:{tmp_path}/gone:tiny", folder=tmp_path / "gone")
    refuses_model("models.no_hubconf", f"torchhub:{tmp_path}:tiny", folder=tmp_path)
    reason = "Cannot find callable large in hubconf"
    refuses_model("models.entry_not_loaded", f"torchhub:{repository}:large", entry="large", reason=reason)
    reason = "No module named 'a_package_nobody_has'"
    refuses_model("models.entry_not_loaded", f"torchhub:{repository}:forgetful", reason=reason)
    refuses_model("models.entry_is_no_module", f"torchhub:{repository}:not_a_module", type="int")


def test_a_size_the_model_does_not_take_is_refused_with_what_it_says(repository: Path) -> None:
    values = {"model": "torchhub:tinyhub:tiny", "size": 224, "reason": "made for 28 pixels, got 224"}
    refuses_model("models.does_not_run", f"torchhub:{repository}:tiny", **values)
    values = {"size": 30, "patch": 14, "one": 28, "other": 42}
    refuses_model("models.image_size_of_no_patches", f"torchhub:{repository}:tiny", {"image_size": 30}, **values)


def test_a_network_out_of_reach_is_failed_work(repository: Path) -> None:
    model_id = f"torchhub:{repository}:far_away"
    refuses_model("models.torchhub_unreachable", model_id, kind=WorkError, model=model_id, reason="no route to host")
