"""`layerbank models` and `layerbank datasets` say what a user will find, without downloading or allocating a model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from commands import run
from messages import raises, refuses

from layerbank import RequestError
from layerbank.data.demos.demo_sets import DEMOS
from layerbank.data.sources import SOURCES, open_source
from layerbank.models.backbone import open_backbone
from layerbank.models.families import ModelGroup
from layerbank.models.libraries.timm_models import TIMM_MODULES
from layerbank.models.listing import describe, group_of, match_models, model_groups, model_names

GROUPS = model_groups()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_the_example_of_a_group_belongs_to_it_and_names_weights_that_exist(group: ModelGroup) -> None:
    assert group_of(group.example) is group
    facts = describe(group.example)
    assert facts.family == group.name
    assert facts.depth >= 12
    if group.name != "demo":
        tag = group.example.removeprefix(facts.model)[1:]
        assert tag in facts.weights
    assert facts.taps == ("norm2", "block")


def test_every_listed_model_has_a_group_and_every_group_has_models() -> None:
    names = model_names()
    assert len(names) == len(set(names)) > 300
    assert {group_of(name).name for name in names} == {group.name for group in GROUPS}


@pytest.mark.parametrize(
    "model_id", ["timm/deit_tiny_distilled_patch16_224", "timm/test_vit4", "timm/vit_tiny_patch16_224", "timm/test_vit"]
)
def test_what_is_listed_is_what_an_opened_model_has(model_id: str) -> None:
    facts, backbone = describe(model_id), open_backbone(model_id, weights="random")
    assert (facts.depth, facts.image_size, facts.grid_size) == (
        backbone.depth,
        backbone.image_size,
        backbone.layout.grid_size,
    )
    assert (facts.embed_dim, facts.final_dim) == (backbone.embed_dim["block.0"], backbone.embed_dim["final"])
    assert (facts.has_cls, facts.num_register_tokens, facts.num_prefix_tokens) == (
        backbone.layout.has_cls,
        backbone.layout.num_register_tokens,
        backbone.layout.num_prefix_tokens,
    )
    assert facts.num_parameters == sum(parameter.numel() for parameter in backbone.tower.model.parameters())


def test_a_model_of_seven_billion_parameters_is_described_without_memory_for_them() -> None:
    facts = describe("timm/vit_7b_patch16_dinov3")
    assert (facts.depth, facts.embed_dim, facts.tokens) == (40, 4096, "1 CLS + 4 reg + 16 x 16")
    assert 6e9 < facts.num_parameters < 7e9
    assert torch.get_default_device().type == "cpu"


def test_a_model_without_a_norm_before_its_mlp_is_listed_with_the_tap_that_it_has() -> None:
    assert describe("timm/vit_relpos_small_patch16_rpn_224").taps == ("block",)


def test_a_pattern_is_a_part_of_a_name_or_has_wildcards_and_an_exact_name_is_alone() -> None:
    assert match_models("deit_tiny_patch16_224") == ["timm/deit_tiny_patch16_224"]
    assert match_models("timm/deit_tiny_patch16_224") == ["timm/deit_tiny_patch16_224"]
    assert match_models("DEIT_TINY") == ["timm/deit_tiny_distilled_patch16_224", "timm/deit_tiny_patch16_224"]
    assert match_models("vit_*_dinov3") == [name for name in model_names() if name.endswith("_dinov3")]
    assert "open_clip/ViT-B-16-quickgelu" in match_models("open_clip/*quickgelu*/")
    with raises("models.no_match", RequestError, pattern="deit_tinny_patch16_224") as refused:
        match_models("deit_tinny_patch16_224")
    assert refused.error.values["advice"].startswith("Did you mean 'timm/deit_tiny_patch16_224'")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 426 models and 60 others are built, on no device: five minutes on two idle cores
def test_all_listed_models_can_be_opened_and_none_of_timms_other_families_can() -> None:
    refused = []
    for name in model_names():
        try:
            describe(name)
        except RequestError:
            refused.append(name)
    # their default weights are for another size than they are built for
    assert {name for name in refused if "vitamin" not in name.lower()} <= {
        name for name in refused if name.startswith("timm/deepseek_vit")
    }
    for module in set(timm.list_modules()) - set(TIMM_MODULES):
        for name in timm.list_models(module=module)[:1]:
            if timm.model_entrypoint(name).__module__.startswith("timm."):  # other tests register models of their own
                with pytest.raises(RequestError):
                    describe(f"timm/{name}")


def test_a_model_that_torch_cannot_build_without_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's RegNet on torch 2.6."""

    def not_there(*arguments: Any, **more: Any) -> Any:
        raise NotImplementedError("aten::_unique2: attempted to run this operator with Meta tensors")

    monkeypatch.setattr("layerbank.models.libraries.timm_models.timm.create_model", not_there)
    with raises("models.not_built_without_weights", model="timm/regnetv_040", reason="aten::_unique2"):
        describe.__wrapped__("timm/regnetv_040")


# ---- the commands


def test_models_lists_families_and_with_a_pattern_models() -> None:
    families = run("models")
    assert families.exit_code == 0
    for group in GROUPS:
        assert group.example in families.stdout
    models = run("models", "deit_tiny")
    assert models.exit_code == 0
    assert "timm/deit_tiny_distilled_patch16_224" in models.stdout
    assert "1 CLS + 1 dist + 14 x 14" in models.stdout
    assert "fb_in1k" in models.stdout
    wrong = run("models", "zzzzzz")
    refuses(wrong, "models.no_match", advice="`layerbank models` lists all.")


def test_models_as_json_for_a_program() -> None:
    (facts,) = json.loads(run("models", "deit_tiny_patch16_224", "--json").stdout)["models"]
    assert facts["model"] == "timm/deit_tiny_patch16_224"
    assert (facts["depth"], facts["embed_dim"], facts["has_cls"], facts["grid_size"]) == (12, 192, True, [14, 14])
    assert facts["weights"] == ["fb_in1k"]
    families = json.loads(run("models", "--json").stdout)
    assert [family["family"] for family in families] == [group.name for group in GROUPS]
    assert sum(family["num_models"] for family in families) == len(model_names())


@pytest.mark.skipif("deepseek_vit_412m" not in timm.list_models(), reason="this timm has no model that is refused so")
def test_a_model_that_matches_but_cannot_be_opened_is_named_with_the_reason() -> None:
    result = run("models", "deepseek_vit_412m")
    assert result.exit_code == 0
    assert "refused: timm/deepseek_vit_412m: expected a vision transformer with a list of blocks" in result.stdout
    answer = json.loads(run("models", "deepseek_vit_412m", "--json").stdout)
    assert (answer["models"], list(answer["refused"])) == ([], ["timm/deepseek_vit_412m"])


def test_datasets_lists_every_scheme_and_every_set_of_the_demo() -> None:
    result = run("datasets")
    assert result.exit_code == 0
    for source in SOURCES.values():
        assert source.form in result.stdout
    for name, demo in DEMOS.items():
        assert f"demo:{name} " in result.stdout
        assert demo.package in result.stdout
    answer = json.loads(run("datasets", "--json").stdout)
    assert [one["scheme"] for one in answer["schemes"]] == list(SOURCES)
    assert len(open_source("demo:digits", "train")) == next(
        one["sizes"]["train"] for one in answer["demo"] if one["data"] == "demo:digits"
    )


@pytest.mark.parametrize("command", ["models", "datasets"])
def test_help_has_a_worked_example(command: str) -> None:
    assert f"layerbank {command}" in run(command, "--help").output.partition("Options:")[0].partition("\n")[2]
