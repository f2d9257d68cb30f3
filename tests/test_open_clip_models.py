"""CLIP towers: tokens equal those of independent hooks on the raw open_clip model; QuickGELU; what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from messages import raises
from model_errors import refuses_model
from PIL import Image
from timm.models import model_entrypoint, register_model
from torch import Tensor, nn

from layerbank import RequestError, WorkError
from layerbank.models.backbone import open_backbone

SIZE = 48
_TEXT = {"context_length": 4, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1}
_VISION = {"image_size": SIZE, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16}
_CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clip": {"vision_cfg": _VISION},
    "tiny-clip-quickgelu": {"vision_cfg": _VISION, "quick_gelu": True},
    "tiny-clipa": {"vision_cfg": _VISION | {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "tiny-custom": {"vision_cfg": _VISION | {"qk_norm": True, "scale_attn": True, "ls_init_value": 1.0}},
    "tiny-pooler": {"vision_cfg": _VISION | {"attentional_pool": True, "attn_pooler_heads": 2}},
    "tiny-coca": {
        "vision_cfg": _VISION | {"attentional_pool": True, "attn_pooler_heads": 2},
        "multimodal_cfg": {"context_length": 4, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "tiny-resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}},
}
_TRUNKS = {  # open_clip's names of what follows the trunk: pooling, projection
    "tiny-eva": ("eva02_base_patch16_clip_224", {"timm_pool": "token", "timm_proj": None}),
    "tiny-average": ("vit_tiny_patch16_224", {"timm_pool": "avg", "timm_proj": "linear"}),
    "tiny-siglip": ("vit_base_patch16_siglip_224", {"timm_pool": "map", "timm_proj": "none"}),
    "tiny-mlp": ("vit_tiny_patch16_224", {"timm_pool": "avg", "timm_proj": "mlp"}),
}


@pytest.fixture(scope="module", autouse=True)
def _tiny_architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Small relatives of open_clip's architectures, added as a user would add theirs."""
    folder = tmp_path_factory.mktemp("configs")
    configs = dict(_CONFIGS)
    for name, (trunk, adapter) in _TRUNKS.items():
        embed_dim = 24 if adapter["timm_proj"] != "none" else 32
        vision = {"timm_model_name": _shrunk(trunk, f"trunk_of_{name}"), "image_size": SIZE, **adapter}
        configs[name] = {"embed_dim": embed_dim, "vision_cfg": vision}
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, "text_cfg": _TEXT} | config))
    open_clip.add_model_config(folder)


def _shrunk(name: str, short: str) -> str:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        shape = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": SIZE}
        return model_entrypoint(name)(pretrained=pretrained, **(shape | options))

    build.__name__ = short
    build.__module__ = __name__
    register_model(build)
    return short


@pytest.fixture(scope="module")
def raw_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, str]]:
    """Raw open_clip models whose every weight is random, and the file of those weights."""
    folder = tmp_path_factory.mktemp("weights")
    made: dict[str, tuple[Any, str]] = {}

    def raw(name: str) -> tuple[Any, str]:
        if name not in made:
            model = open_clip.create_model(name).eval()
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            path = str(folder / f"{name}.safetensors")
            safetensors.torch.save_file(model.state_dict(), path)
            made[name] = (model, path)
        return made[name]

    return raw


def _images(size: int = SIZE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _hooked(model: Any, modules: list[str], images: Tensor) -> list[Tensor]:
    """Outputs of modules, by hooks of the test's own while the whole CLIP model encodes images."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output}))
        for name in modules
    ]
    with torch.inference_mode():
        model.encode_image(images)
    for handle in handles:
        handle.remove()
    return [seen[name] for name in modules]


def _pools(model: Any) -> bool:
    return getattr(model.visual, "attn_pool", None) is not None


def _final(name: str, model: Any, last: Tensor) -> Tensor:
    """`final` written out for each kind of tower."""
    visual = model.visual
    with torch.inference_mode():
        if _pools(model):
            return visual.attn_pool.ln_k(last)
        if name in _CONFIGS:
            return torch.einsum("btd,de->bte", visual.ln_post(last), visual.proj)
        trunk = visual.trunk
        normed = trunk.fc_norm(trunk.norm(last))
        if name == "tiny-eva":
            return torch.einsum("btd,ed->bte", normed, trunk.head.weight) + trunk.head.bias
        if name == "tiny-average":
            return torch.einsum("btd,ed->bte", normed, visual.head.proj.weight)
        return normed


@pytest.mark.parametrize("tap", ["norm2", "block"])
@pytest.mark.parametrize(
    "name", ["tiny-clip", "tiny-clip-quickgelu", "tiny-clipa", "tiny-custom", "tiny-pooler", "tiny-coca", *_TRUNKS]
)
def test_tokens_equal_those_of_an_independent_hook_on_the_raw_model(name: str, tap: str, raw_models: Any) -> None:
    model, path = raw_models(name)
    native = name in _CONFIGS
    blocks = "visual.transformer.resblocks" if native else "visual.trunk.blocks"
    leaf = {"block": "", "norm2": ".ln_2" if native else ".norm2"}[tap]
    *expected, last = _hooked(model, [f"{blocks}.{i}{leaf}" for i in range(3)] + [f"{blocks}.2"], _images())
    expected.append(_final(name, model, last))
    backbone = open_backbone(f"open_clip/{name}", weights=path, tap=tap)
    prefix = 0 if name == "tiny-siglip" else 1
    assert (backbone.layout.grid_size, backbone.layout.num_prefix_tokens, backbone.layout.has_cls) == (
        (3, 3),
        prefix,
        bool(prefix),
    )
    kinds = ["ap", "grid3", "patch"] + ["cls"] * prefix
    tokens = backbone.compile(backbone.levels, kinds)(_images())
    for level, full in zip(backbone.levels, expected, strict=True):
        patches = full[:, prefix:]
        by_kind = {"ap": patches.mean(1), "grid3": patches, "patch": patches, "cls": full[:, 0]}
        for kind in kinds:
            got = tokens[level][kind]
            torch.testing.assert_close(got, by_kind[kind], rtol=1e-5, atol=1e-5, msg=f"{level} {kind}")
            assert tuple(got.shape[1:]) == backbone.row_shape(level, kind)


def test_final_of_clip_is_the_image_embedding_at_the_class_token(raw_models: Any) -> None:
    model, path = raw_models("tiny-clip")
    backbone = open_backbone("open_clip/tiny-clip", weights=path)
    tokens = backbone.compile(["final"], ["cls", "ap"])(_images())["final"]
    with torch.inference_mode():
        torch.testing.assert_close(tokens["cls"], model.encode_image(_images()))
    assert backbone.embed_dim == {"block.0": 32, "block.1": 32, "block.2": 32, "final": 24}


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_casts_the_projection_too(precision: str, raw_models: Any) -> None:
    path = raw_models("tiny-clip")[1]
    half = open_backbone("open_clip/tiny-clip", weights=path, precision=precision)
    full = open_backbone("open_clip/tiny-clip", weights=path)
    assert half.weights_digest == full.weights_digest
    got, exact = (b.compile(["final"], ["ap"])(_images())["final"]["ap"] for b in (half, full))
    assert got.dtype == getattr(torch, precision)
    assert (got.float() - exact).norm() / exact.norm() < 2e-2


# ---- QuickGELU


@pytest.mark.parametrize(
    ("model_id", "activation"),
    [
        ("open_clip/ViT-B-32/openai", "QuickGELU"),  # the tag decides, whatever the architecture's name says
        ("open_clip/ViT-B-32-quickgelu/openai", "QuickGELU"),
        ("open_clip/ViT-B-32/laion2b_s34b_b79k", "GELU"),
    ],
)
def test_weights_trained_with_quickgelu_run_it(model_id: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open_clip.get_model_config
    small = {"image_size": SIZE, "layers": 1, "width": 64, "patch_size": 16}
    monkeypatch.setattr("open_clip.factory.get_model_config", lambda name: real(name) | {"vision_cfg": dict(small)})
    backbone = open_backbone(model_id, weights="random")
    assert [type(block.mlp.gelu).__name__ for block in backbone.tower.blocks] == [activation]
    assert f"activation={activation}" in backbone.architecture


def test_a_file_for_a_quickgelu_architecture_runs_it(raw_models: Any) -> None:
    path = raw_models("tiny-clip")[1]
    fast = open_backbone("open_clip/tiny-clip-quickgelu", weights=path)
    plain = open_backbone("open_clip/tiny-clip", weights=path)
    assert isinstance(fast.tower.blocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert isinstance(plain.tower.blocks[0].mlp.gelu, nn.GELU)
    assert fast.weights_digest == plain.weights_digest
    assert fast.architecture != plain.architecture


# ---- weights and identity


def test_random_weights_depend_on_the_seed_alone() -> None:
    first = open_backbone("open_clip/tiny-clip", weights="random", seed=3)
    torch.manual_seed(9)
    assert open_backbone("open_clip/tiny-clip", weights="random", seed=3).weights_digest == first.weights_digest
    assert open_backbone("open_clip/tiny-clip", weights="random", seed=4).weights_digest != first.weights_digest


def test_a_file_may_hold_the_whole_model_or_its_vision_tower(raw_models: Any, tmp_path: Path) -> None:
    model, path = raw_models("tiny-clip")
    torch.save(model.visual.state_dict(), tmp_path / "visual.pt")
    whole = open_backbone("open_clip/tiny-clip", weights=path)
    tower = open_backbone("open_clip/tiny-clip", weights=str(tmp_path / "visual.pt"))
    assert tower.weights_digest == whole.weights_digest


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip"])
def test_another_image_size_resamples_the_positions(name: str, raw_models: Any) -> None:
    backbone = open_backbone(f"open_clip/{name}", weights=raw_models(name)[1], image_size=64)
    assert (backbone.image_size, backbone.layout.grid_size) == ((64, 64), (4, 4))
    assert "image=64x64" in backbone.architecture
    assert backbone.transform_id.startswith("resize 64x64")
    tokens = backbone.compile(["block.2"], ["patch"])(_images(64))
    assert tokens["block.2"]["patch"].shape == (2, 16, 32)


def test_the_transform_is_open_clips_own_and_travels_to_worker_processes() -> None:
    backbone = open_backbone("open_clip/tiny-clip", weights="random")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 50, 3), dtype=np.uint8))
    _, _, expected = open_clip.create_model_and_transforms("tiny-clip")
    torch.testing.assert_close(pickle.loads(pickle.dumps(backbone.transform))(image), expected(image))
    assert backbone.transform_id == (
        "resize 48x48 shortest bicubic fill 0; crop 48x48; mean 0.481455 0.457827 0.408211; std 0.26863 0.261303 0.275777"
    )


def test_without_a_tag_siglip_is_still_prepared_as_siglip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "tiny-siglip", open_clip.pretrained._PRETRAINED["ViT-B-16-SigLIP"]
    )
    backbone = open_backbone("open_clip/tiny-siglip", weights="random")
    assert backbone.transform_id == (
        "resize 48x48 squash bicubic fill 0; crop 48x48; mean 0.5 0.5 0.5; std 0.5 0.5 0.5"
    )


# ---- the hub's cache on disk stands in for the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict[str, Any], Any], None]]:
    """Put a repository into a hub cache of its own, which is all that an offline machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def put(repository: str, files: dict[str, Any], state: dict[str, Tensor]) -> None:
        commit = "0" * 40
        home = tmp_path / ("models--" + repository.replace("/", "--"))
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(commit)
        folder = home / "snapshots" / commit
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        weights = "open_clip_model.safetensors" if "open_clip_config.json" in files else "model.safetensors"
        safetensors.torch.save_file(state, str(folder / weights))

    return put


def test_a_repository_of_open_clip_is_opened_by_its_own_description(hub: Any, raw_models: Any) -> None:
    model, path = raw_models("tiny-clip")
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": _VISION, "text_cfg": _TEXT},
        "preprocess_cfg": {"mean": [0.5] * 3},
    }
    hub("someone/clip", {"open_clip_config.json": config}, model.state_dict())
    backbone = open_backbone("hf-hub:someone/clip")
    assert backbone.model_id == "hf-hub:someone/clip"
    assert backbone.weights_digest == open_backbone("open_clip/tiny-clip", weights=path).weights_digest
    assert "mean 0.5 0.5 0.5" in backbone.transform_id


def test_a_repository_of_timm_is_opened_by_timm(hub: Any) -> None:
    shape = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": SIZE}
    model = model_entrypoint("vit_tiny_patch16_224")(num_classes=5, **shape)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": shape,
        "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, SIZE, SIZE], "classifier": "head", "num_classes": 5},
    }
    hub("someone/vit", {"config.json": config}, model.state_dict())
    backbone = open_backbone("hf-hub:someone/vit")
    assert (backbone.depth, backbone.image_size, backbone.embed_dim["final"]) == (3, (SIZE, SIZE), 32)
    torch.testing.assert_close(backbone.tower.model.blocks[2].mlp.fc2.weight, model.blocks[2].mlp.fc2.weight)


def test_weights_in_the_hubs_cache_need_no_network(hub: Any, raw_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = raw_models("tiny-clip")
    described = {"someone": {"hf_hub": "someone/tiny/", "mean": (0.5,) * 3, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", described)
    hub("someone/tiny", {"open_clip_config.json": {}}, model.state_dict())
    backbone = open_backbone("open_clip/tiny-clip/someone")
    assert backbone.weights_digest == open_backbone("open_clip/tiny-clip", weights=path).weights_digest
    assert "activation=QuickGELU" in backbone.architecture  # the tag says so
    assert "mean 0.5 0.5 0.5" in backbone.transform_id


# ---- what is refused


RANDOM = {"weights": "random"}


def test_a_wrong_architecture_is_answered_with_the_nearest_names() -> None:
    values = {"library": "open_clip", "name": "ViT-B-23", "advice": "Did you mean 'ViT-B-32'?"}
    refuses_model("models.unknown_model", "open_clip/ViT-B-23/openai", **values)


def test_a_wrong_or_missing_tag_is_answered_with_the_tags_there_are() -> None:
    tags = "openai, laion400m_e31, laion400m_e32, metaclip_400m, metaclip_fullcc"
    refuses_model("models.unknown_tag", "open_clip/ViT-B-32-quickgelu/opena", RANDOM, tag="opena", tags=tags)
    refuses_model("models.no_tag", "open_clip/ViT-L-14-336-quickgelu", tags="openai")
    refuses_model("models.no_pretrained_weights", "open_clip/tiny-clip", model="open_clip/tiny-clip")


def test_towers_without_blocks_are_refused() -> None:
    children = "conv1, bn1, act1, conv2, bn2, act2, conv3, bn3, act3, avgpool, layer1, layer2, ..."
    refuses_model("models.no_blocks", "open_clip/tiny-resnet", RANDOM, type="ModifiedResNet", children=children)


@pytest.mark.parametrize(
    ("name", "pattern", "stem"),
    [
        ("tiny-clip", "transformer.resblocks.{i}.ln_1", "transformer.resblocks"),
        ("tiny-eva", "trunk.blocks.{i}.norm1", "trunk.blocks"),
    ],
)
def test_a_pattern_of_module_names_begins_inside_the_vision_tower(
    name: str, pattern: str, stem: str, raw_models: Any
) -> None:
    model, path = raw_models(name)
    backbone = open_backbone(f"open_clip/{name}", weights=path, tap=f"module:{pattern}")
    leaf = pattern.rpartition(".")[2]
    expected = _hooked(model, [f"visual.{stem}.{i}.{leaf}" for i in range(3)], _images())
    tokens = backbone.compile(backbone.levels, ["patch"])(_images())
    for level, full in zip(backbone.levels, expected, strict=False):
        torch.testing.assert_close(tokens[level]["patch"], full[:, 1:])
    options = RANDOM | {"tap": f"module:{stem}.{{i}}.ln_9"}
    refuses_model("models.no_such_module", f"open_clip/{name}", options, missing=f"{stem}.0.ln_9", count=3)


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip"])
def test_image_sizes_that_do_not_fit_the_patches_are_refused(name: str) -> None:
    values = {"model": f"open_clip/{name}", "size": 50, "patch": 16, "one": 48, "other": 64}
    refuses_model("models.image_size_of_no_patches", f"open_clip/{name}", RANDOM | {"image_size": 50}, **values)


def test_a_siglip_tower_says_that_it_has_no_class_token() -> None:
    with raises("models.no_class_token", RequestError):
        open_backbone("open_clip/tiny-siglip", weights="random").compile(["final"], ["cls"])


def test_weights_that_do_not_fit_are_refused_with_the_first_keys(raw_models: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "wrong.pt")
    state = dict(raw_models("tiny-clip")[0].visual.state_dict())
    del state["ln_post.bias"]
    torch.save(state | {"extra": torch.zeros(2)}, path)
    complaints = "missing ln_post.bias; unexpected extra"
    values = {"source": f"--weights {path}", "model": "VisionTransformer", "complaints": complaints}
    refuses_model("models.weights_mismatch", "open_clip/tiny-clip", {"weights": path}, **values)


def test_a_hub_out_of_reach_is_said_with_the_way_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model_id = "open_clip/ViT-B-32-quickgelu/openai"
    refuses_model("models.hub_unreachable", model_id, kind=WorkError, model=model_id)
