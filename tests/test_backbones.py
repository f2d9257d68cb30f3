"""Tokens of every timm family equal those of independent hooks on the raw model; and what open_backbone refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.models import register_model
from torch import Tensor, nn

from layerbank import RequestError, WorkError
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.timm_models import tower_from_timm

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
    assert (backbone.depth, backbone.grid_size, backbone.num_prefix_tokens) == (DEPTH, (3, 3), sum(prefix))
    assert (backbone.has_cls, backbone.num_register_tokens) == (bool(prefix[0]), prefix[2])
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


def _message(model_id: str, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        open_backbone(model_id, **{"weights": "random", "image_size": SIZE} | options)
    return str(caught.value)


def test_a_wrong_name_is_answered_with_the_nearest_names() -> None:
    assert _message("timm/vit_smal_patch16_224") == (
        "--model timm/vit_smal_patch16_224: expected the name of a timm model, got 'vit_smal_patch16_224', which timm "
        "does not know. Nearest: vit_small_patch16_224, deit_small_patch16_224, vit_small_patch8_224, "
        "deit3_small_patch16_224."
    )
    assert _message("zzzzzzzzzzzz").endswith("Nearest: none.")


def test_a_wrong_tag_is_answered_with_the_tags_there_are() -> None:
    assert _message("vit_large_patch16_224.may") == (
        "--model timm/vit_large_patch16_224.may: expected weights that timm has for vit_large_patch16_224, got tag 'may'. "
        "Tags: augreg_in21k, augreg_in21k_ft_in1k, mae, orig_in21k."
    )


def test_pretrained_weights_that_do_not_exist_are_refused() -> None:
    assert _message(PLAIN, weights=None) == (
        f"--model timm/{PLAIN}: expected a model that timm has weights for, got {PLAIN}, which has none. "
        'Give --weights FILE, or --weights "random".'
    )


def test_openai_clip_weights_of_timm_are_refused_with_gelu() -> None:
    assert _message("vit_base_patch16_clip_224.openai") == (
        "--model timm/vit_base_patch16_clip_224.openai: expected OpenAI's CLIP weights with the QuickGELU they were "
        "trained with, got vit_base_patch16_clip_224, which runs GELU. "
        "Use timm/vit_base_patch16_clip_quickgelu_224.openai."
    )


def test_a_model_without_blocks_is_refused_with_what_it_has() -> None:
    assert _message("resnet18", image_size=None) == (
        "timm/resnet18: expected a vision transformer with a list of blocks over one sequence of tokens, got ResNet with "
        "conv1, bn1, act1, maxpool, layer1, layer2, layer3, layer4, global_pool, fc. "
        "Choose a plain ViT, for example timm/vit_small_patch14_dinov2.lvd142m."
    )
    assert _message("resnet18").startswith(
        "--model timm/resnet18: expected a vision transformer whose image size can be chosen, got "
    )
    assert "got TinyVit with patch_embed, stages, norm_head" in _message("tiny_vit_5m_224", image_size=None).replace(
        "stages, head", "stages, norm_head"
    )


def test_blocks_that_do_not_carry_the_class_token_are_refused() -> None:
    name = _shrunk("cait_xxs24_224", embed_dim=32, depth=1, num_heads=2)
    assert _message(name) == (
        f"timm/{name}, level block.0: expected tokens [1, 1 + 3 x 3, D], got shape [1, 9, 32]. "
        "Choose a plain ViT: this one does not keep CLS, registers and patches in one sequence."
    )


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
    assert _message(tiny) == (
        f"timm/{tiny}, --tap norm2: expected blocks with a LayerNorm `norm2` between attention and MLP, got {got}. "
        f"Use --tap block, which every vision transformer has, or --tap-module with one of {candidates}."
    )


def test_image_sizes_that_do_not_fit_the_patches_are_refused() -> None:
    assert _message(PLAIN, image_size=50) == (
        f"timm/{PLAIN}, --image-size: expected a multiple of the patch size 16, got 50. Use 48 or 64."
    )
    assert _message(PLAIN, image_size=9).endswith("got 9. Use 16 or more.")


def test_a_models_own_size_is_taken_as_its_authors_evaluate_it_even_if_patches_leave_a_border() -> None:
    name = _shrunk("vit_so400m_patch14_siglip_384", **_vit())
    backbone = open_backbone(name, weights="random")
    assert (backbone.image_size, backbone.grid_size) == ((384, 384), (27, 27))
    assert _message(name, image_size=384).endswith("a multiple of the patch size 14, got 384. Use 378 or 392.")


def test_levels_kinds_taps_devices_and_precisions_that_do_not_exist_are_refused() -> None:
    backbone = open_backbone("shrunk_vit_base_patch16_siglip_224", weights="random", image_size=SIZE)
    with pytest.raises(RequestError) as caught:
        backbone.compile(["final"], ["ap", "cls"])
    assert str(caught.value) == (
        "token kind cls: expected a backbone with a class token, got one without. Ask for ap instead."
    )
    with pytest.raises(RequestError) as caught:
        backbone.row_shape("block.3", "ap")
    assert str(caught.value) == (
        "level: expected block.0 .. block.2, final, or a layer set (last, mid, quarterly, all), got 'block.3'. "
        "The nearest name is block.2."
    )
    assert _message(PLAIN, tap="norm1") == (
        "--tap: expected norm2 or block, got 'norm1'. `final` is a level of either tap."
    )
    assert _message(PLAIN, precision="float64") == (
        "--precision: expected float32, float16, bfloat16, got 'float64'. Name one of these."
    )
    assert _message(PLAIN, device="gpu").startswith("--device: expected a device that torch can use here, got 'gpu' (")


def test_weights_files_that_do_not_fit_are_refused_with_the_first_keys(tmp_path: Path, raw_models: Any) -> None:
    model, _ = raw_models(PLAIN)
    state = dict(model.state_dict())
    path = str(tmp_path / "wrong.safetensors")
    todo = "Give the model id (and image size) that these weights were made for."
    where = f"--weights {path}: expected exactly the weights of timm/{PLAIN}, got "

    def refused(state: dict[str, Tensor]) -> str:
        safetensors.torch.save_file(state, path)
        return _message(PLAIN, weights=path)

    gone = [key for key in state if key.startswith("blocks.2.")]
    assert refused({key: state[key] for key in state if key not in gone} | {"decoder.bias": torch.zeros(1)}) == (
        f"{where}missing {', '.join(gone[:3])} and {len(gone) - 3} more; unexpected decoder.bias. {todo}"
    )
    wide = refused(state | {"norm.bias": torch.zeros(33)})
    assert wide.startswith(f"{where}size mismatch for norm.bias: copying a param with shape torch.Size([33])")


def test_weights_files_that_are_none_are_refused(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pt"
    assert _message(PLAIN, weights=str(gone)) == (
        f'--weights {gone}: expected a file, or "random", got no such file. Give the path of a safetensors or torch file.'
    )
    for name, content in (
        ("text.safetensors", b"hello, world, this is text"),
        ("text.pt", b"hello"),
        ("empty.pt", b""),
    ):
        (tmp_path / name).write_bytes(content)
        message = _message(PLAIN, weights=str(tmp_path / name))
        assert "expected a safetensors file, or a torch file that holds tensors only, got " in message
        assert message.endswith("Save the model's state_dict() with safetensors.torch.save_file and give that file.")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # a pickled module would run code
    assert "that holds tensors only, got Weights only load failed" in _message(
        PLAIN, weights=str(tmp_path / "module.pt")
    )
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    assert _message(PLAIN, weights=str(tmp_path / "none.pt")).endswith(
        "expected a state dict: names and tensors, got dict without tensors. Save the model's state_dict() and give that file."
    )


def test_a_hub_out_of_reach_is_said_with_the_way_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no network is asked, the error is the hub's
    for model_id in ("timm/vit_tiny_patch16_224", "hf-hub:nobody/nothing"):
        with pytest.raises(WorkError) as caught:
            open_backbone(model_id)
        assert str(caught.value).startswith(f"{model_id}: expected weights from the hub, got ")
        assert str(caught.value).endswith('Give --weights FILE with a local checkpoint, or --weights "random".')
