"""Tokens of every timm family equal those of independent hooks on the raw model; and what open_backbone refuses."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from hub_server import serve_dataset
from messages import raises
from model_errors import refuses_model
from PIL import Image
from timm.models import register_model
from torch import Tensor, nn

from layerbank import RequestError, WorkError
from layerbank.models.backbone import Backbone, open_backbone, usable_device
from layerbank.models.families import find_family
from layerbank.models.libraries.timm_models import tower_from_timm
from layerbank.models.listing import describe
from layerbank.models.request import ModelRequest
from layerbank.models.vit_parts import layout_of

SIZE, DEPTH = 48, 3  # 3 x 3 patches of 16


def _shrunk(name: str, **shape: Any) -> str:
    """Register a timm model like another one, but tiny, and return its name."""

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return timm.models.model_entrypoint(name)(pretrained=pretrained, **(shape | options))

    build.__name__ = f"shrunk_{name}"
    build.__module__ = __name__
    register_model(build)
    return build.__name__


def _vit(**more: Any) -> dict[str, Any]:
    return {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, **more}


# name, what its prefix is: (CLS, other, registers)
FAMILIES = {
    _shrunk("vit_tiny_patch16_224", **_vit()): (1, 0, 0),
    _shrunk("vit_small_patch14_reg4_dinov2", **_vit(patch_size=16)): (1, 0, 4),
    _shrunk("deit_tiny_distilled_patch16_224", **_vit()): (1, 1, 0),
    _shrunk("deit3_small_patch16_224", **_vit()): (1, 0, 0),
    _shrunk("vit_base_patch16_clip_quickgelu_224", **_vit()): (1, 0, 0),
    _shrunk("vit_base_patch16_siglip_224", **_vit()): (0, 0, 0),
    _shrunk("vit_base_patch16_siglip_gap_224", **_vit()): (0, 0, 0),
    _shrunk("vit_little_patch16_reg4_gap_256", **_vit()): (0, 0, 4),
    _shrunk("beit_base_patch16_224", **_vit()): (1, 0, 0),
    _shrunk("eva02_tiny_patch14_224", **_vit(patch_size=16)): (1, 0, 0),
    _shrunk("eva02_base_patch16_clip_224", **_vit()): (1, 0, 0),
    _shrunk("vit_small_patch16_dinov3", **_vit(embed_dim=64)): (1, 0, 4),
    _shrunk("vit_small_patch14_dinov2", **_vit(patch_size=16)): (1, 0, 0),
    _shrunk("beitv2_base_patch16_224", **_vit()): (1, 0, 0),
    _shrunk("eva_giant_patch14_224", **_vit(patch_size=16)): (1, 0, 0),
    _shrunk("flexivit_small", **_vit()): (1, 0, 0),
    _shrunk("vit_relpos_small_patch16_224", **_vit()): (0, 0, 0),
    _shrunk("vit_pe_core_tiny_patch16_384", **_vit(embed_dim=64)): (1, 0, 0),
    _shrunk("vit_base_patch16_rope_mixed_224", **_vit(embed_dim=64)): (1, 0, 0),
    _shrunk("aimv2_large_patch14_224", **_vit(patch_size=16)): (0, 0, 0),
    _shrunk("naflexvit_base_patch16_gap", **_vit()): (0, 0, 4),
    _shrunk("naflexvit_base_patch16_siglip", **_vit()): (0, 0, 0),
}
PLAIN = next(iter(FAMILIES))


@pytest.fixture(scope="module")
def raw_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, str]]:
    """Raw timm models with weights far from their initial values (LayerScale 1, no zeros), and the file of those weights."""
    folder = tmp_path_factory.mktemp("weights")
    made: dict[str, tuple[nn.Module, str]] = {}

    def raw(name: str) -> tuple[nn.Module, str]:
        if name not in made:
            model = timm.create_model(name, img_size=SIZE, num_classes=7).eval()
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(torch.ones(()) if "gamma" in key else parameter + 0.05 * noise)
            path = str(folder / f"{name}.safetensors")
            safetensors.torch.save_file(model.state_dict(), path)
            made[name] = (model, path)
        return made[name]

    return raw


def _images(batch: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def _hooked(model: nn.Module, module: str, images: Tensor) -> Tensor:
    """Output of one module, by a hook of the test's own on the raw model's usual forward."""
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.inference_mode():
        model(images)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def _kinds_by_loops(tokens: Tensor, prefix: tuple[int, int, int], side: int) -> dict[str, Tensor]:
    """PROTOCOL section 1 word by word, in float64."""
    start = sum(prefix)
    patches = tokens[:, start:].double().unflatten(1, (side, side))
    cells = [patches[:, 2 * r // 2 : 2 * r // 2 + 2, c : c + 2].mean((1, 2)) for r in range(2) for c in range(2)]
    return {
        **({"cls": tokens[:, 0]} if prefix[0] else {}),
        "ap": patches.mean((1, 2)),
        "grid1": patches.mean((1, 2))[:, None],
        "grid2": torch.stack(cells, 1),  # 3 x 3 patches: cells of 2 x 2 that share a row and a column
        "grid3": patches.flatten(1, 2),
        "patch": tokens[:, start:],
        **({"register": tokens[:, start - prefix[2] : start]} if prefix[2] else {}),
    }


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tap", ["norm2", "block"])
def test_tokens_equal_those_of_an_independent_hook_on_the_raw_model(name: str, tap: str, raw_models: Any) -> None:
    model, path = raw_models(name)
    prefix, images = FAMILIES[name], _images()
    backbone = open_backbone(name, weights=path, tap=tap, image_size=SIZE)
    assert (backbone.depth, backbone.layout.grid_size, backbone.layout.num_prefix_tokens) == (
        DEPTH,
        (3, 3),
        sum(prefix),
    )
    assert (backbone.layout.has_cls, backbone.layout.num_register_tokens) == (bool(prefix[0]), prefix[2])
    leaf = ".norm2" if tap == "norm2" else ""
    kinds = list(_kinds_by_loops(torch.zeros(1, sum(prefix) + 9, 4), prefix, 3))
    tokens = backbone.compile(backbone.levels, kinds)(images)
    assert list(tokens) == backbone.levels == ["block.0", "block.1", "block.2", "final"]
    levels = {}
    for index in range(DEPTH):
        levels[f"block.{index}"] = _hooked(model, f"blocks.{index}{leaf}", images)
    last = _hooked(model, "norm", images)
    with torch.inference_mode():
        levels["final"] = model.fc_norm(last) if isinstance(model.norm, nn.Identity) else last
    for level, seen in levels.items():
        for kind, expected in _kinds_by_loops(seen, prefix, 3).items():
            got = tokens[level][kind]
            assert tuple(got.shape[1:]) == backbone.row_shape(level, kind)
            assert got.is_contiguous()
            torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5, msg=f"{level} {kind}")


@pytest.mark.parametrize("name", FAMILIES)
def test_tap_block_equals_timms_forward_intermediates(name: str, raw_models: Any) -> None:
    model, path = raw_models(name)
    backbone = open_backbone(name, weights=path, tap="block", image_size=SIZE)
    tokens = backbone.compile(backbone.levels[:-1], ["patch"])(_images())
    with torch.inference_mode():
        intermediates = model.forward_intermediates(_images(), output_fmt="NLC", intermediates_only=True)
    for level, expected in zip(backbone.levels[:-1], intermediates, strict=True):
        torch.testing.assert_close(tokens[level]["patch"], expected)


def test_levels_of_a_model_with_layer_scale_one_differ(raw_models: Any) -> None:
    name = "shrunk_vit_small_patch14_reg4_dinov2"
    backbone = open_backbone(name, weights=raw_models(name)[1], image_size=SIZE)
    tokens = backbone.compile(backbone.levels, ["cls"])(_images())
    levels = [tokens[level]["cls"] for level in backbone.levels]
    for i, one in enumerate(levels):
        for other in levels[i + 1 :]:
            assert (one - other).norm() / one.norm() > 0.1


def test_only_the_levels_and_kinds_asked_for_leave_the_pass() -> None:
    backbone = _random()
    tokens = backbone.compile(["final", "block.1"], ["ap"])(_images())
    assert [(level, list(kinds)) for level, kinds in tokens.items()] == [
        ("final", ["ap"]),
        ("block.1", ["ap"]),
    ]


def test_one_pass_serves_all_levels_and_a_function_sleeps_while_another_runs() -> None:
    backbone = _random()
    passes: list[int] = []
    backbone.tower.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    one = backbone.compile(backbone.levels, ["cls", "ap", "grid3", "patch"])
    other = backbone.compile(["final"], ["cls"])
    assert backbone.compile(backbone.levels, ["cls", "ap", "grid3", "patch"]) is one
    first, second = one(_images()), other(_images())
    assert len(passes) == 2
    torch.testing.assert_close(first["final"]["cls"], second["final"]["cls"], rtol=0, atol=0)


def test_tokens_share_no_memory_with_the_activation() -> None:
    tokens = _random().compile(["block.0"], ["cls", "patch"])(_images())
    for kind in tokens["block.0"].values():
        assert kind.untyped_storage().nbytes() == kind.numel() * kind.element_size()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_casts_weights_and_tokens(precision: str) -> None:
    full, half = _random(), _random(precision=precision)
    assert half.weights_digest == full.weights_digest
    assert {p.dtype for p in half.tower.model.parameters()} == {getattr(torch, precision)}
    tokens, exact = (b.compile(b.levels, ["cls", "ap", "grid2"])(_images()) for b in (half, full))
    for level in full.levels:
        for kind in ("cls", "ap", "grid2"):
            assert tokens[level][kind].dtype == getattr(torch, precision)
            error = (tokens[level][kind].float() - exact[level][kind]).norm() / exact[level][kind].norm()
            assert error < (2e-2 if precision == "bfloat16" else 2e-3)


def test_the_function_can_be_compiled_into_one_graph() -> None:
    backbone = _random()
    function = backbone.compile(backbone.levels, ["cls", "ap", "grid2"])
    compiled = torch.compile(function.forward, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        expected, got = function(_images()), compiled(_images())
    for level in backbone.levels:
        for kind in ("cls", "ap", "grid2"):
            torch.testing.assert_close(got[level][kind], expected[level][kind])


# ---- weights and identity


def _random(**options: Any) -> Backbone:
    return open_backbone(PLAIN, weights="random", image_size=SIZE, **options)


def test_random_weights_depend_on_the_seed_alone_and_leave_torchs_generator_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _random(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert _random(seed=3).weights_digest == first.weights_digest
    assert _random(seed=4).weights_digest != first.weights_digest


def test_a_bare_name_is_a_timm_name() -> None:
    assert _random().model_id == f"timm/{PLAIN}"
    assert open_backbone(f"timm/{PLAIN}", weights="random", image_size=SIZE).architecture == _random().architecture


def test_the_digest_sees_every_weight_that_takes_part_and_not_the_classifier(raw_models: Any, tmp_path: Path) -> None:
    model, path = raw_models(PLAIN)
    digest = open_backbone(PLAIN, weights=path, image_size=SIZE).weights_digest
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for key, same in (("head.bias", True), ("blocks.1.mlp.fc2.bias", False)):
        changed = state | {key: state[key] + 1}
        torch.save({"state_dict": changed, "epoch": 3}, tmp_path / "changed.pt")
        opened = open_backbone(PLAIN, weights=str(tmp_path / "changed.pt"), image_size=SIZE)
        assert (opened.weights_digest == digest) is same


def test_weights_of_another_image_size_are_resampled_as_timm_does_it(raw_models: Any) -> None:
    _, path = raw_models(PLAIN)
    backbone = open_backbone(PLAIN, weights=path, image_size=64)
    expected = timm.layers.resample_abs_pos_embed(
        safetensors.torch.load_file(path)["pos_embed"], new_size=[4, 4], old_size=[3, 3]
    )
    torch.testing.assert_close(backbone.tower.model.pos_embed.detach(), expected)


def test_the_identity_names_model_size_and_preparation() -> None:
    backbone = _random()
    assert backbone.architecture == f"timm/{PLAIN} image=48x48 final=norm positions=bicubic antialiased"
    assert backbone.transform_id == "resize 53x53 center bicubic; crop 48x48; mean 0.5 0.5 0.5; std 0.5 0.5 0.5"
    assert len(backbone.weights_digest) == 32


def test_a_tag_names_weights_and_is_no_part_of_the_architecture() -> None:
    tagged, bare = (
        open_backbone(name, weights="random", image_size=SIZE)
        for name in ("vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224")
    )
    assert tagged.model_id != bare.model_id
    assert tagged.architecture == bare.architecture


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_base_patch16_224.mae"])
def test_dinov2_and_mae_are_cropped_as_their_authors_evaluate_them(name: str) -> None:
    model = timm.create_model(name, img_size=224, depth=1)
    assert tower_from_timm(model.eval(), name, 224).transform_id == (
        "resize 256x256 center bicubic; crop 224x224; mean 0.485 0.456 0.406; std 0.229 0.224 0.225"
    )


def test_the_transform_is_timms_own_and_travels_to_worker_processes() -> None:
    backbone = _random()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 50, 3), dtype=np.uint8))
    tensor = pickle.loads(pickle.dumps(backbone.transform))(image)
    small = image.resize((53, 74), Image.Resampling.BICUBIC).crop((2, 13, 50, 61))
    expected = (np.asarray(small, dtype=np.float32) / 255 - 0.5) / 0.5
    assert (tensor.shape, tensor.dtype) == ((3, 48, 48), torch.float32)
    np.testing.assert_allclose(tensor.permute(1, 2, 0), expected, atol=1e-6)


# ---- what is refused


RANDOM: dict[str, Any] = {"weights": "random", "image_size": SIZE}


def test_a_wrong_name_is_answered_with_the_nearest_names() -> None:
    names = "'vit_small_patch16_224', 'deit_small_patch16_224', 'vit_small_patch8_224' or 'deit3_small_patch16_224'"
    values = {"model": "timm/vit_smal_patch16_224", "library": "timm", "name": "vit_smal_patch16_224"}
    refuses_model(
        "models.unknown_model", "timm/vit_smal_patch16_224", RANDOM, advice=f"Did you mean {names}?", **values
    )
    values = {"model": "timm/zzzzzzzzzzzz", "advice": "`layerbank models` lists them."}
    refuses_model("models.unknown_model", "zzzzzzzzzzzz", RANDOM, **values)


@pytest.mark.parametrize("name", ["dinov2", "ViT-B/16", "clip", "siglip"])
def test_a_short_name_is_answered_with_ids_that_can_be_opened(name: str) -> None:
    error = refuses_model("models.unknown_model", name)
    suggestions = re.findall(r"'([^']+)'", error.values["advice"])
    assert suggestions
    for suggestion in suggestions:
        family = find_family(suggestion)
        assert list(family.tags(family.without_tag(suggestion)))
        assert describe(suggestion).depth >= 1


def test_a_wrong_family_is_answered_with_the_nearest_one() -> None:
    for wrong, nearest in (("tim/vit_small_patch16_224", "timm"), ("openclip/ViT-B-32/openai", "open_clip")):
        values = {"noun": "model family", "name": wrong.partition("/")[0], "advice": f"Did you mean {nearest!r}?"}
        refuses_model("layerbank.unknown_part", wrong, RANDOM, **values)


def test_a_wrong_tag_is_answered_with_the_tags_there_are() -> None:
    tags = "augreg_in21k, augreg_in21k_ft_in1k, mae, orig_in21k"
    values = {"model": "timm/vit_large_patch16_224.may", "tag": "may", "tags": tags}
    refuses_model("models.unknown_tag", "vit_large_patch16_224.may", RANDOM, **values)


def test_pretrained_weights_that_do_not_exist_are_refused() -> None:
    refuses_model("models.no_pretrained_weights", PLAIN, RANDOM | {"weights": None}, model=f"timm/{PLAIN}")


def test_openai_clip_weights_of_timm_are_refused_with_gelu() -> None:
    values = {"model": "timm/vit_base_patch16_clip_224.openai", "sibling": "vit_base_patch16_clip_quickgelu_224"}
    refuses_model("models.openai_clip_with_gelu", "vit_base_patch16_clip_224.openai", RANDOM, **values)


def test_a_model_without_blocks_is_refused_with_what_it_has() -> None:
    children = "conv1, bn1, act1, maxpool, layer1, layer2, layer3, layer4, global_pool, fc"
    values = {"model": "timm/resnet18", "type": "ResNet", "children": children}
    refuses_model("models.no_blocks", "resnet18", {"weights": "random"}, **values)
    refuses_model("models.image_size_is_fixed", "resnet18", RANDOM, model="timm/resnet18")
    error = refuses_model("models.no_blocks", "tiny_vit_5m_224", {"weights": "random"}, type="TinyVit")
    assert error.values["children"] in ("patch_embed, stages, norm_head", "patch_embed, stages, head")


@pytest.mark.parametrize("name", ["resnet50", "open_clip/RN50/openai"])
def test_a_model_without_blocks_is_refused_before_its_weights_are_downloaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuses_model("models.no_blocks", name)


def test_a_model_without_a_patch_embedding_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    with raises("models.no_patch_embedding", RequestError, model="mine", type="Sequential"):
        layout_of(model, "mine", (SIZE, SIZE), chosen=False)


def test_blocks_that_do_not_carry_the_class_token_are_refused() -> None:
    name = _shrunk("cait_xxs24_224", embed_dim=32, depth=1, num_heads=2)
    values = {"model": f"timm/{name}", "level": "block.0", "prefix": 1, "rows": 3, "columns": 3}
    refuses_model("models.other_tokens", name, RANDOM, found="shape [1, 9, 32]", **values)


@pytest.mark.parametrize(
    ("name", "got", "named"),
    [
        (
            "vit_small_patch16_18x2_224",
            "ParallelThingsBlock with attns, ffns",
            "attns.0.norm, attns.1.norm, ffns.0.norm, ffns.1.norm, , attns.0, attns.1, ffns.0",
        ),
        (
            "eva02_enormous_patch14_clip_224",
            "EvaBlockPostNorm, whose norm2 stands elsewhere",
            ", norm1, norm2, attn, mlp, attn.proj, mlp.fc1, mlp.act",
        ),
        ("vit_relpos_base_patch16_clsgap_224", None, ""),
        (
            "vit_relpos_base_patch16_rpn_224",
            "ResPostRelPosBlock, whose norm2 stands elsewhere",
            "norm1, norm2, , attn, mlp, attn.qkv, attn.proj, mlp.fc1",
        ),
    ],
)
def test_blocks_without_a_norm_between_attention_and_mlp_are_refused_for_tap_norm2(
    name: str, got: str | None, named: str
) -> None:
    shape = _vit(patch_size=16)
    tiny = _shrunk(name, **shape)
    assert open_backbone(tiny, weights="random", image_size=SIZE, tap="block").depth == DEPTH
    if got is None:
        assert open_backbone(tiny, weights="random", image_size=SIZE).depth == DEPTH
        return
    candidates = ", ".join(f"blocks.{{i}}.{module}".rstrip(".") for module in named.split(", "))
    values = {"model": f"timm/{tiny}", "norm": "norm2", "found": got, "candidates": candidates}
    refuses_model("models.no_second_norm", tiny, RANDOM, **values)


def test_image_sizes_that_do_not_fit_the_patches_are_refused() -> None:
    for size, one, other in ((50, 48, 64), (9, 16, 32)):
        values = {"model": f"timm/{PLAIN}", "size": size, "patch": 16, "one": one, "other": other}
        refuses_model("models.image_size_of_no_patches", PLAIN, RANDOM | {"image_size": size}, **values)


def test_a_models_own_size_is_taken_as_its_authors_evaluate_it_even_if_patches_leave_a_border() -> None:
    name = _shrunk("vit_so400m_patch14_siglip_384", **_vit())
    backbone = open_backbone(name, weights="random")
    assert (backbone.image_size, backbone.layout.grid_size) == ((384, 384), (27, 27))
    options = RANDOM | {"image_size": 384}
    refuses_model("models.image_size_of_no_patches", name, options, size=384, patch=14, one=378, other=392)


def test_levels_kinds_taps_devices_and_precisions_that_do_not_exist_are_refused() -> None:
    backbone = open_backbone("shrunk_vit_base_patch16_siglip_224", weights="random", image_size=SIZE)
    with raises("models.no_class_token", RequestError):
        backbone.compile(["final"], ["ap", "cls"])
    with raises("models.unknown_level", RequestError, name="block.3", last="block.2", advice="Did you mean 'block.2'?"):
        backbone.row_shape("block.3", "ap")
    refuses_model("models.unknown_tap", PLAIN, RANDOM | {"tap": "norm1"}, tap="norm1", taps="norm2 or block")
    options = RANDOM | {"precision": "float64"}
    refuses_model("models.unknown_precision", PLAIN, options, precisions="float32, float16, bfloat16")
    refuses_model("models.unusable_device", PLAIN, RANDOM | {"device": "gpu"}, device="gpu")


def test_the_check_of_a_cuda_device_does_not_open_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    before = torch.cuda.is_initialized()
    assert usable_device("cuda:1") == torch.device("cuda:1")
    with raises("models.unusable_device", RequestError, device="cuda:2"):
        usable_device("cuda:2")
    assert torch.cuda.is_initialized() == before


def test_weights_files_that_do_not_fit_are_refused_with_the_first_keys(tmp_path: Path, raw_models: Any) -> None:
    model, _ = raw_models(PLAIN)
    state = dict(model.state_dict())
    path = str(tmp_path / "wrong.safetensors")

    def complaints(state: dict[str, Tensor]) -> str:
        safetensors.torch.save_file(state, path)
        values = {"source": f"--weights {path}", "model": f"timm/{PLAIN}"}
        return refuses_model("models.weights_mismatch", PLAIN, RANDOM | {"weights": path}, **values).values[
            "complaints"
        ]

    gone = [key for key in state if key.startswith("blocks.2.")]
    assert complaints({key: state[key] for key in state if key not in gone} | {"decoder.bias": torch.zeros(1)}) == (
        f"missing {', '.join(gone[:3])} and {len(gone) - 3} more; unexpected decoder.bias"
    )
    wide = complaints(state | {"norm.bias": torch.zeros(33)})
    assert wide.startswith("size mismatch for norm.bias: copying a param with shape torch.Size([33])")


def test_weights_files_that_are_none_are_refused(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pt"
    refuses_model("models.no_weights_file", PLAIN, RANDOM | {"weights": str(gone)}, path=gone)
    for name, content in (
        ("text.safetensors", b"hello, world, this is text"),
        ("text.pt", b"hello"),
        ("empty.pt", b""),
    ):
        (tmp_path / name).write_bytes(content)
        options = RANDOM | {"weights": str(tmp_path / name)}
        refuses_model("models.unreadable_weights", PLAIN, options, path=tmp_path / name)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # a pickled module would run code
    options = RANDOM | {"weights": str(tmp_path / "module.pt")}
    error = refuses_model("models.unreadable_weights", PLAIN, options, path=tmp_path / "module.pt")
    assert error.values["reason"].startswith("Weights only load failed")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    refuses_model("models.no_tensors", PLAIN, RANDOM | {"weights": str(tmp_path / "none.pt")}, type="dict")


def test_a_hub_out_of_reach_is_said_with_the_way_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no network is asked, the error is the hub's
    for model_id in ("timm/vit_tiny_patch16_224", "hf-hub:nobody/nothing"):
        refuses_model("models.hub_unreachable", model_id, kind=WorkError, model=model_id)


def test_a_repository_that_the_hub_does_not_have_is_a_wrong_request(tmp_path: Path) -> None:
    """From a real server that speaks the hub's protocol; its library reads the address when it is imported."""
    code = (
        "from layerbank.models.backbone import open_backbone\n"
        "from layerbank.errors import RequestError\n"
        "try: open_backbone('hf-hub:nobody/nothing')\n"
        "except RequestError as error: print(error.key, error.values['model'])\n"
    )
    with serve_dataset("someone/else", {}, []) as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
    assert result.stdout.split() == ["models.not_on_the_hub", "hf-hub:nobody/nothing"], result.stderr


def test_a_request_of_another_version_is_refused_by_the_keys_it_has() -> None:
    request = ModelRequest(model=PLAIN, weights="random")
    assert ModelRequest.from_dict(request.to_dict()) == request
    with raises("models.unknown_request_keys", RequestError, keys="colour"):
        ModelRequest.from_dict(request.to_dict() | {"colour": "red"})
