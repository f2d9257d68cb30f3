"""Stage two: from two stores to rows of results, and the law that a cached probe is the probe."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractions import extract
from messages import raises
from probe_runs import BATCH, PROTOCOL, REQUEST, run, stores_of
from small_stores import ALF, small_request, with_copies, write_small_store
from study_runs import read_rows

import layerbank
from layerbank import RequestError
from layerbank.cache import DamagedStoreError, MissingRowsError
from layerbank.data.sources import open_source
from layerbank.events import CopiesTogether, Event, ProbeFinished, ProbeProgress, ProbeStarted, TrainingStarted
from layerbank.extraction.extract import ExtractConfig
from layerbank.models.backbone import Backbone
from layerbank.models.rounding import float_tokens, round_tokens
from layerbank.probes import ArraySource, concat_tokens, run_sweeps, split_rows
from layerbank.probes.data.split import split_stratified
from layerbank.probing.predict import SavedProbe
from layerbank.probing.probe import check_one_model, probe, run_folder, verify_tokens
from layerbank.probing.probe_groups import candidates_of
from layerbank.probing.probe_sizes import leave_out_unfit
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.rows.result_key import SPLIT_WITH_COPIES
from layerbank.probing.rows.results import results_table
from layerbank.probing.rows.row_files import row_folder
from layerbank.probing.sweep_journal import SweepJournal
from layerbank.probing.tokens.resident import ResidentTokens
from layerbank.probing.tokens.split_tokens import SplitRequest
from layerbank.probing.tokens.streaming import StreamedTokens
from layerbank.probing.tokens.token_source import CachedTokens, join_tokens


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return REQUEST.open("cpu")


@pytest.fixture(scope="module")
def stores(
    backbone: Backbone, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SplitRequest, SplitRequest]:
    return stores_of(backbone, photos, tmp_path_factory.mktemp("caches"))


@pytest.mark.parametrize("storage_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["linear-mid", "attn-quarterly", "alf-grid2-mid"])
def test_a_probe_trained_from_the_cache_is_bit_for_bit_the_one_trained_on_tokens_computed_on_the_fly(
    backbone: Backbone, photos: Path, tmp_path: Path, name: str, storage_dtype: str
) -> None:
    train, _ = stores_of(backbone, photos, tmp_path, storage_dtype)
    named = parse_probe(name, backbone.depth)
    source = open_source(f"folder:{photos}", "train")
    forward = backbone.compile(named.levels, named.kinds)
    pieces, cache = [], train.open()
    joined, order = CachedTokens(cache, named), torch.from_numpy(train.record.images.reading_order)
    for rows in order.split(BATCH):  # batches as they are extracted: others may differ in last bits
        tokens = forward(torch.stack([backbone.transform(source.load(row)[0]) for row in rows.tolist()]))
        rounded = [round_tokens(tokens[level][kind], storage_dtype) for level in named.levels for kind in named.kinds]
        parts = [float_tokens(one.values, storage_dtype) for one in rounded]
        assert torch.equal(join_tokens(named, parts), joined.take(rows))
        pieces.append(concat_tokens([part.float().view(len(part), -1, part.shape[-1]) for part in parts]))
    cached = CachedTokens(cache, [named])
    online = ArraySource(torch.cat(pieces)[order.argsort()], torch.from_numpy(source.labels), 3, blocks=cached.blocks)
    (candidate,) = candidates_of(cache, named)
    protocol = replace(PROTOCOL, dropouts=(0.1,))
    one, two, three = (
        run_sweeps([[candidate]], s, lambda s=s: s, protocol)[0] for s in (online, cached, cached.in_memory())
    )
    assert one.probe is not None
    for other in (two, three):
        assert other.probe is not None
        for (key, value), (_, wanted) in zip(
            other.probe.state_dict().items(), one.probe.state_dict().items(), strict=True
        ):
            assert torch.equal(value, wanted), key
        assert other.validation == one.validation
        assert torch.equal(other.test_logits, one.test_logits)  # type: ignore[arg-type]


def test_every_probe_of_the_demo_leaves_a_row_a_checkpoint_and_where_it_attends_an_attention_map(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    names = ("linear-cls", "linear-last", "linear-all", "attn-last", "alf", "alf-grid2")
    rows, events = run(stores, tmp_path, names)
    assert [row["probe"] for row in rows] == list(names)
    assert read_rows(tmp_path / "results.jsonl") == json.loads(json.dumps(rows))
    for row in rows:
        assert not row["diverged"]
        assert 0 <= row["test"]["balanced_accuracy"] <= 1
        assert len(row["settings"]) == 2
        place = row_folder(tmp_path, row)
        assert (place / "probe.safetensors").exists()
        picture = place / "attention.png"
        assert picture.exists() == (row["head"] == "attentive")
        if picture.exists():
            shares = np.loadtxt(picture.with_suffix(".csv"), delimiter=",", skiprows=1, usecols=2)
            assert shares.sum() == pytest.approx(1, abs=1e-4)
            assert sum(one["mean"] for one in row["attention"]["share_of_third"].values()) == pytest.approx(1, abs=1e-5)
            kinds = row["attention"]["share_of_kind"]
            assert kinds["cls"]["mean"] == pytest.approx(shares[::2].sum(), abs=1e-4)
            assert (
                1 <= row["attention"]["effective_tokens"]["mean"] <= len(row["levels"]) * (5 if "grid2" in kinds else 2)
            )
        else:
            assert row["attention"] is None
    assert rows[4]["num_heads"] == 24
    assert rows[5]["num_heads"] == 24
    assert [type(event) for event in events].count(ProbeStarted) == 6
    assert {event.phase for event in events if isinstance(event, ProbeProgress)} == {
        "select",
        "validate",
        "refit",
        "test",
    }


def test_the_folder_of_a_row_has_the_files_that_the_readme_lists_and_no_others(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    readme = (Path(layerbank.__file__).parent / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## What `layerbank probe` leaves") :]
    listed = re.findall(r"^\| `([\w.-]+)` \| (.*?) \|", section[: section.index("A row's `key`")], re.MULTILINE)
    assert {of for _, of in listed} <= {"every probe", "trained probes", "attentive probes", "`-smallest`"}
    rows, _ = run(
        stores, tmp_path, ("linear-cls", "alf", "ridge-cls", "cae", "ep", "attn-mid", "attn-mid-smallest", "alf-top2")
    )
    for row in rows:
        kinds = {"every probe"}
        kinds |= {"trained probes"} if row["selection"] else set()
        kinds |= {"attentive probes"} if row["attention"] else set()
        kinds |= {"`-smallest`"} if row["probe"].endswith("-smallest") else set()
        place = row_folder(tmp_path, row)
        assert {path.name for path in place.iterdir()} == {name for name, of in listed if of in kinds}, row["probe"]
        for path in place.glob("*.npz"):
            with np.load(path, allow_pickle=False) as arrays:
                for name in arrays.files:
                    assert f"`{name} [" in section, f"{path.name}: {name}"
                    assert arrays[name].dtype != object
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.jsonl",
        ".results.jsonl.lock",
        *(split.record.file_name for split in stores),
        *(row_folder(tmp_path, row).name for row in rows),
    }
    place = row_folder(tmp_path, rows[1])
    with np.load(place / "attention.npz") as attention, np.load(place / "test.npz") as test:
        assert attention["sample_ids"].tolist() == test["sample_ids"].tolist()


def test_every_head_of_another_study_trains_from_the_cache_is_saved_and_predicts(
    stores: tuple[SplitRequest, SplitRequest], photos: Path, tmp_path: Path
) -> None:
    over_patches = ("cae", "aim", "ep", "vjepa", "map", "abmilp", "simpool", "ep-mid")
    names = (*over_patches, "alf-embed", "scalar-mix", "alf-embed-mid")
    rows, _ = run(stores, tmp_path, names, replace(PROTOCOL, lrs=(1e-2,), epochs=1, min_steps=2))
    assert [row["num_heads"] for row in rows] == [8, 12, 32, 12, 12, None, None, 32, 24, None, 4]
    for row in rows:
        assert not row["diverged"]
        assert (row_folder(tmp_path, row) / "attention.png").exists() == (row["head"] in ("cae", "alf-embed"))
    for row in (rows[0], rows[8]):  # with patches, with levels
        saved = SavedProbe(row_folder(tmp_path, row))
        predicted = saved.predict(open_source(f"folder:{photos}", "test"), num_workers=0)
        best = np.load(row_folder(tmp_path, row) / "test.npz")["logits"].argmax(1)
        assert [one.label for one in predicted] == [saved.class_names[label] for label in best]


def test_probes_that_are_solved_leave_rows_and_predict_what_was_tested(
    stores: tuple[SplitRequest, SplitRequest], photos: Path, tmp_path: Path
) -> None:
    names = ("ridge-mid", "logreg-cls", "knn-last")
    rows, events = run(stores, tmp_path, names, replace(PROTOCOL, penalties=(1e-1, 1e-4), num_neighbors=(3, 9)))
    assert [list(row["chosen"]) for row in rows] == [["penalty"], ["penalty"], ["num_neighbors"]]
    assert [event.num_settings for event in events if isinstance(event, ProbeStarted)] == [2, 2, 2]
    source = open_source(f"folder:{photos}", "test")
    (linear,), _ = run(stores, tmp_path / "linear", ("linear-cls",))
    for row in rows:
        assert row.keys() == linear.keys()
        assert (row["selection"], row["refit"], row["rungs"], row["probe_steps"]) == (None, None, [], 0)
        saved = SavedProbe(row_folder(tmp_path, row))
        predictions = list(saved.predict(source, batch_size=BATCH, num_workers=0))
        right = [one.label == one.target for one in predictions]
        assert np.mean(right) == pytest.approx(row["test"]["top1"])
    table = results_table(rows)
    assert [line[1].split()[0] for line in table] == ["penalty", "penalty", "k"]


@pytest.mark.parametrize("head", ["ridge", "logreg", "knn"])
def test_the_best_level_of_what_is_solved_is_the_best_of_its_levels_alone_on_validation_the_deepest_of_equals(
    stores: tuple[SplitRequest, SplitRequest], photos: Path, tmp_path: Path, head: str
) -> None:
    few = replace(PROTOCOL, penalties=(1e-1, 1e-4), num_neighbors=(3, 9))
    (best,), events = run(stores, tmp_path, (f"{head}@best",), few)
    levels = [f"{head}@{level}" for level in ("final", *reversed(range(12)))]
    alone, _ = run(stores, tmp_path / "alone", tuple(levels), few)
    assert [(one["probe"], one["settings"]) for one in best["candidates"]] == [
        (row["probe"], row["settings"]) for row in alone
    ]
    winner = max(alone, key=lambda row: row["validation"])  # the first of equals
    assert best["candidate"] == winner["probe"]
    for same in ("levels", "kinds", "chosen", "validation", "settings", "test", "head", "num_parameters", "memory"):
        assert best[same] == winner[same], same
    of_best, of_winner = (
        np.load(row_folder(folder, row) / "test.npz")["logits"]
        for folder, row in ((tmp_path, best), (tmp_path / "alone", winner))
    )
    assert np.array_equal(of_best, of_winner)
    assert [event.num_settings for event in events if isinstance(event, ProbeStarted)] == [26]
    saved = SavedProbe(row_folder(tmp_path, best))
    predictions = list(saved.predict(open_source(f"folder:{photos}", "test"), batch_size=BATCH, num_workers=0))
    assert np.mean([one.label == one.target for one in predictions]) == pytest.approx(best["test"]["top1"])
    assert results_table([best])[0][1].startswith(f"{head}@")


def test_copies_are_on_one_side_of_the_split_of_every_probe_are_reported_and_give_another_key(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    names = ("linear-cls", "ridge-cls", "attn-mid-smallest")
    copies = with_copies(stores[0], {row + 20: row for start in (0, 40, 80) for row in range(start, start + 20)})
    rows, events = run((copies, stores[1]), tmp_path, names, replace(PROTOCOL, lrs=(1e-2,), min_steps=2))
    (reported,) = [event for event in events if isinstance(event, CopiesTogether)]
    assert reported.num_images == 120
    assert 0 < reported.num_moved < 120
    for row in rows:
        assert row["key_fields"]["split.rule"] == SPLIT_WITH_COPIES
        assert row["digest"]
    assert set(tmp_path.glob("*.npz")) == {tmp_path / split.record.file_name for split in (copies, stores[1])}
    again, events = run((copies, stores[1]), tmp_path, names, replace(PROTOCOL, lrs=(1e-2,), min_steps=2))
    assert again == rows
    assert not [event for event in events if isinstance(event, CopiesTogether)]  # nothing is split again
    plain, events = run(stores, tmp_path / "plain", ("linear-cls",))
    assert "split.rule" not in plain[0]["key_fields"]
    assert not [event for event in events if isinstance(event, CopiesTogether)]


def test_tokens_are_split_with_their_copies_wherever_they_lie(tmp_path: Path) -> None:
    assert write_small_store(tmp_path).groups is None
    cache = with_copies(small_request(tmp_path), {row + 100: row for row in range(100)}).open()
    tokens = CachedTokens(cache, [ALF])
    sources = [
        tokens,
        tokens.in_memory(),
        ResidentTokens(tokens, torch.device("cpu")),
        StreamedTokens(tokens, buffer_rows=64),
    ]
    splits = [split_rows(source, 0.2, 0) for source in sources]
    kept, held_out = splits[0]
    assert all(torch.equal(one[0], kept) and torch.equal(one[1], held_out) for one in splits)
    hashes = cache.content_hashes
    assert not np.isin(hashes[kept], hashes[held_out]).any()
    plain = split_stratified(tokens.task.strata(tokens.targets), 0.2, 0)
    assert np.isin(*(hashes[rows] for rows in plain)).any()


def test_a_halving_sweep_says_what_it_trained_and_is_another_result(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    full, _ = run(stores, tmp_path, ("linear-cls",))
    halving, _ = run(stores, tmp_path, ("linear-cls",), replace(PROTOCOL, sweep="halving"))
    assert halving[0]["key"] != full[0]["key"]
    steps = full[0]["selection"]["num_steps"]
    assert full[0]["rungs"] == [{"num_settings": 2, "num_steps": steps}]
    assert full[0]["probe_steps"] == 2 * steps
    assert [rung["num_settings"] for rung in halving[0]["rungs"]] == [2, 1, 1]
    assert halving[0]["probe_steps"] == sum(one["num_settings"] * one["num_steps"] for one in halving[0]["rungs"])
    assert max(score["num_steps"] for score in halving[0]["settings"]) == steps


def test_the_same_seed_gives_the_same_results_apart_from_times(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    texts = []
    for name in ("one", "two"):
        run(stores, tmp_path / name, ("linear-cls", "alf"))
        rows = read_rows(tmp_path / name / "results.jsonl")
        texts.append([json.dumps({**row, "seconds": None, "digest": None}) for row in rows])
    assert texts[0] == texts[1]


def test_a_finished_row_is_reused_and_another_setting_never_is(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    first, _ = run(stores, tmp_path, ("linear-cls",))
    again, events = run(stores, tmp_path, ("linear-cls",))
    assert again == first
    assert [event.reused for event in events if isinstance(event, ProbeFinished)] == [True]
    other, events = run(stores, tmp_path, ("linear-cls",), replace(PROTOCOL, seed=1))
    assert other[0]["key"] != first[0]["key"]
    assert [event.reused for event in events if isinstance(event, ProbeFinished)] == [False]
    assert len(read_rows(tmp_path / "results.jsonl")) == 2


def test_the_compute_precision_belongs_to_the_key_of_trained_probes_and_not_of_solved_ones(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    names = ("linear-cls", "ridge-cls")
    plain, _ = run(stores, tmp_path, names)
    rounded, _ = run(stores, tmp_path, names, replace(PROTOCOL, compute="bfloat16"))
    assert [row["compute"] for row in plain] == ["float32", None]
    assert [row["compute"] for row in rounded] == ["bfloat16", None]
    assert [one["key"] == other["key"] for one, other in zip(plain, rounded, strict=True)] == [False, True]
    assert run(stores, tmp_path, names, replace(PROTOCOL, compute="float32"))[0] == plain


def test_best_keeps_the_candidate_that_validation_chose_and_the_scores_of_all(
    stores: tuple[SplitRequest, SplitRequest], photos: Path, tmp_path: Path
) -> None:
    """Alone, or beside a candidate of its own: both are then trained once."""
    named = leave_out_unfit([parse_probe("best", 12)], REQUEST.open("cpu").row_shape)
    names = [one.name for one in named[0].candidates]
    assert not any("grid4" in name for name in names)  # there are 2 x 2 patches
    assert len(names) == 8
    config = {"model": REQUEST.to_dict()}
    events: list[Event] = []
    (best, alf) = probe(
        *stores, [*named, parse_probe("alf", 12)], PROTOCOL, tmp_path, config=config, on_event=events.append
    )
    assert [event.probes for event in events if isinstance(event, TrainingStarted)] == [("best", "alf")]
    assert (best["probe"], alf["probe"]) == ("best", "alf")
    assert [one["probe"] for one in best["candidates"]] == names
    scores = [max(score["validation"] for score in one["settings"]) for one in best["candidates"]]
    assert best["validation"] == max(scores)
    assert best["candidate"] == names[scores.index(max(scores))]
    assert (alf["candidate"], alf["candidates"]) == (None, [])
    as_alf = next(one for one in best["candidates"] if one["probe"] == "attn-all")
    assert as_alf["settings"] == alf["settings"]
    winner = parse_probe(best["candidate"], 12)
    assert (tuple(best["levels"]), tuple(best["kinds"])) == (winner.levels, winner.kinds)
    saved = SavedProbe(row_folder(tmp_path, best))
    predictions = list(saved.predict(open_source(f"folder:{photos}", "test"), batch_size=BATCH, num_workers=0))
    assert np.mean([one.label == one.target for one in predictions]) == pytest.approx(best["test"]["top1"])


def test_a_row_is_the_same_whatever_its_probe_trained_together_with(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    names = ("linear-cls", "alf", "alf-grid2-mid", "linear-mid", "cae")
    together, events = run(stores, tmp_path / "together", names)
    groups = [set(event.probes) for event in events if isinstance(event, TrainingStarted)]
    assert any({"linear-cls", "alf"} <= group for group in groups)
    for name, row in zip(names, together, strict=True):
        (alone,), _ = run(stores, tmp_path / name, (name,))
        may_differ = {"seconds": None, "digest": None}
        assert row | may_differ == alone | may_differ


def test_retraining_writes_the_row_again(stores: tuple[SplitRequest, SplitRequest], tmp_path: Path) -> None:
    run(stores, tmp_path, ("linear-cls",))
    _, events = run(stores, tmp_path, ("linear-cls",), retrain=True)
    assert [event.reused for event in events if isinstance(event, ProbeFinished)] == [False]


def test_an_interrupted_retraining_goes_on(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = run(stores, tmp_path, ("linear-cls", "attn-last"))
    real, kept = SweepJournal.keep, []

    def keep(self: SweepJournal, key: Any, scores: Any) -> None:
        real(self, key, scores)
        kept.append(key)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SweepJournal, "keep", keep)
        with pytest.raises(KeyboardInterrupt):
            run(stores, tmp_path, ("linear-cls", "attn-last"), retrain=True)
    find, found = SweepJournal.find, []

    def find_counted(self: SweepJournal, key: Any) -> Any:
        found.append(find(self, key))
        return found[-1]

    monkeypatch.setattr(SweepJournal, "find", find_counted)
    again, _ = run(stores, tmp_path, ("linear-cls", "attn-last"), retrain=True)
    assert sum(scores is not None for scores in found) == 2
    assert [row["test"] for row in again] == [row["test"] for row in rows]
    assert not (tmp_path / ".sweeps").exists()


def test_a_probe_all_of_whose_settings_diverge_is_a_row_that_says_so(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    rows, _ = run(stores, tmp_path, ("linear-cls",), replace(PROTOCOL, lrs=(1e38,), clip_norm=float("inf")))
    assert rows[0]["diverged"]
    assert rows[0]["test"] is None
    assert rows[0]["chosen"] is None
    place = row_folder(tmp_path, rows[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [".results.jsonl.lock", "results.jsonl", place.name, *(split.record.file_name for split in stores)]
    )
    assert [path.name for path in place.iterdir()] == [rows[0]["curves"]]


def test_tokens_without_the_kinds_of_a_probe_are_refused_with_the_command_that_adds_them(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    with raises("probing.missing_arrays", RequestError, probe="alf-grid3", kinds="cls,grid3") as refused:
        run(stores, tmp_path, ("alf-grid3",))
    assert "block.1/grid3" in refused.error.values["arrays"]
    assert "layerbank extract ... --kinds cls,grid3" in refused.error.todo


def test_a_damaged_store_is_refused_with_the_command_that_repairs_it(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    shutil.copytree(stores[0].cache_root, tmp_path / "caches")
    train, test = (replace(split, cache_root=tmp_path / "caches", arrays=(("final", "cls"),)) for split in stores)
    verify_tokens([train, test])
    (store,) = train.open().stores
    chunk = store / "tokens/final/cls/c.0.0"
    whole = chunk.read_bytes()
    for content, key in ((whole[:-8] + b"altered.", "probing.damaged_store"), (b"short", "cache.store_damaged")):
        chunk.write_bytes(content)
        with raises(key, DamagedStoreError, store=store) as refused:
            verify_tokens([train, test])
        assert "final/cls" in refused.error.got
    chunk.write_bytes(whole)
    (store / "tokens/final/ap/c.0.0").unlink()  # of an array that is not read
    verify_tokens([train, test])


def test_images_without_tokens_are_refused_with_the_command_that_computes_them(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    gone = replace(stores[0], cache_root=tmp_path / "nowhere")
    with raises("cache.rows_missing", MissingRowsError, name=gone.name, num_missing=120, num_rows=120):
        probe(gone, stores[1], [parse_probe("linear-cls", 12)], PROTOCOL, tmp_path)


def test_splits_of_two_models_are_refused(stores: tuple[SplitRequest, SplitRequest]) -> None:
    train, test = stores
    check_one_model(train, test)
    other = replace(test, model=replace(test.model, storage_dtype="float32"))
    with raises("probing.different_models", RequestError, test=test.name, test_model="storage_dtype = float32"):
        check_one_model(train, other)
    with raises("probing.different_models", RequestError, train_model="tap = norm2", test_model="tap = attn"):
        check_one_model(train, replace(test, tap="attn"))


def test_a_name_may_change_the_protocol_and_its_gain_still_counts(
    backbone: Backbone, photos: Path, tmp_path: Path
) -> None:
    arrays = tuple((f"block.{k}", kind) for k in (3, 6, 9) for kind in ("cls", "patch"))
    config = ExtractConfig(arrays=(*arrays, ("final", "cls"), ("final", "patch")), batch_size=BATCH, num_workers=0)
    train, test = (
        extract(backbone, open_source(f"folder:{photos}", split), config, tmp_path) for split in ("train", "test")
    )
    rows, _ = run((train, test), tmp_path / "runs", ("linear-cls", "aat", "aat-quarterly", "linear@6"))
    assert rows[2]["protocol"]["jitter_probability"] == 0.9
    assert {(one["weight_decay"], one["dropout"]) for one in rows[2]["settings"]} == {(1.0, 0.5)}
    assert rows[1]["protocol"]["jitter_probability"] == 0.5
    assert [row["num_heads"] for row in rows] == [None, 8, 24, None]
    assert len({row["setting_of_study"] for row in rows}) == 1
    assert len({row["key"] for row in rows}) == 4


def test_quirks_normalise_the_patches_of_a_level_over_its_tokens_and_a_saved_probe_predicts_so_too(
    stores: tuple[SplitRequest, SplitRequest], photos: Path, tmp_path: Path
) -> None:
    named = parse_probe("cae-mid", 12, reference_quirks=True)
    plain = parse_probe("cae-mid", 12)
    cache = stores[0].open()
    tokens = CachedTokens(cache, named).take(torch.arange(3))  # [3, 2 levels x (cls + 4 patches), D]
    for number, level in enumerate(named.levels):
        cls, patch = (cache.tokens(level, kind).take(cache.positions[:3]).astype(np.float32) for kind in named.kinds)
        of_level = np.concatenate([cls[:, None], patch], 1)
        wanted = of_level / np.sqrt((of_level**2).sum(1, keepdims=True))
        np.testing.assert_allclose(tokens[:, 5 * number : 5 * number + 5].numpy(), wanted, rtol=1e-5, atol=1e-6)

    events: list[Event] = []
    protocol = replace(PROTOCOL, lrs=(1e-2,), epochs=1, min_steps=2, jitter_validation=True)
    config = {"model": REQUEST.to_dict()}
    rows = probe(*stores, [named, plain], protocol, tmp_path, config=config, on_event=events.append)
    assert [row["normalize"] for row in rows] == ["token-axis", "width"]
    assert all(row["protocol"]["jitter_validation"] for row in rows)
    assert rows[0]["key"] != rows[1]["key"]
    again = probe(*stores, [plain], replace(protocol, jitter_validation=False), tmp_path, config=config)
    assert again[0]["key"] not in {row["key"] for row in rows}
    place = row_folder(tmp_path, rows[0])
    predicted = SavedProbe(place).predict(open_source(f"folder:{photos}", "test"), num_workers=0)
    names = cache.class_names
    assert [one.label for one in predicted] == [
        names[label] for label in np.load(place / "test.npz")["logits"].argmax(1)
    ]


def test_results_lie_in_a_folder_of_the_data_set_and_the_model(stores: tuple[SplitRequest, SplitRequest]) -> None:
    folder = run_folder(Path("runs"), stores[0])
    model = stores[0].model
    assert folder == Path("runs") / stores[0].record.dataset / f"timm-vit_tiny_patch16_224-{model.digest[:8]}"


def test_a_saved_probe_predicts_what_the_sweep_tested(
    stores: tuple[SplitRequest, SplitRequest], photos: Path, tmp_path: Path
) -> None:
    rows, _ = run(stores, tmp_path, ("alf",))
    saved = SavedProbe(row_folder(tmp_path, rows[0]))
    source = open_source(f"folder:{photos}", "test")
    predictions = list(saved.predict(source, batch_size=BATCH, num_workers=0))
    assert [one.sample_id for one in predictions] == source.ids
    with np.load(row_folder(tmp_path, rows[0]) / "test.npz") as tested:
        assert tested["sample_ids"].tolist() == source.ids
        assert tested["labels"].tolist() == source.labels.tolist()
        said = [source.class_names[index] for index in tested["logits"].argmax(1)]
    assert said == [one.label for one in predictions]
    right = [one.label == one.target for one in predictions]
    assert np.mean(right) == pytest.approx(rows[0]["test"]["top1"])
    assert all(1 / 3 <= one.probability <= 1 for one in predictions)


def test_a_probe_of_another_backbone_is_refused_with_what_differs(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    rows, _ = run(stores, tmp_path, ("linear-cls",))
    folder = row_folder(tmp_path, rows[0])
    description = json.loads((folder / "probe.json").read_text())
    description["config"]["model"]["seed"] = 5
    (folder / "probe.json").write_text(json.dumps(description))
    with raises("probing.other_backbone", RequestError, folder=folder) as refused:
        SavedProbe(folder)
    for side in ("trained_on", "found"):
        assert re.fullmatch("weights = '[0-9a-f]+'", refused.error.values[side])
