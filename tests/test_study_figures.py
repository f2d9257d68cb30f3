"""Every figure: drawn a column wide, nothing cut off, the same bytes every time, and its CSV holds what is drawn."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from messages import raises
from PIL import Image

from layerbank.report.figures.ablations import draw_seeds, draw_series, heads_series, kinds_series, pruning_series
from layerbank.report.figures.attention import draw_attention
from layerbank.report.figures.by_dataset import draw_table
from layerbank.report.figures.gains import draw_gains, draw_gains_by_size, size_of
from layerbank.report.figures.levels import draw_levels
from layerbank.report.figures.tokens import draw_similarity, draw_similarity_to_final, draw_train_test
from layerbank.report.style import COLUMN, DPI
from layerbank.statistics.attention import AttentionMap, spread_of
from layerbank.statistics.dataset_table import dataset_table
from layerbank.statistics.paper import published_scores
from layerbank.statistics.scores import Score, Table, gains_of, summarize, table_of
from layerbank.statistics.similarity import Similarity

PAPER = table_of(published_scores())
FIVE = ("linear-last", "linear-all", "attn-last", "aat", "alf")
LEVELS = (*(f"block.{block}" for block in range(1, 12)), "final")
GENERATOR = np.random.default_rng(0)


def score(probe: str, percent: float, dataset: str = "pets", seed: int = 0) -> Score:
    return Score(model="demo/vit-s-focus", dataset=dataset, probe=probe, percent=percent, seed=seed)


def by_level() -> Table:
    levels = [*map(str, range(12)), "final"]
    scores = [
        score(f"{stem}@{level}", 60 + place + 5 * number, dataset)
        for dataset in ("a data set with quite a long name", "digits", "animals")
        for number, stem in enumerate(("linear", "linear-ap", "aat"))
        for place, level in enumerate(levels)
    ]
    return table_of([*scores, score("alf", 93.0, "digits"), score("aat-quarterly", float("nan"), "digits")])


def maps(names: tuple[str, ...] = ("CIFAR-10", "Diabetic Retinopathy", "Pets")) -> dict[str, AttentionMap]:
    made = {}
    for name in names:
        shares = GENERATOR.random((2, 12)) ** 3
        made[name] = AttentionMap(levels=LEVELS, kinds=("cls", "ap"), shares=shares / shares.sum())
    return made


def similarity(kernel: str = "linear", seed: int | None = None) -> Similarity:
    values = np.exp(-np.abs(np.subtract.outer(np.arange(12), np.arange(12))) / 5)
    values[0, 1:] = values[1:, 0] = np.nan
    return Similarity(levels=LEVELS, values=values, kernel=kernel, num_images=5000, seed=seed)


def seeds() -> Table:
    return table_of(
        score(probe, base + seed + number, dataset, seed)
        for number, dataset in enumerate(("pets", "cars"))
        for probe, base in (("alf-cls", 40), ("alf-ap", 45), ("alf", 50))
        for seed in range(3)
    )


ATTENTION, SIMILARITY, BY_LEVEL, SEEDS = maps(), similarity(), by_level(), seeds()
Draw = Callable[[Path], None]
FIGURES: dict[str, Draw] = {
    "gains": lambda stem: draw_gains(PAPER.only(["linear-cls", *FIVE]), stem),
    "sizes": lambda stem: draw_gains_by_size(PAPER.only(["linear-cls", "linear-all", "aat", "alf"]), stem),
    "table": lambda stem: draw_table(
        dataset_table(table_of(published_scores()), FIVE, warnings={"Pets": "3 of 3669 test images " * 4}),
        stem,
    ),
    "attention": lambda stem: draw_attention(ATTENTION, stem),
    "similarity": lambda stem: draw_similarity(SIMILARITY, stem),
    "to final": lambda stem: draw_similarity_to_final({"linear": SIMILARITY, "rbf": similarity("rbf", 0)}, stem),
    "levels": lambda stem: draw_levels(BY_LEVEL, stem),
    "kinds": lambda stem: draw_series(kinds_series(SEEDS), stem),
    "pruning": lambda stem: draw_series(pruning_series({"pets": [(1, 0.5), (24, 0.9)], "cars": [(1, 0.2)]}), stem),
    "seeds": lambda stem: draw_seeds(SEEDS, stem),
    "train and test": lambda stem: draw_train_test({"alf": [("pets", 1.0, 0.8), ("cars", 0.9, 0.7)]}, stem),
}


def png_of(draw: Draw, stem: Path) -> Path:
    draw(stem)
    return stem.with_name(stem.name + ".png")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that stick out of a figure when it is saved."""
    outside: list[str] = []
    savefig = Figure.savefig

    def look(figure: Figure, *args: Any, **kwargs: Any) -> None:
        savefig(figure, *args, **kwargs)
        if kwargs["format"] == "png":
            width, height = figure.get_size_inches() * DPI
            ticks = [
                (axis, tick)
                for axes in figure.axes
                for axis in (axes.xaxis, axes.yaxis)
                for tick in axis.get_major_ticks()
            ]
            beyond = {
                label
                for axis, tick in ticks
                for label in (tick.label1, tick.label2)
                if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
            }  # made, but not drawn
            for text in set(figure.findobj(Text)) - beyond:
                box = text.get_window_extent()
                if text.get_visible() and text.get_text().strip() and box.width:
                    shown = text.axes is None or text.axes.axison
                    if shown and (box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1):
                        outside.append(text.get_text())

    monkeypatch.setattr(Figure, "savefig", look)
    return outside


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_column_wide_with_nothing_cut_off_and_the_same_bytes_every_time(
    name: str, tmp_path: Path, drawn: list[str]
) -> None:
    paths = [png_of(FIGURES[name], tmp_path / folder / "a.figure") for folder in ("one", "two")]
    assert {file.name for file in paths[0].parent.iterdir()} == {"a.figure.png", "a.figure.svg", "a.figure.csv"}
    with Image.open(paths[0]) as image:
        assert image.width == pytest.approx(COLUMN * DPI, abs=1)
        assert image.info.get("Software") is None
    assert drawn == []
    for suffix in ("svg", "png", "csv"):
        one, two = (path.with_suffix(f".{suffix}").read_bytes() for path in paths)
        assert one == two
    assert not re.search(rb"\d{4}-\d\d-\d\dT", paths[0].with_suffix(".svg").read_bytes())  # no date


def lines_of(draw: Draw, folder: Path) -> list[dict[str, str]]:
    with png_of(draw, folder / "figure").with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_gains_that_are_drawn_are_the_papers(tmp_path: Path) -> None:
    lines = lines_of(FIGURES["gains"], tmp_path)
    for probe in FIVE:
        values = np.array([float(line["gain"]) for line in lines if line["probe"] == probe])
        assert summarize(values).mean == pytest.approx(summarize(gains_of(PAPER).column(probe)).mean, abs=1e-4)
        assert len(values) == 171


def test_the_gains_by_size_are_means_over_data_sets(tmp_path: Path) -> None:
    lines = lines_of(FIGURES["sizes"], tmp_path)
    [found] = [line for line in lines if (line["family"], line["size"], line["probe"]) == ("DINOv2", "B", "alf")]
    gains = gains_of(PAPER)
    values = [
        v for case, v in zip(gains.cases, gains.column("alf"), strict=True) if "base_patch14_dinov2" in case.model
    ]
    assert float(found["mean_gain"]) == pytest.approx(np.mean(values), abs=1e-4)
    assert float(found["standard_error"]) == pytest.approx(np.std(values, ddof=1) / np.sqrt(19), abs=1e-4)
    assert {line["num_cases"] for line in lines if line["family"] == "CLIP" and line["size"] == "B"} == {
        "38"
    }  # B-16, B-32


def test_the_attention_that_is_drawn_is_that_of_the_maps_with_their_spread(tmp_path: Path) -> None:
    lines = lines_of(FIGURES["attention"], tmp_path)
    assert len(lines) == 3 * 2 * 12
    for name, map_ in ATTENTION.items():
        mine = [line for line in lines if line["line"] == name]
        np.testing.assert_allclose([float(line["share"]) for line in mine], map_.shares.ravel(), rtol=1e-4)
        assert {line["mass80"] for line in mine} == {str(spread_of(map_).mass80)}


def test_heads_can_be_drawn_one_below_the_other(tmp_path: Path, drawn: list[str]) -> None:
    draw_attention(maps(tuple(f"head {head}" for head in range(24))), tmp_path / "heads")
    assert drawn == []


def test_a_similarity_without_a_value_is_an_empty_cell(tmp_path: Path) -> None:
    lines = lines_of(FIGURES["similarity"], tmp_path)
    assert [line["cka"] for line in lines if line["level"] == "block.1"] == ["1"] + [""] * 11
    assert len(lines) == 144


def test_similarities_of_different_levels_are_drawn_at_their_depths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Similarity(levels=("block.0", "block.2", "final"), values=np.eye(3), kernel="linear", num_images=9, seed=None)
    drawn: list[list[int]] = []
    plot = Axes.plot

    def look(axes: Axes, x: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.append(list(x))
        return plot(axes, x, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", look)
    draw_similarity_to_final({"pets": SIMILARITY, "cars": few}, tmp_path / "figure")
    assert drawn == [[*range(1, 13)], [0, 2, 12]]


def test_levels_that_are_all_alike_make_an_empty_picture(tmp_path: Path) -> None:
    empty = replace(SIMILARITY, values=np.full((12, 12), np.nan))
    assert {line["cka"] for line in lines_of(lambda stem: draw_similarity(empty, stem), tmp_path)} == {""}


def test_levels_are_drawn_at_their_depth_and_what_diverged_is_not(tmp_path: Path) -> None:
    lines = lines_of(FIGURES["levels"], tmp_path)
    mine = {line["probe"]: line for line in lines if line["dataset"] == "digits"}
    assert (mine["linear@11"]["level"], mine["linear@final"]["level"]) == ("11", "12")
    assert float(mine["aat@final"]["percent"]) == 82
    assert mine["alf"]["percent"] == "93"
    assert "aat-quarterly" not in mine


def test_kinds_are_shown_side_by_side(tmp_path: Path) -> None:
    lines = lines_of(FIGURES["kinds"], tmp_path)
    assert [(line["tokens_of_alf"], line["percent"]) for line in lines[:3]] == [
        ("cls", "41"),
        ("ap", "46"),
        ("cls+ap", "51"),
    ]


def test_seeds_are_shown_as_distances_from_their_mean(tmp_path: Path) -> None:
    lines = lines_of(FIGURES["seeds"], tmp_path)
    assert [line["deviation"] for line in lines[:3]] == ["-1", "0", "1"]
    with raises("report.one_seed"):
        draw_seeds(PAPER, tmp_path / "none")


def row(heads: int, accuracy: float | None, dataset: str = "pets", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"head": "attentive", "levels": ["final"], "kinds": ["cls", "ap"], "backbone": "vit"}
    test = None if accuracy is None else {"balanced_accuracy": accuracy}
    return {**values, "dataset": dataset, "num_heads": heads, "test": test, "protocol": {"seed": 0}, **changes}


def test_heads_are_rows_on_the_same_tokens_that_differ_in_heads() -> None:
    rows = [row(8, 0.5), row(24, 0.75), row(4, None, "cars"), row(8, 0.9, kinds=["cls"]), row(8, 0.7, head="linear")]
    series = heads_series(rows, ["final"], ["cls", "ap"])
    assert (series.steps, series.cases) == (("4", "8", "24"), ("pets (vit)", "cars (vit)"))
    np.testing.assert_array_equal(series.values, [[np.nan, 50, 75], [np.nan, np.nan, np.nan]])
    with raises("report.no_head_counts", kinds="ap", levels="final"):
        heads_series(rows, ["final"], ["ap"])


def test_heads_are_averaged_over_seeds_and_over_no_other_probes() -> None:
    alf = [row(24, 0.6, protocol={"seed": seed}) for seed in (0, 1)]
    alf[1]["test"]["balanced_accuracy"] = 0.7
    top = row(24, 0.9, derived={"base": "alf", "members": []})
    best = row(24, 0.9, candidate="attn-last")
    alias = row(24, 0.6)
    series = heads_series([row(4, 0.5), *alf, top, best, alias], ["final"], ["cls", "ap"])
    assert series.steps == ("4", "24")
    np.testing.assert_allclose(series.values, [[50, 65]])


def test_figures_without_their_probes_say_what_is_missing(tmp_path: Path) -> None:
    alone = table_of([score("alf", 1.0)])
    with raises("statistics.no_such_probe", probe="linear-cls", probes="alf"):
        draw_gains(alone, tmp_path / "x")
    with raises("report.no_single_level", probes="alf"):
        draw_levels(alone, tmp_path / "x")
    other = AttentionMap(levels=("final",), kinds=("cls", "ap"), shares=np.array([[0.5], [0.5]]))
    with raises("report.unequal_maps", num_forms=2, forms="12 levels of cls, ap; 1 levels of cls, ap"):
        draw_attention({**ATTENTION, "other": other}, tmp_path / "x")
    with raises("statistics.no_such_probe", probe="alf-cls", probes="alf"):
        kinds_series(alone)
    unknown = table_of([Score(model="timm/resnet50", dataset="pets", probe="linear-cls", percent=1.0)])
    with raises("report.unknown_sizes", models="timm/resnet50"):
        draw_gains_by_size(unknown, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("timm/vit_large_patch16_224.augreg_in21k_ft_in1k", ("ViT", "L")),
        ("open_clip/ViT-B-32-quickgelu/openai", ("CLIP", "B")),
        ("open_clip/ViT-H-14/laion2b_s32b_b79k", ("open_clip/ViT-14/laion2b_s32b_b79k", "H")),
        ("timm/vit_base_patch16_224.mae", ("vit_patch16_224.mae", "B")),
        ("demo/vit-s-focus", ("vit-focus", "S")),
    ],
)
def test_the_size_of_a_model_is_in_its_name(model: str, size: tuple[str, str]) -> None:
    assert size_of(model) == size


def test_no_figure_is_drawn_without_results(tmp_path: Path) -> None:
    table = table_of([score("linear-cls", float("nan")), score("alf", float("nan"))])
    assert [line["gain"] for line in lines_of(lambda stem: draw_gains(table, stem), tmp_path)] == [""]
