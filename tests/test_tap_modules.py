"""Taps by module names: tokens of the named modules, and the lists of modules that wrong names are refused with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from extractions import extract, only_store
from messages import refuses
from model_errors import refuses_model
from photos import write_photos
from timm.models import register_model
from torch import Tensor, nn

from layerbank.cache import TokenStore
from layerbank.data.sources import open_source
from layerbank.extraction.extract import ExtractConfig, model_of
from layerbank.extraction.repair import repair_and_fill
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.request import ModelRequest

SIZE, DEPTH = 48, 3
PATTERN = "layers.{i}.ffn_norm"


class OwnBlock(nn.Module):
    """A pre-norm block whose norms are named as in other libraries."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attn = nn.MultiheadAttention(embed_dim, 2, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(embed_dim, 64), nn.GELU(), nn.Linear(64, embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attn_norm(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.ffn(self.ffn_norm(x))


class OwnVit(nn.Module):
    """Patches by a convolution, a class token and two registers, `layers` in place of `blocks`, `ln_f` in place of `norm`."""

    def __init__(self, embed_dim: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, embed_dim, 16, 16)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.register_tokens = nn.Parameter(torch.randn(1, 2, embed_dim))
        self.layers = nn.ModuleList(OwnBlock(embed_dim) for _ in range(DEPTH))
        self.ln_f = nn.LayerNorm(embed_dim)
        self.pretrained_cfg = {"input_size": (3, SIZE, SIZE), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward_features(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        prefix = torch.cat([self.cls_token, self.register_tokens], 1).expand(len(images), -1, -1)
        x = torch.cat([prefix, patches], 1)
        for layer in self.layers:
            x = layer(x)
        return self.ln_f(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)[:, 0]


@register_model
def own_vit(pretrained: bool = False, **_: Any) -> nn.Module:
    return OwnVit()


def _open(**options: Any) -> Backbone:
    return open_backbone("own_vit", **{"weights": "random", "tap": f"module:{PATTERN}"} | options)


@pytest.mark.parametrize(
    ("pattern", "module"), [(PATTERN, "ffn_norm"), ("layers.{i}", ""), ("layers.{i}.ffn.2", "ffn.2")]
)
def test_tokens_are_those_of_the_named_modules_and_of_the_last_norm(pattern: str, module: str) -> None:
    backbone = _open(tap=f"module:{pattern}")
    assert (backbone.levels, backbone.embed_dim) == (
        ["block.0", "block.1", "block.2", "final"],
        dict.fromkeys(["block.0", "block.1", "block.2", "final"], 32),
    )
    assert (backbone.layout.has_cls, backbone.layout.num_register_tokens, backbone.layout.grid_size) == (
        True,
        2,
        (3, 3),
    )
    model: Any = backbone.tower.model
    seen: list[Tensor] = []
    modules = [layer.get_submodule(module) for layer in model.layers] + [model.ln_f]
    hooks = [one.register_forward_hook(lambda _m, _i, output: seen.append(output)) for one in modules]
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        model(images)
    for hook in hooks:
        hook.remove()
    tokens = backbone.compile(backbone.levels, ["cls", "register", "ap", "patch"])(images)
    for level, expected in zip(backbone.levels, seen, strict=True):
        assert torch.equal(tokens[level]["cls"], expected[:, 0])
        assert torch.equal(tokens[level]["register"], expected[:, 1:3])
        assert torch.equal(tokens[level]["patch"], expected[:, 3:])
        torch.testing.assert_close(tokens[level]["ap"], expected[:, 3:].mean(1))


def test_on_a_plain_vit_the_pattern_of_its_norm_gives_the_tokens_of_norm2() -> None:
    name, images = "vit_tiny_patch16_224", torch.randn(1, 3, SIZE, SIZE)
    named, usual = (
        open_backbone(name, weights="random", image_size=SIZE, tap=tap) for tap in ("module:blocks.{i}.norm2", "norm2")
    )
    one, other = (backbone.compile(usual.levels, ["ap"])(images) for backbone in (named, usual))
    assert all(torch.equal(one[level]["ap"], other[level]["ap"]) for level in usual.levels)
    assert named.tap == "module:blocks.{i}.norm2"
    assert named.architecture == usual.architecture


RANDOM = {"weights": "random"}
CANDIDATES = [
    f"layers.{{i}}{leaf}" for leaf in (".attn_norm", ".ffn_norm", "", ".attn", ".ffn", ".ffn.0", ".ffn.1", ".ffn.2")
]


def test_a_model_whose_blocks_cannot_be_found_is_refused_with_the_modules_to_read() -> None:
    error = refuses_model("models.blocks_of_other_names", "own_vit", RANDOM, model="timm/own_vit", type="OwnVit")
    assert error.values["children"] == "embed, layers, ln_f"
    assert error.values["candidates"] == ", ".join(f"'{pattern}'" for pattern in CANDIDATES)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "swin_tiny_patch4_window7_224", "samvit_base_patch16"])
def test_hierarchical_and_windowed_models_have_no_module_to_propose(name: str) -> None:
    with torch.device("meta"):
        refuses_model("models.no_blocks", name, RANDOM, model=f"timm/{name}")


def test_patterns_that_name_nothing_are_refused_with_those_that_do() -> None:
    candidates = ", ".join(CANDIDATES)
    values = {"model": "timm/own_vit", "missing": "layers.0.norm2", "count": 3, "candidates": candidates}
    refuses_model("models.no_such_module", "own_vit", RANDOM | {"tap": "module:layers.{i}.norm2"}, **values)
    values |= {"missing": "blocks.0.norm2", "count": 1}
    refuses_model("models.no_such_module", "own_vit", RANDOM | {"tap": "module:blocks.{i}.norm2"}, **values)
    for pattern in ("layers.norm", "layers{i}.norm", "{i}.{i}"):
        options = RANDOM | {"tap": f"module:{pattern}"}
        refuses_model("models.bad_tap_module", "own_vit", options, pattern=pattern, candidates=candidates)


def test_modules_without_tokens_are_refused() -> None:
    values = {"model": "timm/own_vit", "level": "block.0", "prefix": 3, "rows": 3, "columns": 3, "found": "NoneType"}
    refuses_model("models.other_tokens", "own_vit", RANDOM | {"tap": "module:layers.{i}.attn.out_proj"}, **values)


def test_of_a_module_that_returns_a_tuple_the_first_part_is_read() -> None:
    backbone = _open(tap="module:layers.{i}.attn")
    seen: list[Tensor] = []
    backbone.tower.blocks[0].attn.register_forward_hook(lambda _m, _i, output: seen.append(output[0]))
    tokens = backbone.compile(["block.0"], ["patch"])(torch.randn(2, 3, SIZE, SIZE))
    assert torch.equal(tokens["block.0"]["patch"], seen[-1][:, 3:])


# ---- identity


def test_the_pattern_is_part_of_the_paths_of_arrays_and_repair_opens_the_model_by_it_again(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", {"train": 6, "test": 2})
    source = open_source(f"folder:{tmp_path}/photos", "train")
    request = ModelRequest(model="own_vit", weights="random", tap=f"module:{PATTERN}", seed=3)
    backbone = request.open("cpu")
    config = ExtractConfig(arrays=tuple((level, "ap") for level in backbone.levels), num_workers=0)
    asked = {"model": request.to_dict(), "data": f"folder:{tmp_path}/photos", "split": "train"}
    store = only_store(extract(backbone, source, config, tmp_path / "caches", request=asked))
    assert TokenStore.open(store).tap == f"module:{PATTERN}"
    before = {path: path.read_bytes() for path in store.rglob("c.*")}
    damaged = next(path for path in before if "block.1" in str(path))
    damaged.write_bytes(bytes(len(before[damaged])))
    repair_and_fill(store, num_workers=0)
    assert {path: path.read_bytes() for path in store.rglob("c.*")} == before
    other = _open(tap="module:layers.{i}.attn_norm", seed=3)
    assert model_of(other, "float16") == model_of(backbone, "float16")
    extract(other, source, config, tmp_path / "caches", request=asked)
    assert TokenStore.open(store).taps == ["module:layers.{i}.attn_norm", f"module:{PATTERN}"]
    assert {path: path.read_bytes() for path in before} == before


def test_the_command_line_takes_a_pattern_in_place_of_a_tap(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", {"train": 3, "test": 3})
    model = ("--model", "own_vit", "--weights", "random")
    data = ("--data", f"folder:{tmp_path}/photos", "--cache", str(tmp_path / "caches"), "--workers", "0")
    result = run("extract", *model, *data, "--tap-module", PATTERN)
    assert result.exit_code == 0, result.output
    stores = list(tmp_path.glob("caches/*/*.zarr"))
    assert [TokenStore.open(store).tap for store in stores] == [f"module:{PATTERN}"] * 2
    both = run("extract", *model, *data, "--tap-module", PATTERN, "--tap", "block")
    refuses(both, "models.tap_and_module", tap="block", module=PATTERN)
    none = run("extract", *model, *data)
    refuses(none, "models.blocks_of_other_names")
    assert "--tap-module: 'layers.{i}.attn_norm'" in none.stderr
