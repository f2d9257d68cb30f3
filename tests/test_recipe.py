"""Recipes: what is refused, and that the shipped ones are what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from messages import raises

from layerbank import RequestError
from layerbank.data.catalogue import CATALOGUE
from layerbank.jobs.recipe import SHIPPED, open_recipe, shipped_recipes
from layerbank.jobs.study_plan import plan_study

GOOD = 'models = ["timm/a"]\ndata = ["demo:digits"]\nprobes = ["alf"]\n'


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def problems_of(folder: Path, text: str) -> str:
    with raises("jobs.recipe_invalid", RequestError) as refused:
        open_recipe(write(folder, text))
    return refused.error.values["problems"]


def test_a_recipe_says_models_data_and_probes_and_the_rest_has_defaults(tmp_path: Path) -> None:
    recipe = open_recipe(write(tmp_path, GOOD))
    assert (recipe.models, recipe.data, recipe.probes) == (("timm/a",), ("demo:digits",), ("alf",))
    assert (recipe.seeds, recipe.protocol, recipe.num_heads, recipe.image_size) == ((0,), "paper", (), None)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("seed = [0]", "the key 'seed' (Did you mean 'seeds'?)"),
        ("seeds = [0, 0]", "0 twice in seeds"),
        ("seeds = []", "seeds = []"),
        ("seeds = [true]", "seeds = [True]"),
        ("num_heads = [0]", "num_heads = [0] (a list, each a whole number from 1)"),
        ('protocol = "papr"', "protocol = 'papr'"),
        ("image_size = 0", "image_size = 0 (a whole number from 1, or None)"),
        ('tap = "norm1"', "tap = 'norm1' ('norm2' or 'block', or None)"),
        ('weights = "random"', "weights = 'random'"),
        ('weights = {"timm/b" = "random"}', "weights of 'timm/b', which is not in models"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, problem: str) -> None:
    assert problem in problems_of(tmp_path, GOOD + line)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("demo:digits", "cifar1", "data 'cifar1' (Did you mean 'cifar10'?"),
        ("demo:digits", "dema:digits", "data 'dema:digits' (a scheme among folder"),
        ("alf", "alv", "probe 'alv'"),
        ('["alf"]', '["alf", "alf"]', "'alf' twice in probes"),
        ('["alf"]', "[]", "probes = [] (a list, each a text, not empty)"),
        ('models = ["timm/a"]', "", "no models"),
    ],
)
def test_an_unknown_name_is_named(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert problem in problems_of(tmp_path, GOOD.replace(old, new))


def test_one_error_names_all_problems_of_a_recipe(tmp_path: Path) -> None:
    text = 'model = ["timm/a"]\ndata = ["cifar1"]\nprobes = ["alv"]\nseeds = [-1]\n'
    with raises("jobs.recipe_invalid", RequestError, num_problems=5) as refused:
        open_recipe(write(tmp_path, text))
    parts = ("Did you mean 'models'?", "'cifar1'", "'alv'", "seeds = [-1]", "no models")
    assert all(part in refused.error.got for part in parts)


def test_a_file_that_is_no_toml_and_a_recipe_that_does_not_exist_say_so(tmp_path: Path) -> None:
    with raises("jobs.recipe_not_toml", RequestError):
        open_recipe(write(tmp_path, "models = ["))
    with raises("jobs.recipe_not_found", RequestError, name="smok", advice="Did you mean 'smoke'?"):
        open_recipe("smok")
    for missing in ("papers/base.toml", "paper.toml"):
        with raises("jobs.recipe_not_found", RequestError, advice="Check the path."):
            open_recipe(missing)


def test_every_shipped_recipe_can_be_read_and_its_header_says_what_it_takes() -> None:
    assert set(shipped_recipes()) == {"smoke", "demo", "layers", "ablations", "paper-base", "paper-full"}
    for name in shipped_recipes():
        open_recipe(name)
        text = (SHIPPED / f"{name}.toml").read_text()
        assert f"#   layerbank study {name}" in text
        assert all(f"\n# {word} " in text for word in ("hardware", "bytes", "time", "expected")), name


def test_the_papers_recipe_has_eleven_models_and_every_data_set_of_the_catalogue() -> None:
    recipe = open_recipe("paper-full")
    assert len(recipe.models) == 11
    assert recipe.data == open_recipe("paper-base").data == tuple(entry.name for entry in CATALOGUE)


def test_a_plan_counts_images_trainings_and_bytes_and_fetches_nothing(tmp_path: Path) -> None:
    (unit,) = plan_study(replace(open_recipe("smoke"), data_root=tmp_path))
    tokens = 12 * (1 + 1 + 4) * 192  # final and blocks 1 to 11: cls, ap and four cells
    assert (unit.num_train, unit.num_test, unit.problems) == (300, 100, ())
    assert unit.size_bytes == 400 * 2 * tokens
    assert unit.num_trainings == 3 * (4 + 1)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_counts_what_is_made_of_other_probes_and_those_once(tmp_path: Path) -> None:
    probes = '["alf-smallest", "alf-top3", "alf", "linear@best", "linear-all-top9"]'
    text = GOOD.replace("timm/a", "timm/vit_tiny_patch16_224").replace('["alf"]', probes)
    job = open_recipe(write(tmp_path, text + f'protocol = "quick"\ndata_root = "{tmp_path}"\n'))
    (unit,) = plan_study(job)
    alf, linear_all = 4 + 1, 4 + 1
    assert unit.num_trainings == (78 + 1) + (3 + 3) + alf + (13 * 4 + 1) + (4 + 4) + linear_all
    assert unit.problems == ()


def test_a_plan_knows_the_training_images_of_a_data_set_that_is_not_here(tmp_path: Path) -> None:
    recipe = open_recipe(
        write(tmp_path, GOOD.replace("timm/a", "timm/vit_tiny_patch16_224").replace("demo:digits", "dtd"))
    )
    (unit,) = plan_study(replace(recipe, data_root=tmp_path))
    assert (unit.num_train, unit.num_test, unit.problems) == (1880, None, ("to be downloaded",))
    (offline,) = plan_study(replace(recipe, data_root=tmp_path, fetch=False))
    assert "no such folder" in offline.problems[0]
