"""Arguments of a timm model in its id change the model and its identity; wrong ones are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from model_errors import refuses_model
from timm.layers import SwiGLUPacked

from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.listing import describe

SIZE = 48
TINY = "vit_tiny_patch16_224?embed_dim=32&depth=3&num_heads=2"
RANDOM: dict[str, Any] = {"weights": "random", "image_size": SIZE}


def _open(model_id: str, **options: Any) -> Backbone:
    return open_backbone(model_id, **RANDOM | options)


def test_a_model_with_arguments_gives_the_tokens_of_timms_model_with_them(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1e-5, "reg_tokens": 4}
    arguments |= {"mlp_layer": SwiGLUPacked, "act_layer": "silu", "no_embed_class": True}
    raw = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0, **arguments).eval()
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(raw.state_dict(), file)
    texts = "init_values=1e-5&reg_tokens=4&mlp_layer=SwiGLUPacked&act_layer=silu&no_embed_class=true"
    backbone = _open(f"{TINY}&{texts}", weights=str(file), tap="block")
    assert backbone.layout.num_register_tokens == 4
    images = torch.randn(2, 3, SIZE, SIZE)
    tokens = backbone.compile(backbone.levels, ["patch"])(images)
    with torch.inference_mode():
        expected = raw.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    for level, patches in zip(backbone.levels, expected, strict=False):
        torch.testing.assert_close(tokens[level]["patch"], patches)


def test_arguments_belong_to_the_identity_and_their_order_and_spelling_do_not() -> None:
    plain, one = _open(TINY), _open(f"{TINY}&init_values=1e-5")
    assert one.architecture.startswith(
        "timm/vit_tiny_patch16_224?depth=3&embed_dim=32&init_values=1e-05&num_heads=2 image=48x48 "
    )
    assert one.architecture != plain.architecture
    other = _open("timm/vit_tiny_patch16_224.augreg_in21k?num_heads=2&init_values=0.00001&depth=3&embed_dim=32")
    assert other.architecture == one.architecture
    assert _open("vit_tiny_patch16_224").architecture == _open("timm/vit_tiny_patch16_224.augreg_in21k").architecture


def test_a_model_with_arguments_is_described_without_its_weights() -> None:
    facts = describe("timm/vit_tiny_patch16_224.augreg_in21k?reg_tokens=4&depth=3")
    assert (facts.model, facts.num_register_tokens, facts.depth) == (
        "timm/vit_tiny_patch16_224?reg_tokens=4&depth=3",
        4,
        3,
    )


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("reg_token=4", "models.unknown_argument", {"type": "VisionTransformer", "nearest": "reg_tokens"}),
        ("img_size=48", "models.fixed_argument", {"name": "img_size"}),
        ("reg_tokens=four", "models.bad_argument", {"types": "int", "text": "four"}),
        ("reg_tokens=1.5", "models.bad_argument", {"types": "int", "text": "1.5"}),
        ("init_values=nan", "models.bad_argument", {"types": "float or None", "text": "nan"}),
        ("class_token=yes", "models.bad_argument", {"types": "bool", "text": "yes"}),
        ("mlp_layer=os", "models.bad_argument", {"types": "a layer of timm.layers", "text": "os"}),
        ("global_pool=mean", "models.bad_argument", {"text": "mean"}),
        ("num_heads=7", "models.arguments_do_not_fit", {}),
        ("norm_layer=nonesuch", "models.arguments_do_not_fit", {}),
        ("", "models.bad_arguments", {"text": ""}),
        ("depth", "models.bad_arguments", {"text": "depth"}),
        ("depth=3&depth=4", "models.bad_arguments", {"text": "depth=3&depth=4"}),
    ],
)
def test_wrong_arguments_are_refused_by_name(text: str, key: str, values: dict[str, Any]) -> None:
    refuses_model(key, f"vit_tiny_patch16_224?{text}", RANDOM, **values)


def test_weights_that_do_not_fit_the_arguments_are_refused(tmp_path: Path) -> None:
    raw = timm.create_model("vit_tiny_patch16_224", embed_dim=32, depth=3, num_heads=2, img_size=SIZE)
    safetensors.torch.save_file(raw.state_dict(), tmp_path / "weights.safetensors")
    options = RANDOM | {"weights": str(tmp_path / "weights.safetensors")}
    error = refuses_model("models.weights_mismatch", f"{TINY}&reg_tokens=4", options)
    assert "reg_token" in str(error)


def test_a_comma_or_a_slash_stands_before_the_tag_of_open_clip() -> None:
    comma, slash = (_open(f"open_clip/ViT-B-32{sign}openai", image_size=224) for sign in ",/")
    assert (comma.model_id, comma.architecture) == (slash.model_id, slash.architecture)
