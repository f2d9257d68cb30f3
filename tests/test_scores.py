"""Scores, tables, gains, summaries and ranks: what is compared, and what is refused."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises

from layerbank import RequestError
from layerbank.probes import HEADS, QUICK, TrainingProtocol
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.rows.result_key import DataKey, ResultKey
from layerbank.probing.rows.results import gains
from layerbank.statistics.scores import (
    Case,
    Score,
    compared,
    gains_of,
    group_by_protocol,
    mean_ranks,
    protocol_of_rows,
    scores_of_rows,
    summarize,
    table_of,
)


def score(probe: str, percent: float, dataset: str = "pets", **changes: Any) -> Score:
    return Score(**{"model": "vit", "dataset": dataset, "probe": probe, "percent": percent, **changes})


def row(key: str, probe: str, accuracy: float | None, study: str = "s0", seed: int = 0) -> dict[str, Any]:
    return {
        "key": key,
        "backbone": "timm/vit",
        "dataset": "pets",
        "probe": probe,
        "test": None if accuracy is None else {"balanced_accuracy": accuracy},
        "setting_of_study": study,
        "protocol": {"seed": seed},
    }


def test_rows_become_scores_in_percent_and_a_diverged_one_stays_visible_as_nan() -> None:
    alf, aat = scores_of_rows([row("a", "alf", 0.75), row("b", "aat", None)])
    assert alf == Score(model="timm/vit", dataset="pets", probe="alf", seed=0, percent=75.0, setting="s0", key="a")
    assert np.isnan(aat.percent)


def test_of_rows_with_one_key_the_last_counts() -> None:
    assert [one.percent for one in scores_of_rows([row("a", "alf", 0.5), row("a", "alf", 0.6)])] == [60.0]


def test_a_table_sets_the_probes_of_a_case_side_by_side_with_nan_where_there_is_none() -> None:
    table = table_of([score("linear-cls", 50), score("alf", 60), score("alf", 70, "cars")])
    assert table.cases == (Case("vit", "pets", 0), Case("vit", "cars", 0))
    assert table.probes == ("linear-cls", "alf")
    np.testing.assert_array_equal(table.values, [[50, 60], [np.nan, 70]])
    np.testing.assert_array_equal(gains_of(table).values, [[0, 10], [np.nan, np.nan]])


def test_probes_are_compared_on_the_cases_that_they_share() -> None:
    def scores(**datasets: str) -> list[Score]:
        return [
            Score(model="vit", dataset=dataset, probe=probe, percent=50.0)
            for dataset, probes in datasets.items()
            for probe in probes.split()
        ]

    def shared(**datasets: str) -> dict[str, str]:
        found: dict[str, list[str]] = {}
        for score in compared(scores(**datasets)):
            found.setdefault(score.dataset, []).append(score.probe)
        return {dataset: " ".join(probes) for dataset, probes in found.items()}

    assert shared(pets="linear alf", birds="linear") == {"pets": "linear alf"}
    assert shared(pets="linear alf", birds="linear", cars="linear", dogs="linear") == {"pets": "linear alf"}
    assert shared(pets="linear alf aat", birds="linear alf") == {"pets": "linear alf aat"}
    assert shared(pets="linear alf aat", birds="linear alf", cars="alf linear") == {
        "pets": "linear alf",
        "birds": "linear alf",
        "cars": "alf linear",
    }
    assert shared(pets="linear", birds="alf") == {}
    assert shared() == {}
    diverged = [replace(one, percent=float("nan")) for one in scores(pets="linear alf")]
    assert compared(diverged) == diverged  # it has the case


def test_two_protocols_in_one_line_are_refused_and_named() -> None:
    rows = [row("a", "linear-cls", 0.5, "quick-00x"), row("b", "alf", 0.6, "paper-00x")]
    case = {"model": "timm/vit", "dataset": "pets", "seed": 0}
    settings = {"first_probe": "linear-cls", "first_setting": "quick-00", "probe": "alf", "setting": "paper-00"}
    with raises("statistics.two_settings", RequestError, **case, **settings):
        table_of(scores_of_rows(rows))


def test_two_scores_of_one_probe_are_refused_and_named() -> None:
    case = {"probe": "alf", "model": "vit", "dataset": "pets", "seed": 0}
    with raises("statistics.two_results", RequestError, **case, first_key="01234567", second_key="-") as refused:
        table_of([score("alf", 1, key="0123456789"), score("alf", 2)])
    assert refused.error.got == "1.00 (row 01234567) and 2.00 (row -)"


def test_rows_are_grouped_by_all_of_the_protocol_but_the_seed() -> None:
    one, two, other = (row(key, "alf", 0.5, seed=seed) for key, seed in (("a", 0), ("b", 1), ("c", 0)))
    other["protocol"]["epochs"] = 3
    assert group_by_protocol([one, other, two]) == [[one, two], [other]]


def as_json(protocol: TrainingProtocol) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(protocol)))
    return values


def study_row(probe: str, accuracy: float, **changes: Any) -> dict[str, Any]:
    """A row as `layerbank probe` writes it, of a study whose protocol has these changes."""
    named, protocol = parse_probe(probe, 12), replace(QUICK, **changes)
    solved = HEADS[named.head].is_solved
    data = DataKey(model="m", tap="block", train_rows="a", test_rows="b", train_targets="c", test_targets="d")
    study = ResultKey(data=data, protocol=protocol)
    key = replace(study, probe=named, protocol=replace(protocol, compute="float32") if solved else protocol)
    of_probe = replace(protocol, **named.protocol)  # type: ignore[arg-type]
    return row(key.digest, probe, accuracy, study.setting, protocol.seed) | {
        "key_fields": key.fields(),
        "protocol": as_json(of_probe),
        "compute": None if solved else protocol.compute,
    }


def test_a_probe_that_changes_the_protocol_is_compared_with_the_others_of_its_study() -> None:
    rows = [study_row("linear-cls", 0.5), study_row("aat-quarterly", 0.75), study_row("ridge-cls", 0.6)]
    rows.append(study_row("aat-quarterly", 0.7, jitter_validation=True))
    assert group_by_protocol(rows) == [rows[:3], rows[3:]]
    assert gains_of(table_of(scores_of_rows(rows[:3]))).values.round(6).tolist() == [[0, 25, 10]]
    used = as_json(QUICK)
    del used["seed"]
    assert protocol_of_rows(rows[1:3]) == used
    assert protocol_of_rows(rows[3:]) == used | {"jitter_validation": True}


def test_a_solved_probe_is_compared_in_every_matmul_precision() -> None:
    """Its row is reused: a study of another precision writes none."""
    solved, precise = study_row("ridge-cls", 0.6), study_row("linear-cls", 0.5)
    quick, fused = (study_row(probe, 0.55, compute="bfloat16") for probe in ("linear-cls", "alf"))
    alone = study_row("knn-cls", 0.6, seed=1)
    rows = [solved, precise, alone, quick, fused]
    assert group_by_protocol(rows) == [[solved, precise, alone], [solved, quick, fused]]
    for some, expected in (([solved, precise], 10), ([solved, quick, fused], 5)):
        assert gains(some)[solved["key"]] == pytest.approx(expected)
        assert gains_of(table_of(scores_of_rows(some))).values[0, 0] == pytest.approx(expected)
    assert gains(rows)[fused["key"]] == 0  # a trained probe is compared in its own precision


def test_two_seeds_are_two_lines_and_their_mean_is_one() -> None:
    table = table_of(
        [score("alf", 1, seed=0), score("alf", 2, seed=1), score("aat", 5, seed=0), score("aat", 6, seed=1)]
    )
    assert len(table.cases) == 2
    averaged = table.mean_over("seed")
    assert averaged.cases == (Case("vit", "pets", 0),)
    assert averaged.values.tolist() == [[1.5, 5.5]]


def test_a_mean_over_something_diverged_or_missing_is_nan() -> None:
    table = table_of([score("alf", 1), score("alf", float("nan"), "cars"), score("aat", 3, "cars")])
    assert np.isnan(table.mean_over("dataset").values).all()


def test_gains_need_the_reference_and_say_so() -> None:
    with raises("statistics.no_such_probe", RequestError, probe="linear-cls", probes="alf"):
        gains_of(table_of([score("alf", 1)]))


def test_columns_are_kept_in_the_order_asked_for() -> None:
    table = table_of([score("a", 1), score("b", 2), score("c", 3)]).only(["c", "nothing", "a"])
    assert (table.probes, table.values.tolist()) == (("c", "a"), [[3.0, 1.0]])


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_a_summary_is_that_of_the_standard_library(values: list[float]) -> None:
    summary = summarize(np.array([*values, np.nan]))
    assert (summary.count, summary.num_missing) == (len(values), 1)
    assert summary.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert summary.median == pytest.approx(statistics.median(values))
    assert (summary.min, summary.max) == (min(values), max(values))
    assert summary.std == pytest.approx(statistics.stdev(values), abs=1e-6)


def test_a_summary_of_nothing_is_nan_and_of_one_value_has_no_spread() -> None:
    assert np.isnan(summarize(np.array([np.nan])).mean)
    assert np.isnan(summarize(np.array([3.0])).std)


def test_ranks_share_ties_and_skip_cases_in_which_a_probe_is_missing() -> None:
    table = table_of(
        [
            *(score(probe, value, "one") for probe, value in (("a", 9), ("b", 9), ("c", 1))),
            *(score(probe, value, "two") for probe, value in (("a", 1), ("b", 2), ("c", 3))),
            *(score(probe, value, "three") for probe, value in (("a", 100), ("b", 2))),
        ]
    )
    assert mean_ranks(table) == {"a": 2.25, "b": 1.75, "c": 2.0}
    assert mean_ranks(table, ["a", "b"]) == {"a": (1.5 + 2 + 1) / 3, "b": (1.5 + 1 + 2) / 3}


def test_the_reference_moves_no_rank() -> None:
    table = table_of(
        [score(p, v, d) for p, v, d in [("linear-cls", 1, "x"), ("b", 2, "x"), ("linear-cls", 9, "y"), ("b", 3, "y")]]
    )
    assert mean_ranks(table) == mean_ranks(gains_of(table))


def test_without_a_complete_case_there_is_no_rank() -> None:
    ranks = mean_ranks(table_of([score("a", 1, "x"), score("b", 1, "y")]))
    assert np.isnan([*ranks.values()]).all()


def test_reading_results_and_drawing_them_takes_no_torch() -> None:
    modules = "predictions, scores, significance, tested, findings, duplicates, dataset_table, attention, paper"
    figures = "gains, by_dataset, attention, tokens, levels, ablations"
    code = (
        f"import sys; from layerbank.statistics import {modules}; from layerbank.report.figures import {figures}; "
        "from layerbank.probing import bootstrap, selection; from layerbank.data import catalogue; "
        "print([name for name in ('torch', 'zarr', 'timm', 'matplotlib', 'click') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
