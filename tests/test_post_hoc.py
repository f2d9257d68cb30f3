"""Post-hoc probes: the smallest set of the levels of a finished probe, the ensemble of its best settings; the best level."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from probe_runs import FEW, REQUEST, run, stores_of
from study_runs import read_rows

from layerbank.cache import TokenArray
from layerbank.data.sources import open_source
from layerbank.events import Event, ProbeFinished, ProbeProgress
from layerbank.jobs.study_plan import num_trainings
from layerbank.probes import Setting, TrainingProtocol
from layerbank.probing.predict import SavedProbe
from layerbank.probing.probe import probe
from layerbank.probing.probe_spec import ProbeSpec, parse_probe
from layerbank.probing.rows.results import results_table, summarize
from layerbank.probing.rows.row_files import row_folder
from layerbank.probing.tokens.split_tokens import SplitRequest, SplitTokens
from layerbank.report.saved import SavedHead

NAMES = ("linear-cls", "attn-quarterly-smallest", "attn-quarterly-top3", "linear@best")


@pytest.fixture(scope="module")
def dim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that hardly differ, so that settings and levels do."""
    folder, rng = tmp_path_factory.mktemp("dim"), np.random.default_rng(1)
    for split, count in (("train", 100), ("test", 60)):
        for label, name in enumerate(("a", "b")):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 200, (40, 40, 3), dtype=np.uint8)
                pixels[8 + 8 * label : 24 + 8 * label, 8:24] //= 2
                Image.fromarray(pixels).save(place / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def stores(dim: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SplitRequest, SplitRequest]:
    return stores_of(REQUEST.open("cpu"), dim, tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def made(
    stores: tuple[SplitRequest, SplitRequest], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    rows, _ = run(stores, folder, NAMES, FEW)
    assert [row["probe"] for row in rows] == list(NAMES)
    return folder, {row["probe"]: row for row in read_rows(folder / "results.jsonl")}


def balanced(hits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([hits[labels == one].mean() for one in np.unique(labels)]))


def test_the_settings_and_levels_of_this_test_do_differ(made: tuple[Path, dict[str, Any]]) -> None:
    _, rows = made
    for scores in (rows["attn-quarterly"]["settings"], rows["attn-quarterly-smallest"]["derived"]["rounds"][0]):
        assert len({one["validation"] for one in scores}) > 2


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "seconds": None, "digest": None} for row in rows]


def test_the_base_has_a_row_of_its_own_and_comes_first(made: tuple[Path, dict[str, Any]]) -> None:
    folder, rows = made
    order = [row["probe"] for row in read_rows(folder / "results.jsonl")]
    assert order == ["linear-cls", "attn-quarterly", "linear@best", "attn-quarterly-smallest", "attn-quarterly-top3"]
    for name in NAMES[1:3]:
        assert rows[name]["derived"]["base_key"] == rows["attn-quarterly"]["key"]
    assert rows["attn-quarterly"]["derived"] is None
    assert not (folder / ".sweeps").exists()


def test_the_smallest_set_follows_from_what_was_saved_by_a_few_independent_lines(
    made: tuple[Path, dict[str, Any]],
) -> None:
    folder, rows = made
    row, levels = rows["attn-quarterly-smallest"], rows["attn-quarterly"]["levels"]
    held: list[str] = []
    path = []
    for candidates in row["derived"]["rounds"]:
        # every level that is not held yet, the deepest first, and the best of them is taken, the first of equals
        assert [one["levels"] for one in candidates] == [
            [level for level in levels if level in (*held, new)] for new in reversed(levels) if new not in held
        ]
        path.append(max(candidates, key=lambda one: one["validation"]))
        held = path[-1]["levels"]
    assert [len(one["levels"]) for one in path] == [1, 2, 3, 4]
    with np.load(row_folder(folder, row) / "levels.npz") as arrays:
        hits, labels = arrays["hits"], arrays["labels"]
    assert [balanced(one, labels) for one in hits] == pytest.approx([one["validation"] for one in path])
    best = max(range(4), key=lambda number: path[number]["validation"])
    assert row["derived"]["best"] == path[best]
    rng = np.random.default_rng(1)
    draws = np.concatenate(
        [rng.choice(np.flatnonzero(labels == one), (4000, (labels == one).sum())) for one in (0, 1)], 1
    )
    lows = [
        np.quantile([balanced(hits[best][d], labels[d]) - balanced(one[d], labels[d]) for d in draws], 0.025)
        for one in hits
    ]
    enough = [low <= 0 for low in lows]
    assert row["levels"] == path[enough.index(True)]["levels"]
    assert row["derived"]["gap"]["low"] == pytest.approx(lows[enough.index(True)], abs=0.02)
    assert row["validation"] == path[enough.index(True)]["validation"]
    assert row["chosen"] == rows["attn-quarterly"]["chosen"]


def test_the_smallest_set_is_the_probe_trained_on_those_levels_alone_to_the_last_bit(
    stores: tuple[SplitRequest, SplitRequest], made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, rows = made
    row = rows["attn-quarterly-smallest"]
    alone = ProbeSpec(
        name="alone", head="attentive", levels=tuple(row["levels"]), kinds=("cls", "ap"), num_heads=row["num_heads"]
    )
    setting = Setting(**row["chosen"])
    protocol = replace(FEW, lrs=(setting.lr,), weight_decays=(setting.weight_decay,), dropouts=(setting.dropout,))
    (found,) = probe(*stores, [alone], protocol, tmp_path)
    assert found["test"] == row["test"]
    assert found["num_parameters"] == row["num_parameters"]
    with (
        np.load(row_folder(folder, row) / "test.npz") as ours,
        np.load(row_folder(tmp_path, found) / "test.npz") as theirs,
    ):
        np.testing.assert_array_equal(ours["logits"], theirs["logits"])


def test_an_ensemble_is_the_k_best_settings_of_the_base_averaged_in_probability(
    stores: tuple[SplitRequest, SplitRequest], made: tuple[Path, dict[str, Any]]
) -> None:
    folder, rows = made
    row, base = rows["attn-quarterly-top3"], rows["attn-quarterly"]
    best = sorted(base["settings"], key=lambda one: -one["validation"])[:3]  # sorting keeps the first of equals first
    for member, one in zip(row["derived"]["members"], best, strict=True):
        assert member == {name: one[name] for name in ("lr", "weight_decay", "dropout", "validation")} | {
            "diverged": False
        }
    assert row["chosen"] == base["chosen"]
    place = row_folder(folder, row)
    saved = SavedHead(place, stores[1])
    logits = torch.stack([member(saved.tokens.take(torch.arange(120))) for member in saved.probe.members])
    mean = logits.double().softmax(-1).mean(0).detach().numpy()
    with np.load(place / "test.npz") as test, np.load(row_folder(folder, base) / "test.npz") as of_base:
        np.testing.assert_allclose(np.exp(test["logits"]), mean, atol=1e-5)
        right = test["logits"].argmax(1) == test["labels"]
        assert row["test"]["balanced_accuracy"] == pytest.approx(balanced(right, test["labels"]))
        np.testing.assert_allclose(logits[0].detach(), of_base["logits"], atol=1e-4)
        np.testing.assert_allclose(saved.predict().logits, test["logits"], atol=1e-5)
    assert row["num_parameters"] == 3 * base["num_parameters"]


def test_a_post_hoc_probe_keeps_the_curves_of_its_final_training_and_its_attention_map(
    stores: tuple[SplitRequest, SplitRequest], made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, rows = made
    smallest, top, base = (rows[f"attn-quarterly{suffix}"] for suffix in ("-smallest", "-top3", ""))
    protocols = [
        replace(FEW, lrs=(one["lr"],), weight_decays=(one["weight_decay"],), dropouts=(one["dropout"],))
        for one in top["derived"]["members"]
    ]
    named = parse_probe("attn-quarterly", 12)
    alone = [row_folder(tmp_path, probe(*stores, [named], one, tmp_path)[0]) for one in protocols]
    of_members = [dict(np.load(place / "curves.npz")) for place in alone]
    kept = dict(np.load(row_folder(folder, top) / "curves.npz"))
    assert set(kept) == {"refit_steps", "refit_loss", "refit_lr"}
    for name in ("refit_loss", "refit_lr"):
        np.testing.assert_array_equal(kept[name], np.concatenate([one[name] for one in of_members]))
    of_base, few = (dict(np.load(row_folder(folder, one) / "curves.npz")) for one in (base, smallest))
    np.testing.assert_array_equal(few["refit_steps"], of_base["refit_steps"])
    assert few["refit_loss"].shape == few["refit_lr"].shape == (1, len(few["refit_steps"]))
    assert (smallest["curves"], top["curves"]) == ("curves.npz",) * 2
    assert (row_folder(folder, smallest) / "attention.npz").exists()
    assert smallest["attention"]["entropy"]["mean"] > 0
    assert (top["attention"], [*row_folder(folder, top).glob("attention.*")]) == (None, [])


def test_a_post_hoc_probe_classifies_images(made: tuple[Path, dict[str, Any]], dim: Path) -> None:
    folder, rows = made
    for name in NAMES[1:]:
        saved = SavedProbe(row_folder(folder, rows[name]))
        predictions = saved.predict(open_source(f"folder:{dim}", "test"), num_workers=0)
        right = np.mean([one.label == one.target for one in predictions])
        assert right == pytest.approx(rows[name]["test"]["top1"])


def test_the_best_level_is_the_deepest_of_the_best_on_validation(made: tuple[Path, dict[str, Any]]) -> None:
    _, rows = made
    row = rows["linear@best"]
    scores = {one["probe"]: max(each["validation"] for each in one["settings"]) for one in row["candidates"]}
    assert list(scores)[:2] == ["linear@final", "linear@11"]
    assert row["candidate"] == max(scores, key=lambda name: scores[name])  # the first of equals
    assert row["levels"] == [f"block.{row['candidate'].removeprefix('linear@')}".replace("block.final", "final")]


def test_every_row_has_its_cost(made: tuple[Path, dict[str, Any]]) -> None:
    _, rows = made
    steps = {name: row["selection"]["num_steps"] for name, row in rows.items()}
    again = {name: row["refit"]["num_steps"] for name, row in rows.items()}
    trainings = {name: row["cost"]["trainings"] for name, row in rows.items()}
    assert trainings == {
        "linear-cls": 7,
        "attn-quarterly": 7,
        "linear@best": 13 * 6 + 1,
        "attn-quarterly-smallest": 7 + 10 + 1,
        "attn-quarterly-top3": 7 + 3 + 3,
    }
    base = rows["attn-quarterly"]["cost"]["probe_steps"]
    assert base == 6 * steps["attn-quarterly"] + again["attn-quarterly"]
    assert rows["attn-quarterly-top3"]["cost"]["probe_steps"] == base + 3 * (base - 5 * steps["attn-quarterly"])
    assert rows["linear@best"]["cost"]["probe_steps"] == 78 * steps["linear@best"] + again["linear@best"]
    assert rows["linear@best"]["probe_steps"] == 78 * steps["linear@best"]
    assert rows["attn-quarterly"]["cost"]["tokens_read"] == 8
    assert rows["attn-quarterly-smallest"]["cost"]["tokens_read"] == 2 * len(rows["attn-quarterly-smallest"]["levels"])
    assert all(row["seconds"]["refit"] > 0 for row in rows.values())


class Killed(Exception):
    pass


def test_a_search_that_was_killed_goes_on_with_what_is_missing_and_ends_as_if_nothing_had_happened(
    stores: tuple[SplitRequest, SplitRequest], made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    name, num_trainings = "attn-quarterly-smallest", []

    def listen(event: Event) -> None:
        if isinstance(event, ProbeProgress) and event.probes == (name,) and event.step == 0:
            if event.phase == "select":
                num_trainings.append(event.num_probes)
            if len(num_trainings) == 3 and event.num_probes == 2:
                raise Killed

    named = [parse_probe(one, 12) for one in NAMES]
    more: dict[str, Any] = {"config": {"model": REQUEST.to_dict()}, "on_event": listen}
    with pytest.raises(Killed):
        probe(*stores, named, FEW, tmp_path, **more)
    assert num_trainings == [4, 3, 2]
    assert len(list((tmp_path / ".sweeps").iterdir())) == 7
    trained: list[int] = []

    def listen_again(event: Event) -> None:
        if isinstance(event, ProbeProgress) and (event.probes, event.phase, event.step) == ((name,), "select", 0):
            trained.append(event.num_probes)

    probe(*stores, named, FEW, tmp_path, **more | {"on_event": listen_again})
    assert trained == [2, 1]
    folder, _ = made
    assert without_times(read_rows(tmp_path / "results.jsonl")) == without_times(read_rows(folder / "results.jsonl"))
    assert not (tmp_path / ".sweeps").exists()


def test_a_post_hoc_probe_is_reused_and_never_for_another_setting(
    stores: tuple[SplitRequest, SplitRequest], made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(made[0], folder)
    before = read_rows(folder / "results.jsonl")
    _, events = run(stores, folder, NAMES, FEW)
    assert [event.reused for event in events if isinstance(event, ProbeFinished)] == [True] * 4
    assert read_rows(folder / "results.jsonl") == before
    other, events = run(stores, folder, NAMES[2:3], replace(FEW, seed=1))
    assert [event.row["probe"] for event in events if isinstance(event, ProbeFinished) and not event.reused] == [
        "attn-quarterly",
        "attn-quarterly-top3",
    ]
    (base,) = [row for row in read_rows(folder / "results.jsonl")[len(before) :] if row["probe"] == "attn-quarterly"]
    assert other[0]["derived"]["base_key"] == base["key"] != made[1]["attn-quarterly"]["key"]
    assert other[0]["key"] != made[1]["attn-quarterly-top3"]["key"]
    two, _ = run(stores, folder, ("attn-quarterly-top2",), FEW)
    assert two[0]["derived"]["base_key"] == made[1]["attn-quarterly"]["key"]
    assert len(two[0]["derived"]["members"]) == 2


def test_the_test_tokens_are_not_read_before_everything_is_chosen_and_trained(
    stores: tuple[SplitRequest, SplitRequest],
    made: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Gone(Exception):
        pass

    tokens = SplitTokens.tokens

    def tokens_of_train(self: SplitTokens, level: str, kind: str) -> TokenArray:
        if self.record.split == "test":
            raise Gone
        return tokens(self, level, kind)

    monkeypatch.setattr(SplitTokens, "tokens", tokens_of_train)
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    kept = [row for row in read_rows(tmp_path / "results.jsonl") if row["derived"] is None]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    events: list[Event] = []
    for name in NAMES[1:3]:
        events.clear()
        with pytest.raises(Gone):
            probe(*stores, [parse_probe(name, 12)], FEW, tmp_path, on_event=events.append)
        phases = [event.phase for event in events if isinstance(event, ProbeProgress)]
        assert list(dict.fromkeys(phases)) == ["select", "validate", "refit"]
        last = [event for event in events if isinstance(event, ProbeProgress)][-1]
        assert last.step == last.num_steps


def test_a_post_hoc_probe_of_a_base_that_diverged_has_diverged(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    wild = replace(FEW, lrs=(1e30,), weight_decays=(1e-4,))
    rows, _ = run(stores, tmp_path, NAMES[1:3], wild)
    for row in rows:
        assert (row["diverged"], row["test"], row["chosen"]) == (True, None, None)
        assert row["derived"]["base"] == "attn-quarterly"
    assert [line[1] for line in results_table(rows)] == ["every setting diverged"] * 2


def test_only_what_a_halving_sweep_trained_to_the_end_and_no_setting_twice_is_a_member(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    halving = replace(FEW, sweep="halving")
    (row,), _ = run(stores, tmp_path, ("attn-quarterly-top5",), halving)
    base = next(one for one in read_rows(tmp_path / "results.jsonl") if one["probe"] == "attn-quarterly")
    most = max(one["num_steps"] for one in base["settings"])
    assert len(row["derived"]["members"]) == sum(one["num_steps"] == most for one in base["settings"]) < 5
    duplicates = replace(FEW, lrs=(1e-3,), weight_decays=(1e-6, 1e-5))  # both are no decay at all in float32
    (row,), _ = run(stores, tmp_path, ("attn-quarterly-top2",), duplicates)
    assert len(row["derived"]["members"]) == 1
    assert row["test"] == next(
        one["test"] for one in read_rows(tmp_path / "results.jsonl") if one["key"] == row["derived"]["base_key"]
    )


def test_a_table_says_what_was_found_and_averages_seeds_that_found_different_levels(
    stores: tuple[SplitRequest, SplitRequest], made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, rows = made
    lines = {line[0]: line[1] for line in results_table([rows[name] for name in NAMES])}
    assert lines["attn-quarterly-smallest"].startswith("levels ")
    assert lines["attn-quarterly-top3"].startswith("3 settings, lr ")
    assert lines["linear@best"].startswith("linear@")
    row = rows["attn-quarterly-smallest"]
    other = row | {"levels": ["block.3"], "protocol": row["protocol"] | {"seed": 1}}
    assert len(summarize([row, other])) == 1
    both = results_table([row, other])[0][1]
    assert "levels 3 (1)" in both or both.startswith("levels 3,")


def test_a_linear_probe_is_shrunk_too(stores: tuple[SplitRequest, SplitRequest], tmp_path: Path) -> None:
    quick: TrainingProtocol = replace(FEW, lrs=(1e-2,), weight_decays=(1e-4,), min_steps=10)
    (row,), _ = run(stores, tmp_path, ("linear-quarterly-smallest",), quick)
    assert (row["head"], row["num_heads"]) == ("linear", None)
    assert row["num_parameters"] == 2 * (2 * 192 * len(row["levels"]) + 1)


def test_the_trainings_of_a_plan_are_those_of_the_study(made: tuple[Path, dict[str, Any]]) -> None:
    _, rows = made

    def row_shape(level: str, kind: str) -> tuple[int, ...]:
        return (192,)

    own = {
        name: row["cost"]["trainings"] - (rows[row["derived"]["base"]]["cost"]["trainings"] if row["derived"] else 0)
        for name, row in rows.items()
    }
    assert {name: num_trainings(parse_probe(name, 12), FEW, row_shape) for name in rows} == own
