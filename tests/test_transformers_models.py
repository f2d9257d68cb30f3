"""Models of transformers: tokens equal those of the raw model, and what is refused. Repositories are folders and a local hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hub_server import serve_dataset
from messages import raises
from model_errors import refuses_model
from PIL import Image
from torch import Tensor, nn

from layerbank import RequestError
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.libraries.image_processors import preparation

transformers = pytest.importorskip("transformers", reason="needs the extra layerbank[transformers]")

SIZE, DEPTH, WIDTH = 48, 3, 32  # 3 x 3 patches of 16

# model type -> (CLS, other, registers) of its prefix
FAMILIES = {
    "vit": (1, 0, 0),
    "deit": (1, 1, 0),
    "beit": (1, 0, 0),
    "dinov2": (1, 0, 0),
    "dinov2_with_registers": (1, 0, 4),
    "dinov3_vit": (1, 0, 4),
    "siglip_vision_model": (0, 0, 0),
    "siglip2_vision_model": (0, 0, 0),
    "clip_vision_model": (1, 0, 0),
    "aimv2_vision_model": (0, 0, 0),
    "ijepa": (0, 0, 0),
    "vit_mae": (1, 0, 0),
    "vit_msn": (1, 0, 0),
    "data2vec-vision": (1, 0, 0),
    "internvl_vision": (1, 0, 0),
}
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 54},
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def _config(model_type: str, **more: Any) -> Any:
    shape: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "image_size": SIZE, "patch_size": 16}
    if model_type == "internvl_vision":
        shape |= {"image_size": [SIZE, SIZE], "patch_size": [16, 16]}
    if model_type == "siglip2_vision_model":
        del shape["image_size"]
        shape["num_patches"] = 9
    if model_type == "dinov3_vit":
        shape["num_register_tokens"] = 4
    return transformers.AutoConfig.for_model(model_type, **shape | more)


def _processor(folder: Path, **settings: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | settings))


def _randomised(model: nn.Module) -> nn.Module:
    """Weights far from their initial values, so that no two levels look alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _saved(folder: Path, config: Any) -> tuple[nn.Module, str]:
    """A random model, and the id of the folder that it is saved in."""
    model = _randomised(transformers.AutoModel.from_config(config))
    model.save_pretrained(folder)
    _processor(folder)
    return model, f"transformers:{folder}"


def _images(size: int = SIZE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _inputs(model_type: str, images: Tensor) -> dict[str, Any]:
    """What each model needs, written down from its documentation."""
    batch, _, size, _ = images.shape
    side = size // 16
    if model_type == "vit_mae":
        return {"pixel_values": images, "noise": torch.linspace(0, 1, side * side).expand(batch, -1)}
    if model_type == "siglip2_vision_model":
        patches = nn.functional.unfold(images, 16, stride=16).transpose(1, 2)  # [B, T, 3 P P]
        return {
            "pixel_values": patches.unflatten(2, (3, 256)).transpose(2, 3).flatten(2),
            "pixel_attention_mask": torch.ones(batch, side * side, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[side, side]] * batch),
        }
    return {"pixel_values": images}


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _run(model: Any, module: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
    """Output of a module by a hook of the test's own, and the result of the whole model."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, output: seen.append(_first(output)))
    with torch.inference_mode():
        try:
            result = model(**inputs, output_hidden_states=True)
        except TypeError:  # InternVL in transformers 4.57
            result = model(**inputs)
    handle.remove()
    return seen[-1], result


def _raw_parts(model: Any) -> tuple[list[nn.Module], nn.Module]:
    """Blocks, and the module with the embeddings, by the names of this family and version."""
    paths = ("encoder.layer", "encoder.layers", "layers", "layer", "model.layer", "vision_model.encoder.layers")
    modules = dict(model.named_modules())
    (blocks,) = [modules[path] for path in paths if path in modules]
    return list(blocks), getattr(model, "vision_model", model)


NORMS_OF_MLP = ("norm2", "layernorm_after", "layer_norm2", "rms_norm2")
LAST_NORMS = ("layernorm", "post_layernorm", "norm", "rms_norm")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, tuple[nn.Module, str]] = {}

    def get(model_type: str) -> tuple[Any, str]:
        if model_type not in made:
            more = {"layer_norm_eps": 1e-6} if model_type == "vit" else {}
            made[model_type] = _saved(tmp_path_factory.mktemp("model") / model_type, _config(model_type, **more))
        return made[model_type]

    return get


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tokens_equal_those_of_an_independent_hook_on_the_raw_model(model_type: str, saved: Any) -> None:
    model, model_id = saved(model_type)
    if model_type == "vit_mae":
        model.config.mask_ratio = 0.0  # that of the folder is 0.75
    prefix, images = FAMILIES[model_type], _images()
    blocks, core = _raw_parts(model)
    start = sum(prefix)
    for tap in ("block", "norm2"):
        backbone = open_backbone(model_id, tap=tap)
        layout = backbone.layout
        assert (backbone.depth, layout.grid_size, backbone.image_size) == (DEPTH, (3, 3), (SIZE, SIZE))
        assert (layout.has_cls, layout.num_other_tokens, layout.num_register_tokens) == (bool(prefix[0]), *prefix[1:])
        kinds = ["ap", "patch", *(["cls"] if prefix[0] else []), *(["register"] if prefix[2] else [])]
        tokens = backbone.compile(backbone.levels, kinds)(images)
        for index, block in enumerate(blocks):
            module = block
            if tap == "norm2":
                (module,) = [getattr(block, name) for name in NORMS_OF_MLP if hasattr(block, name)]
            seen, result = _run(model, module, _inputs(model_type, images))
            expected = {
                "cls": seen[:, 0],
                "ap": seen[:, start:].mean(1),
                "patch": seen[:, start:],
                "register": seen[:, start - prefix[2] : start],
            }
            for kind in kinds:
                got = tokens[f"block.{index}"][kind]
                torch.testing.assert_close(got, expected[kind], rtol=1e-5, atol=1e-5, msg=f"{tap} {index} {kind}")
            hidden = getattr(result, "hidden_states", None)
            # transformers 4.57.1 puts the normed tokens in the last place
            if tap == "block" and hidden and not (module is blocks[-1] and hidden[-1] is result.last_hidden_state):
                got = tokens[f"block.{index}"]["patch"]
                torch.testing.assert_close(got, hidden[index + 1][:, start:], rtol=1e-5, atol=1e-5)
        stream, _ = _run(model, blocks[-1], _inputs(model_type, images))
        norms = [getattr(core, name) for name in LAST_NORMS if hasattr(core, name)]
        if model_type == "beit":
            norms = [core.pooler.layernorm]
        with torch.inference_mode():
            final = norms[0](stream) if norms else stream
        torch.testing.assert_close(tokens["final"]["patch"], final[:, start:], rtol=1e-5, atol=1e-5)


def _equal(one: Backbone, other: Backbone) -> bool:
    kinds = ["ap", "patch"]
    images = _images(one.image_size[0])
    first, second = (backbone.compile(backbone.levels, kinds)(images) for backbone in (one, other))
    return all(torch.equal(first[level][kind], second[level][kind]) for level in one.levels for kind in kinds)


# ---- families and their traps


@pytest.mark.parametrize("model_type", ["siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model", "ijepa"])
def test_a_model_without_a_class_token_has_no_cls(model_type: str, saved: Any) -> None:
    with raises("models.no_class_token", RequestError, kind="cls"):
        open_backbone(saved(model_type)[1]).compile(["final"], ["cls"])


def test_two_passes_of_mae_are_alike_although_its_folder_drops_three_quarters_at_random(saved: Any) -> None:
    _, model_id = saved("vit_mae")
    assert json.loads((Path(model_id.partition(":")[2]) / "config.json").read_text())["mask_ratio"] == 0.75
    backbone = open_backbone(model_id)
    function = backbone.compile(backbone.levels, ["patch"])
    torch.manual_seed(1)
    first = function(_images())
    torch.manual_seed(2)
    second = function(_images())
    assert all(torch.equal(first[level]["patch"], second[level]["patch"]) for level in backbone.levels)


@pytest.mark.parametrize(
    "model_type", ["dinov2_with_registers", "vit_mae", "siglip2_vision_model", "clip_vision_model"]
)
def test_the_function_can_be_compiled_into_one_graph(model_type: str, saved: Any) -> None:
    backbone = open_backbone(saved(model_type)[1])
    function = backbone.compile(backbone.levels, ["ap"])
    compiled = torch.compile(function.forward, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        expected, got = function(_images()), compiled(_images())
    for level in backbone.levels:
        torch.testing.assert_close(got[level]["ap"], expected[level]["ap"])


@pytest.mark.parametrize(
    "model_type", ["vit", "dinov2", "siglip_vision_model", "clip_vision_model", "ijepa", "vit_mae"]
)
def test_positions_are_interpolated_to_another_image_size_as_the_model_does_it(model_type: str, saved: Any) -> None:
    model, model_id = saved(model_type)
    backbone = open_backbone(model_id, tap="block", image_size=64)
    assert (backbone.image_size, backbone.layout.grid_size) == ((64, 64), (4, 4))
    assert backbone.transform_id.startswith("resize 72 shortest bicubic; crop 64x64; ")
    inputs = _inputs(model_type, _images(64))
    if model_type == "vit_mae":
        model.config.mask_ratio = 0.0
    if model_type != "dinov2":
        inputs["interpolate_pos_encoding"] = True
    seen, _ = _run(model, _raw_parts(model)[0][1], inputs)
    tokens = backbone.compile(["block.1"], ["patch"])(_images(64))
    torch.testing.assert_close(tokens["block.1"]["patch"], seen[:, sum(FAMILIES[model_type]) :], rtol=1e-5, atol=1e-5)


def test_dinov2_weights_carried_from_timm_give_the_same_tokens(tmp_path: Path) -> None:
    raw = timm.create_model("vit_small_patch14_dinov2", img_size=56, embed_dim=WIDTH, depth=DEPTH, num_heads=2)
    _randomised(raw)
    state = {}
    for key, value in raw.state_dict().items():
        block = key.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        for ours, theirs in (("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1")):
            block = block.replace(ours, theirs)
        if "attn.qkv" in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[block.replace("attn.qkv", f"attention.attention.{name}")] = part.clone()
        else:
            top = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
            for end in ("weight", "bias"):
                top[f"patch_embed.proj.{end}"] = f"embeddings.patch_embeddings.projection.{end}"
                top[f"norm.{end}"] = f"layernorm.{end}"
            state[top.get(key, block)] = value
    folder = tmp_path / "carried"
    _config("dinov2", image_size=56, patch_size=14).save_pretrained(folder)
    _processor(folder, crop_size={"height": 56, "width": 56})
    safetensors.torch.save_file(state, folder / "model.safetensors")
    backbone = open_backbone(f"transformers:{folder}", tap="block")
    tokens = backbone.compile(backbone.levels, ["cls", "patch"])(_images(56))
    with torch.inference_mode():
        final, intermediates = raw.forward_intermediates(_images(56), output_fmt="NLC", return_prefix_tokens=True)
    for level, (patches, prefix) in zip(backbone.levels[:-1], intermediates, strict=True):
        torch.testing.assert_close(tokens[level]["patch"], patches, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens[level]["cls"], prefix[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens["final"]["cls"], final[:, 0], rtol=1e-5, atol=1e-5)


# ---- checkpoints of larger models, and forms of files


def _whole(kind: str) -> Any:
    """A model that holds a vision tower beside other parts."""
    vision = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"image_size": SIZE, "patch_size": 16}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if kind in ("clip", "siglip", "aimv2"):
        more = {} if kind == "siglip" else {"projection_dim": 16}
        config = transformers.AutoConfig.for_model(kind, vision_config=vision, text_config=text, **more)
        return transformers.AutoModel.from_config(config)
    if kind == "internvl":
        vision |= {"image_size": [SIZE, SIZE], "patch_size": [16, 16]}
        text |= {"num_key_value_heads": 2, "model_type": "qwen2"}
        config = transformers.InternVLConfig(vision_config=vision, text_config=text)
        return transformers.InternVLForConditionalGeneration(config)
    classes = {"vit_mae": transformers.ViTMAEForPreTraining, "vit": transformers.ViTForImageClassification}
    classes["beit"] = transformers.BeitForImageClassification
    more = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    more |= {"decoder_intermediate_size": 16} if kind == "vit_mae" else {}
    return classes[kind](_config(kind, **(more if kind == "vit_mae" else {"num_labels": 7})))


@pytest.mark.parametrize("kind", ["clip", "siglip", "aimv2", "internvl", "vit_mae", "vit", "beit"])
def test_of_a_larger_model_the_vision_tower_is_taken(kind: str, tmp_path: Path) -> None:
    whole: Any = _randomised(_whole(kind))
    whole.save_pretrained(tmp_path / "whole")
    tower = next(
        module
        for module in whole.modules()
        if module is not whole and any("patch_embed" in name for name, _ in module.named_parameters())
        and type(module).__name__.endswith(("VisionModel", "VisionTransformer", "ViTMAEModel", "ViTModel", "BeitModel"))
    )  # fmt: skip
    _processor(tmp_path / "whole")
    backbone = open_backbone(f"transformers:{tmp_path / 'whole'}", tap="block")
    blocks, _ = _raw_parts(tower)
    if kind == "vit_mae":
        tower.config.mask_ratio = 0.0
    seen, _ = _run(tower, blocks[-1], _inputs(kind, _images()))
    tokens = backbone.compile([f"block.{DEPTH - 1}"], ["patch"])(_images())[f"block.{DEPTH - 1}"]["patch"]
    torch.testing.assert_close(tokens, seen[:, -9:], rtol=1e-5, atol=1e-5)


def test_every_form_of_weights_files_gives_the_same_model(tmp_path: Path) -> None:
    _, model_id = _saved(tmp_path / "one", _config("vit"))
    backbone = open_backbone(model_id)
    state = safetensors.torch.load_file(tmp_path / "one" / "model.safetensors")
    names = sorted(state)
    halves = [{name: state[name] for name in names[start::2]} for start in (0, 1)]
    for end, save in (("safetensors", safetensors.torch.save_file), ("bin", torch.save)):
        for stem in ("pytorch_model" if end == "bin" else "model", "shards"):
            folder = tmp_path / f"{stem}-{end}"
            folder.mkdir()
            (folder / "config.json").write_bytes((tmp_path / "one" / "config.json").read_bytes())
            _processor(folder)
            if stem != "shards":
                save(state, folder / f"{stem}.{end}")
            else:
                index = {name: f"part-{number}.{end}" for number, half in enumerate(halves) for name in half}
                for number, half in enumerate(halves):
                    save(half, folder / f"part-{number}.{end}")
                stem = "pytorch_model" if end == "bin" else "model"
                (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": index}))
            other = open_backbone(f"transformers:{folder}")
            assert (other.weights_digest, other.architecture) == (backbone.weights_digest, backbone.architecture)
            assert _equal(backbone, other)
    (tmp_path / "shards-bin" / "part-1.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refuses_model("models.weights_are_lfs_pointer", f"transformers:{tmp_path / 'shards-bin'}")
    (tmp_path / "shards-bin" / "part-1.bin").unlink()
    refuses_model("models.no_weights_file", f"transformers:{tmp_path / 'shards-bin'}")
    (tmp_path / "shards-bin" / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../a.bin"}}')
    refuses_model("models.unreadable_weights", f"transformers:{tmp_path / 'shards-bin'}")


def test_a_model_is_never_loaded_by_half(tmp_path: Path) -> None:
    _, model_id = _saved(tmp_path / "vit", _config("vit"))
    file = tmp_path / "vit" / "model.safetensors"
    state = safetensors.torch.load_file(file)

    def complaints(changed: dict[str, Tensor]) -> str:
        safetensors.torch.save_file(changed, file)
        values = {"source": f"--weights {file}", "model": "transformers:vit"}
        return str(refuses_model("models.weights_mismatch", model_id, **values).values["complaints"])

    gone = [key for key in state if "layer.1.layernorm_after" in key]
    assert complaints({key: state[key] for key in state if key not in gone}).startswith("missing ")
    more = {key.replace("layer.2.", "layer.3."): value.clone() for key, value in state.items() if "layer.2." in key}
    assert complaints(state | more).startswith("unexpected ")
    wide = "layernorm.bias"
    assert complaints(state | {wide: torch.zeros(33)}).startswith(f"of other shapes {wide}")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    refuses_model("models.no_tensors", model_id, {"weights": str(tmp_path / "none.pt")})


def test_weights_of_a_file_replace_those_of_the_folder_and_random_ones_need_none(tmp_path: Path) -> None:
    _, model_id = _saved(tmp_path / "vit", _config("vit"))
    backbone = open_backbone(model_id)
    moved = tmp_path / "moved.safetensors"
    (tmp_path / "vit" / "model.safetensors").rename(moved)
    refuses_model("models.no_weights_in_folder", model_id, model="transformers:vit")
    assert _equal(backbone, open_backbone(model_id, weights=str(moved)))
    random = open_backbone(model_id, weights="random", seed=3)
    assert random.weights_digest == open_backbone(model_id, weights="random", seed=3).weights_digest
    assert random.architecture == backbone.architecture


# ---- preparation


def test_the_image_processor_is_the_transform(saved: Any) -> None:
    _, model_id = saved("vit")
    backbone = open_backbone(model_id)
    pixels = torch.randint(0, 256, (70, 90, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    processor = transformers.AutoImageProcessor.from_pretrained(model_id.partition(":")[2])
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = backbone.transform(image)
    assert backbone.normalisation is not None
    assert ours.shape == expected.shape == (3, SIZE, SIZE)
    # a processor may resize tensors, not images: one step of a byte, divided by the deviation
    assert (ours - expected).abs().max() < 1.01 / 255 / 0.224
    assert (ours - expected).abs().mean() < 0.1 / 255


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "resize 54 shortest bicubic; crop 48x48; mean 0.485 0.456 0.406; std 0.229 0.224 0.225"),
        (
            {"do_center_crop": False, "size": {"height": 48, "width": 48}, "resample": 2},
            "resize 48x48 squash bilinear; mean 0.485 0.456 0.406; std 0.229 0.224 0.225",
        ),
        ({"do_normalize": False}, "resize 54 shortest bicubic; crop 48x48; mean 0 0 0; std 1 1 1"),
        (
            {"image_mean": [1, 1, 1], "image_std": [1, 1, 1], "rescale_factor": 1 / 127.5},
            "resize 54 shortest bicubic; crop 48x48; mean 0.5 0.5 0.5; std 0.5 0.5 0.5",
        ),
        ({"do_resize": False}, "crop 48x48; mean 0.485 0.456 0.406; std 0.229 0.224 0.225"),
    ],
)
def test_settings_of_an_image_processor_become_a_transform(settings: dict[str, Any], text: str) -> None:
    prepared = preparation(PROCESSOR | settings, "mine", None)
    assert (prepared.image_size, prepared.text) == ((SIZE, SIZE), text)
    image = Image.new("RGB", (80, 60), (255, 255, 255))
    assert prepared.transform(image).shape == (3, SIZE, SIZE)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_center_crop": False},
        {"size": {"longest_edge": 48}},
        {"resample": 9},
        {"image_std": [0, 1, 1]},
        {"image_mean": [0.5]},
        {"size": None},
    ],
)
def test_settings_that_do_not_lead_to_one_size_are_refused(settings: dict[str, Any]) -> None:
    with raises("models.bad_image_processor", RequestError, model="mine"):
        preparation(PROCESSOR | settings, "mine", None)


def test_siglip2_takes_the_largest_square_that_its_processor_allows(saved: Any) -> None:
    _, model_id = saved("siglip2_vision_model")
    folder = Path(model_id.partition(":")[2])
    settings = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16, "max_num_patches": 17}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    try:
        backbone = open_backbone(model_id)
    finally:
        _processor(folder)
    assert (backbone.image_size, backbone.layout.grid_size) == ((64, 64), (4, 4))
    assert backbone.transform_id == "resize 64x64 squash bilinear; mean 0.5 0.5 0.5; std 0.5 0.5 0.5"


# ---- identity, and what is refused


def test_the_identity_is_the_configuration_and_not_the_place(saved: Any, tmp_path: Path) -> None:
    _, model_id = saved("vit")
    source, copied = Path(model_id.partition(":")[2]), tmp_path / "copied"
    shutil.copytree(source, copied)
    values = json.loads((copied / "config.json").read_text())
    first = open_backbone(model_id)

    def architecture(**changes: Any) -> str:
        (copied / "config.json").write_text(json.dumps(values | changes))
        return open_backbone(f"transformers:{copied}").architecture

    assert architecture(_name_or_path="elsewhere", id2label={"0": "cat"}) == first.architecture
    assert architecture(hidden_act="relu") != first.architecture


def test_code_of_a_repository_never_runs(saved: Any, tmp_path: Path) -> None:
    _, model_id = saved("vit")
    folder = tmp_path / "mine"
    shutil.copytree(model_id.partition(":")[2], folder)
    ran = tmp_path / "ran"
    for name in ("configuration", "modeling", "processing"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    values = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "configuration.Mine", "AutoModel": "modeling.Mine"}
    (folder / "config.json").write_text(json.dumps(values | {"auto_map": maps}))
    assert open_backbone(f"transformers:{folder}").architecture == open_backbone(model_id).architecture
    (folder / "config.json").write_text(json.dumps(values | {"auto_map": maps, "model_type": "vitt"}))
    nearest = {"model": "transformers:mine", "type": "vitt", "nearest": "vit"}
    refuses_model("models.unknown_model_type", f"transformers:{folder}", **nearest)
    (folder / "config.json").write_text(json.dumps(values))
    settings = {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "processing.Mine"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    refuses_model("models.bad_image_processor", f"transformers:{folder}", model="transformers:mine")
    assert not ran.exists()


def test_models_that_are_no_vision_transformers_are_refused_before_weights_are_looked_for(tmp_path: Path) -> None:
    shapes = {
        "resnet": {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8},
        "swin": {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "image_size": 64, "patch_size": 4},
        "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    }
    keys = {"resnet": "models.no_patch_embedding", "swin": "models.other_tokens", "bert": "models.no_vision_model"}
    for model_type, shape in shapes.items():
        folder = tmp_path / model_type
        transformers.AutoConfig.for_model(model_type, **shape).save_pretrained(folder)
        _processor(folder, crop_size=64)
        refuses_model(keys[model_type], f"transformers:{folder}", {"tap": "block"}, model=f"transformers:{model_type}")


def test_folders_without_the_files_of_a_model_are_refused(tmp_path: Path, saved: Any) -> None:
    refuses_model("models.no_model_folder", f"transformers:{tmp_path}", folder=tmp_path)
    refuses_model("models.bad_transformers_id", "transformers:nowhere", model="transformers:nowhere")
    for content in ("{", "[]", "{}", '{"model_type": "vit", "hidden_size": "wide"}', '{"model_type": {}}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RequestError):
            open_backbone(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    refuses_model("models.bad_model_config", f"transformers:{tmp_path}", reason="no 'model_type'")
    (tmp_path / "config.json").write_text('{"model_type": "vit", "layer_norm_eps": NaN}')
    refuses_model("models.bad_model_config", f"transformers:{tmp_path}", reason="NaN, which is no number of JSON")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    refuses_model("models.no_image_processor", f"transformers:{tmp_path}", folder=tmp_path)
    options = {"image_size": 50}
    refuses_model("models.image_size_of_no_patches", saved("vit")[1], options, size=50, one=48, other=64)


def test_a_size_that_a_model_cannot_take_is_refused(saved: Any) -> None:
    refuses_model("models.does_not_run", saved("aimv2_vision_model")[1], {"image_size": 64}, size="64x64")


def test_without_the_package_the_extra_is_named(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbank.models.libraries.transformers_models.find_spec", lambda name: None)
    refuses_model("models.no_transformers", saved("vit")[1])


def test_a_repository_of_the_hub_is_opened_by_its_name(saved: Any, tmp_path: Path) -> None:
    """From a real server that speaks the hub's protocol; its library reads the address when it is imported."""
    _, model_id = saved("dinov2")
    folder = Path(model_id.partition(":")[2])
    code = (
        "from layerbank.models.backbone import open_backbone\n"
        "for prefix in ('', 'hf-hub:', 'transformers:'):\n"
        "    backbone = open_backbone(prefix + 'someone/tiny-dinov2')\n"
        "    print(backbone.model_id, backbone.weights_digest, backbone.architecture)\n"
        "from layerbank import RequestError\n"
        "try: open_backbone('someone/tiny-dinov2?depth=3')\n"
        "except RequestError as error: print(error.key)\n"
    )
    asked: list[str] = []
    files = {one.name: one.read_bytes() for one in folder.iterdir()}
    with serve_dataset("someone/tiny-dinov2", files, asked) as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
    here = open_backbone(model_id)
    expected = f"transformers:someone/tiny-dinov2 {here.weights_digest} {here.architecture}"
    assert result.stdout.splitlines() == [expected] * 3 + ["models.no_arguments"], result.stderr
    assert sorted(asked) == ["config.json", "model.safetensors", "preprocessor_config.json"]
