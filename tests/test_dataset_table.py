"""The per-data-set table: what is bold, what is underlined, and that names are only ever text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from layerbank.statistics import tested
from layerbank.statistics.dataset_table import dataset_table, table_latex, table_markdown
from layerbank.statistics.paper import published_scores
from layerbank.statistics.predictions import Predictions
from layerbank.statistics.scores import Score, Table, gains_of, table_of
from layerbank.statistics.significance import adjust, compare_gains, mcnemar

FIVE = ("linear-last", "linear-all", "attn-last", "aat", "alf")


def table(num_models: int = 6, **columns: float) -> Table:
    """Data set `pets`; every model has the same difference between probes, and a little of its own."""
    generator = np.random.default_rng(0)
    return table_of(
        Score(model=f"vit {model}", dataset="pets", probe=probe, percent=value + model + 0.01 * generator.random())
        for probe, value in columns.items()
        for model in range(num_models)
    )


def test_the_best_is_bold_and_what_is_not_significantly_below_it_underlined() -> None:
    made = dataset_table(table(worse=40, best=50, equal=50.0))
    worse, *others = made.lines["pets"]
    assert sum(cell.best for cell in others) == 1
    assert (worse.best, worse.tied) == (False, False)
    assert "Wilcoxon over models and seeds" in made.note


def test_every_mark_of_the_published_table_is_found_by_scipy() -> None:
    made = dataset_table(table_of(published_scores()), FIVE)
    values = {(s.dataset, s.probe, s.model): s.percent for s in published_scores()}
    models = sorted({model for _, _, model in values})
    for dataset, cells in made.lines.items():
        columns = {probe: np.array([values[dataset, probe, model] for model in models]) for probe in FIVE}
        assert [cell.mean for cell in cells] == pytest.approx([columns[probe].mean() for probe in FIVE])
        assert [cell.std for cell in cells] == pytest.approx([columns[probe].std(ddof=1) for probe in FIVE])
        best = max(FIVE, key=lambda probe: columns[probe].mean())
        others = [probe for probe in FIVE if probe != best]
        p = [stats.wilcoxon(columns[probe], columns[best], alternative="less").pvalue for probe in others]
        q = dict(zip(others, stats.false_discovery_control(p), strict=True))
        assert {probe: (cell.best, cell.tied) for probe, cell in zip(FIVE, cells, strict=True)} == {
            probe: (probe == best, probe != best and q[probe] >= 0.05) for probe in FIVE
        }
    assert made.ranks == pytest.approx([82 / 19, 54 / 19, 69 / 19, 52 / 19, 28 / 19])  # the sums of ranks of test_paper


@pytest.mark.parametrize("num_models", [2, 6])
def test_a_probe_that_no_other_can_be_compared_with_is_best_and_untested(num_models: int) -> None:
    whole = table(num_models, alf=50, aat=40)
    values = whole.values.copy()
    values[0, 1] = np.nan
    made = dataset_table(replace(whole, values=values), compare=lambda *_: 0.5)
    assert [(cell.best, cell.tied) for cell in made.lines["pets"]] == [(True, False), (False, False)]
    assert made.note == "Bold: best mean. Nothing is underlined: too few models and seeds to test."


def test_with_one_model_nothing_is_underlined_and_the_note_says_why() -> None:
    made = dataset_table(table(1, alf=50, aat=50))
    assert not any(cell.tied for cell in made.lines["pets"])
    assert made.note == "Bold: best mean. Nothing is underlined: too few models and seeds to test."


def test_with_one_model_the_predictions_can_decide() -> None:
    asked: list[tuple[str, str, str]] = []

    def compare(dataset: str, best: str, other: str) -> float:
        asked.append((dataset, best, other))
        return {"aat": 0.5, "linear-all": 0.001}[other]

    made = dataset_table(table(1, alf=52, aat=51, **{"linear-all": 50}), compare=compare)
    assert asked == [("pets", "alf", "aat"), ("pets", "alf", "linear-all")]
    assert [cell.tied for cell in made.lines["pets"]] == [False, True, False]
    assert "McNemar over test images" in made.note


def test_predictions_decide_by_mcnemar_and_without_them_nothing_is_underlined() -> None:
    labels, logits = np.zeros(40, dtype=np.int64), np.zeros((40, 2), dtype=np.float32)
    ids = np.array([f"image {row}" for row in range(40)])

    def right_on(rows: range) -> Predictions:
        mine = logits.copy()
        mine[:, 1] = 1
        mine[rows, 0] = 2
        return Predictions(sample_ids=ids, labels=labels, logits=mine)

    predictions = {"alf": right_on(range(40)), "aat": right_on(range(36)), "low": right_on(range(9))}
    hits = {probe: one.hits for probe, one in predictions.items()}
    case = tested.Tested(sample_ids=ids, labels=labels, hits=hits, accuracies={}, answers={})

    def compare(dataset: str, best: str, other: str) -> float:
        return {"pets": case}[dataset].mcnemar(best, other)

    assert compare("pets", "alf", "aat") == mcnemar(hits["alf"], hits["aat"]).exact
    assert np.isnan(compare("pets", "alf", "nothing"))
    made = dataset_table(table(1, alf=100, aat=90, low=22, unknown=21), compare=compare)
    assert [cell.tied for cell in made.lines["pets"]] == [False, True, False, False]


def test_a_probe_that_diverged_has_no_mean_and_no_rank() -> None:
    scores = [Score(model="vit", dataset="pets", probe=p, percent=v) for p, v in (("alf", 50.0), ("aat", float("nan")))]
    made = dataset_table(table_of(scores))
    assert np.isnan(made.lines["pets"][1].mean)
    assert np.isnan(made.means[1])
    assert "| pets | **50.0** | - |" in table_markdown(made)
    everything_diverged = dataset_table(table_of([scores[1]]))
    assert not any(cell.best for cell in everything_diverged.lines["pets"])


def test_warnings_stand_under_the_table_of_their_data_set() -> None:
    made = dataset_table(table(1, alf=50), warnings={"pets": "2 of 9 test images", "cars": "not here", "x": ""})
    assert made.warnings == {"pets": "2 of 9 test images"}
    assert table_markdown(made).endswith("\n- pets: 2 of 9 test images\n")


def test_markdown_is_a_table_of_equal_columns() -> None:
    lines = [line for line in table_markdown(dataset_table(table(alf=50, aat=40))).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {4}
    assert lines[0] == "| data set | alf | aat |"
    assert lines[2].startswith("| pets | **52.5 ±1.9** | 42.5 ±1.9 |")


def test_latex_is_a_tabular_of_equal_columns() -> None:
    text = table_latex(dataset_table(table(alf=50, aat=40)))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert text.startswith("\\begin{tabular}{lrr}\n\\toprule\n")
    assert {line.count("&") for line in rows} == {2}
    assert r"\textbf{52.5 {\scriptsize$\pm$1.9}}" in text
    assert text.count("{") == text.count("}")


def test_names_of_data_sets_are_only_text() -> None:
    name = "<b>a|b_c</b> 50% {x} $y^2~"
    made = dataset_table(table_of([Score(model="vit", dataset=name, probe="alf", percent=1.0)]))
    assert r"\<b\>a\|b\_c\</b\> 50% {x} $y^2~" in table_markdown(made)
    assert r"<b>a|b\_c</b> 50\% \{x\} \$y\textasciicircum{}2\textasciitilde{}" in table_latex(made)


def test_gains_are_tested_over_data_sets_on_the_models_that_a_probe_has() -> None:
    gains = gains_of(table_of(published_scores()))
    [found] = compare_gains(
        gains, ["attn-mid"]
    )  # run on four of nine models, and on one of them not for every data set
    by_dataset: dict[str, list[float]] = {}
    for case, value in zip(gains.cases, gains.column("attn-mid"), strict=True):
        if np.isfinite(value):
            by_dataset.setdefault(case.dataset, []).append(value)
    means = [np.mean(values) for values in by_dataset.values()]
    assert (found.num_pairs, found.p_value) == (19, pytest.approx(stats.wilcoxon(means, alternative="greater").pvalue))
    assert found.median == pytest.approx(np.median(means))
    several = compare_gains(gains, FIVE)
    assert [one.q_value for one in several] == pytest.approx(adjust([one.p_value for one in several]))
