"""Models of a torch hub repository: built by its own code, read as any other, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from model_errors import refuses_model
from torch import Tensor

from layerbank import WorkError
from layerbank.models.backbone import open_backbone
from layerbank.models.request import ModelRequest

SIZE = 28
MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 32), nn.GELU(), nn.Linear(32, dim))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))

class PatchEmbed(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.patch_size, self.proj = (14, 14), nn.Conv2d(3, dim, 14, 14)

    def forward(self, x):
        assert x.shape[-1] == 28, f"made for 28 pixels, got {x.shape[-1]}"
        return self.proj(x).flatten(2).transpose(1, 2)

class Vit(nn.Module):  # the parts and the dictionary of DINOv2's own code
    def __init__(self, dim=16, depth=2, registers=4):
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.randn(1, registers, dim)) if registers else None
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward_features(self, images):
        prefix = [self.cls_token] + ([self.register_tokens] if self.register_tokens is not None else [])
        x = torch.cat([*(p.expand(len(images), -1, -1) for p in prefix), self.patch_embed(images)], 1)
        for block in self.blocks:
            x = block(x)
        return {"x_norm_clstoken": self.norm(x)[:, 0]}

    def forward(self, images):
        return self.forward_features(images)["x_norm_clstoken"]
"""
HUBCONF = """
dependencies = ["torch"]
import torch
from tiny_hub_vit import Vit

def tiny(pretrained=True, **options):
    model = Vit(**options)
    if pretrained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
    return model

def fixed():
    return Vit(registers=0)

def not_a_module(pretrained=True):
    return 3

def forgetful(pretrained=True):
    import a_package_nobody_has

def far_away(pretrained=True):
    raise OSError("no route to host")
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repositories") / "tinyhub"
    folder.mkdir()
    (folder / "tiny_hub_vit.py").write_text(MODEL)
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


def test_tokens_equal_those_of_a_hook_on_the_repositorys_model(repository: Path) -> None:
    backbone = open_backbone(f"torchhub:{repository}:tiny", weights="random", image_size=SIZE, seed=3)
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
    own = open_backbone(model_id, image_size=SIZE)
    assert all(bool((parameter == 0.5).all()) for parameter in own.tower.model.parameters())
    one, again, other = (open_backbone(model_id, weights="random", image_size=SIZE, seed=s) for s in (1, 1, 2))
    assert one.weights_digest == again.weights_digest != other.weights_digest
    safetensors.torch.save_file(other.tower.model.state_dict(), tmp_path / "other.safetensors")
    filed = open_backbone(model_id, weights=str(tmp_path / "other.safetensors"), image_size=SIZE)
    assert filed.weights_digest == other.weights_digest
    assert open_backbone(f"torchhub:{repository}:fixed", image_size=SIZE).layout.num_prefix_tokens == 1
    options = {"weights": "random", "image_size": SIZE}
    refuses_model("models.entry_without_pretrained", f"torchhub:{repository}:fixed", options, entry="fixed")


def test_the_identity_names_folder_entry_and_code_but_not_where_the_folder_lies(
    repository: Path, tmp_path: Path
) -> None:
    backbone = open_backbone(f"torchhub:{repository}:tiny", image_size=SIZE)
    assert backbone.model_id == "torchhub:tinyhub:tiny"
    start = "torchhub:tinyhub:tiny image=28x28 final=norm positions=own code="
    assert backbone.architecture.startswith(start)
    assert len(backbone.architecture) == len(start) + 16
    assert backbone.transform_id == (
        "resize 32x32 center bicubic; crop 28x28; mean 0.485 0.456 0.406; std 0.229 0.224 0.225"
    )
    request = ModelRequest(model=f"torchhub:{repository}:tiny", image_size=SIZE)
    again = ModelRequest.from_dict(request.to_dict()).open("cpu")
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


def test_code_from_github_runs_only_if_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    asked: list[str] = []

    def no_network(repo: str, entry: str, **options: Any) -> None:
        asked.append(repo)
        raise OSError("no network in a test")

    monkeypatch.setattr("torch.hub.load", no_network)
    values = {"name": "somebody/vits", "repository": "somebody/vits:main"}
    refuses_model("models.untrusted_repository", "torchhub:somebody/vits:main:tiny", **values)
    assert asked == []
    (tmp_path / "trusted_list").write_text("somebody_vits\n")
    for model_id in ("torchhub:somebody/vits:main:tiny", "torchhub:facebookresearch/dinov2:dinov2_vits14"):
        refuses_model("models.torchhub_unreachable", model_id, kind=WorkError, reason="no network in a test")
    assert asked == ["somebody/vits:main", "facebookresearch/dinov2"]
