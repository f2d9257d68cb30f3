"""What a report reads beside results: images of the data, records of them, and tokens of the stores. One real, tiny run."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import VIT, run
from messages import shows
from photos import write_photos
from PIL import Image
from report_page import ReadPage, require_computed_again
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score

from layerbank.cache import ModelSpec
from layerbank.data.splits.split_record import load_record
from layerbank.probes import AttentiveProbe, load_probe
from layerbank.probing.tokens.split_tokens import SplitRequest
from layerbank.report.saved import prune_tokens
from layerbank.statistics import similarity

FAST = "epochs = 2\nmin_steps = 20\nlrs = [0.01]\nweight_decays = [1e-4]\ndropouts = [0.0]\n"
CLASSES = ("blue", "<i>green", "red")
PROBES = "linear-cls,alf,alf-cls,alf-ap,alf-h8,linear@0,linear@6,linear@final"
SUBSET = 30  # of 39 test images, so that the Gaussian kernel has a subset to draw


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Photographs of which three are in both splits, one of them as another class; probes trained on them; a report."""
    folder = tmp_path_factory.mktemp("report stores")
    photos = write_photos(folder / "photos", {"train": 20, "test": 12}, CLASSES)
    for target, name in (("blue", "a"), ("blue", "b"), ("red", "c")):
        shutil.copy(
            photos / "train" / "blue" / f"00{'abc'.index(name)}.png", photos / "test" / target / f"copy-{name}.png"
        )
    (folder / "fast.toml").write_text(FAST)
    where = ("--data", f"folder:{photos}", "--cache", folder / "caches", "--runs", folder / "runs")
    trained = run("probe", *VIT, *where, "--protocol", folder / "fast.toml", "--probe", PROBES)
    assert trained.exit_code == 0, trained.output
    more = (
        "--markdown",
        folder / "all.md",
        "--latex",
        folder / "all.tex",
        "--figures",
        folder / "figures",
        "--tokens",
        "--json",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "SUBSET", SUBSET)
        result = run("report", folder / "runs", "--cache", folder / "caches", *more)
    assert result.exit_code == 0, result.output
    (rows_file,) = (folder / "runs").rglob("results.jsonl")
    rows = {row["probe"]: row for row in map(json.loads, rows_file.read_text().splitlines())}
    said = {}
    for probe, row in rows.items():
        with np.load(rows_file.parent / f"{probe}-{row['key'][:8]}" / "test.npz") as saved:
            said[probe] = {name: saved[name] for name in saved.files}
    page = ReadPage(folder / "runs" / "report" / "index.html")
    answer = json.loads(result.stdout)
    return {
        "folder": folder,
        "photos": photos,
        "page": page,
        "rows": rows,
        "said": said,
        "answer": answer,
        "at": rows_file.parent,
    }


def cards_of(page: ReadPage) -> list[dict[str, Any]]:
    """Every image of the page: rule, class, id, picture, what was said, and of what the strip consists."""
    found = []
    for part in re.split(r'(?=<p class="rule">)', page.source)[1:]:
        rule = html.unescape(re.findall(r'<p class="rule">(.*?)</p>', part)[0])
        for card in part.split('<li class="card">')[1:]:
            picture = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', card)
            said = re.findall(
                r'<li class="(hit|miss)"><span>(.*?)</span> <span>. (.*?)</span> <span class="n">(\d+) %', card
            )
            found.append(
                {
                    "rule": rule,
                    "class": html.unescape(re.findall(r"<b>(.*?)</b>", card)[0]),
                    "id": html.unescape(re.findall(r'<span class="id">(.*?)</span>', card)[0]),
                    "picture": base64.b64decode(picture[0]) if picture else None,
                    "said": {name: (kind, html.unescape(answer), int(sure)) for kind, name, answer, sure in said},
                    "strip": [float(one) for one in re.findall(r'fill-opacity="([\d.]+)"', card)],
                }
            )
    return found


def test_nothing_is_left_out(place: dict[str, Any]) -> None:
    assert place["answer"]["left_out"] == []
    ids = place["page"].ids
    assert len(ids) == len(set(ids))


def test_images_in_both_splits_are_counted_marked_and_judged_without(place: dict[str, Any]) -> None:
    page, said = place["page"], place["said"]
    (line,) = page.tables["duplicates-of-splits"].records()
    assert (line["test images"], line["also in training"], line["with another label"]) == ("39", "3", "1")
    assert line["share in %"] == "7.69"
    pairs = {one["test image"]: one["training image"] for one in page.tables["pairs-of-0"].records()}
    assert pairs == {
        "test/blue/copy-a.png": "train/blue/000.png",
        "test/blue/copy-b.png": "train/blue/001.png",
        "test/red/copy-c.png": "train/blue/002.png",
    }
    for one in page.tables["without-duplicates"].records():
        labels, predicted = said[one["probe"]]["labels"], said[one["probe"]]["logits"].argmax(1)
        kept = np.array([id not in pairs for id in said[one["probe"]]["sample_ids"]])
        whole = 100 * balanced_accuracy_score(labels, predicted)
        rest = 100 * balanced_accuracy_score(labels[kept], predicted[kept])
        assert (one["accuracy"], one["without them"]) == (f"{whole:.2f}", f"{rest:.2f}")
        assert one["difference"] == f"{rest - whole:+.2f}"
    assert page.tables["by-dataset"].marks[0][0] == "a"
    warning = "3 of 39 test images (7.7 %) are also training images, 1 with another label"
    assert f"Beware: photos: {warning}." in page.texts
    assert f"- photos: {warning}" in (place["folder"] / "all.md").read_text()
    assert f"% photos: {warning}" in (place["folder"] / "all.tex").read_text()


def left_out(runs: Path, page: Path, *options: Any) -> list[str]:
    result = run("report", runs, "--html", page, "--json", *options)
    assert result.exit_code == 0, result.output
    said: list[str] = json.loads(result.stdout)["left_out"]
    return said


def test_without_the_stores_it_says_so_and_images_in_both_splits_are_found_all_the_same(
    place: dict[str, Any], tmp_path: Path
) -> None:
    said = left_out(place["folder"] / "runs", tmp_path / "a.html", "--cache", tmp_path / "gone", "--tokens")
    assert said == [
        f"Nothing of --tokens for photos: {tmp_path / 'gone'} lacks tokens of these images. Give the folder of their stores with "
        "--cache, or run layerbank extract again."
    ]
    page = ReadPage(tmp_path / "a.html")
    assert page.tables["duplicates-of-splits"].records() == place["page"].tables["duplicates-of-splits"].records()


def test_stores_may_be_moved_be_read_only_and_lie_among_others(place: dict[str, Any], tmp_path: Path) -> None:
    """Figures are those of the whole cache, whatever else is in it and wherever it lies."""
    moved = tmp_path / "moved"
    shutil.copytree(place["folder"] / "caches", moved)
    for number, store in enumerate([*moved.glob("*/*.zarr")]):
        store.rename(store.with_name(f"renamed-{number}.zarr"))
    (moved / "notes.txt").write_text("mine")
    (moved / "other-01234567").mkdir()
    for path in [*moved.rglob("*"), moved]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert left_out(place["folder"] / "runs", tmp_path / "a.html", "--cache", moved, "--tokens") == []
    finally:
        for path in [moved, *moved.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    page = ReadPage(tmp_path / "a.html")
    for name in ("few-tokens.csv", "train-test.csv", "cka-0.csv"):
        assert page.csvs[name] == place["page"].csvs[name], name


def test_a_cache_without_some_of_the_images_is_as_good_as_none(place: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(place["folder"] / "caches", tmp_path / "caches")
    (test,) = (tmp_path / "caches").glob("*/photos-test-*.zarr")
    shutil.rmtree(test)
    said = left_out(place["folder"] / "runs", tmp_path / "a.html", "--cache", tmp_path / "caches", "--tokens")
    assert [one.partition(":")[0] for one in said] == ["Nothing of --tokens for photos"]
    assert "lacks tokens of these images" in said[0]


def test_a_damaged_store_is_named_and_the_rest_goes_on(place: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(place["folder"] / "caches", tmp_path / "caches")
    (test,) = (tmp_path / "caches").glob("*/photos-test-*.zarr")
    (test / "tokens/final/cls/c.0.0").write_bytes(b"short")
    said = left_out(place["folder"] / "runs", tmp_path / "a.html", "--cache", tmp_path / "caches", "--tokens")
    assert [one.partition(":")[0] for one in said] == ["Nothing of --tokens for photos"]
    assert "final/cls" in said[0]


@pytest.mark.parametrize("damage", ["missing", "cut off", "swapped", "altered"])
def test_records_that_are_not_as_they_were_written_are_named_and_never_believed(
    place: dict[str, Any], tmp_path: Path, damage: str
) -> None:
    shutil.copytree(place["folder"] / "runs", tmp_path / "runs")
    (train,), (test,) = ([*(tmp_path / "runs").rglob(f"{split}-*.npz")] for split in ("train", "test"))
    if damage == "missing":
        train.unlink()
    elif damage == "cut off":
        train.write_bytes(train.read_bytes()[:-200])
    elif damage == "swapped":
        train.write_bytes(test.read_bytes())
    else:
        with np.load(train) as arrays:
            np.savez(train, **{**arrays, "labels": arrays["labels"][::-1]})
    said = left_out(
        tmp_path / "runs", tmp_path / "a.html", "--cache", place["folder"] / "caches", "--tokens", "--no-images"
    )
    assert any(
        one.startswith("Test images that are also training images were not looked for in photos") for one in said
    )
    assert any(one.startswith("Nothing of --tokens for photos: these results do not name their images") for one in said)
    assert any(shows(one, "data.unreadable_record") for one in said) == (damage != "missing")
    assert "duplicates-of-splits" not in ReadPage(tmp_path / "a.html").tables


def test_images_are_chosen_by_the_stated_rule_and_show_what_was_said(place: dict[str, Any]) -> None:
    said, cards = place["said"], cards_of(place["page"])
    labels, ids = said["alf"]["labels"], said["alf"]["sample_ids"].tolist()
    sure = {probe: softmax(one["logits"].astype(float), axis=1).max(1) for probe, one in said.items()}
    hits = {probe: one["logits"].argmax(1) == labels for probe, one in said.items()}
    by_rule: dict[str, list[str]] = {}
    for card in cards:
        by_rule.setdefault(card["rule"], []).append(card["id"])
    rows = range(len(labels))
    misses = sorted((row for row in rows if not hits["alf"][row]), key=lambda row: -sure["alf"][row])[:8]
    unsure = sorted((row for row in rows if hits["alf"][row]), key=lambda row: sure["alf"][row])[:8]
    assert by_rule.get("Misses of which alf was surest", []) == [ids[row] for row in misses]
    assert by_rule.get("Hits of which alf was least sure", []) == [ids[row] for row in unsure]
    disputed = by_rule.get("Exactly one of alf and linear-cls is right", [])
    wanted = [ids[row] for row in rows if hits["alf"][row] != hits["linear-cls"][row] and row not in (*misses, *unsure)]
    assert set(disputed) <= set(wanted)
    assert len(disputed) == min(8, len(wanted))
    assert len(cards) <= 24
    for card in cards:
        row = ids.index(card["id"])
        assert card["class"] == CLASSES_SORTED[labels[row]]
        assert set(card["said"]) == {
            "linear-cls",
            "alf",
            "alf-cls",
            "alf-ap",
            "alf-h8",
        }  # those on one level have a figure
        for probe, (kind, answer, percent) in card["said"].items():
            assert answer == CLASSES_SORTED[said[probe]["logits"][row].argmax()]
            assert kind == ("hit" if hits[probe][row] else "miss")
            assert abs(percent - 100 * sure[probe][row]) <= 0.5


CLASSES_SORTED = sorted(CLASSES)


def test_each_image_is_the_one_of_its_id_and_small(place: dict[str, Any]) -> None:
    files = sorted((place["photos"] / "test").rglob("*.png"))
    grey = [np.asarray(Image.open(file).convert("L"), dtype=float) for file in files]  # JPEG blurs the colours of noise
    for card in cards_of(place["page"]):
        with Image.open(io.BytesIO(card["picture"])) as shown:
            assert max(shown.size) <= 96
            distances = [np.abs(np.asarray(shown.convert("L"), dtype=float) - one).mean() for one in grey]
        nearest = files[int(np.argmin(distances))]
        assert str(nearest.relative_to(place["photos"])) == card["id"]
        assert len(card["picture"]) < 4096


def test_the_strip_is_the_attention_to_that_image(place: dict[str, Any]) -> None:
    with np.load(place["at"] / f"alf-{place['rows']['alf']['key'][:8]}" / "attention.npz") as saved:
        ids, mass = saved["sample_ids"].tolist(), saved["mass"]
    for card in cards_of(place["page"]):
        shares = mass[ids.index(card["id"])].T.ravel()  # a line a kind
        assert np.allclose(card["strip"], np.maximum(shares / shares.max(), 0.06), atol=0.0051)


def test_without_images_and_without_their_data_only_ids_are_shown(place: dict[str, Any], tmp_path: Path) -> None:
    """Data that are gone; an image that is shown and gone; one that is another image under the same name."""
    runs, page = place["folder"] / "runs", tmp_path / "a.html"
    assert left_out(runs, page, "--no-images") == []
    assert {card["picture"] for card in cards_of(ReadPage(page))} == {None}
    photos, shown = place["photos"], [card["id"] for card in cards_of(place["page"])]
    photos.rename(tmp_path / "moved")
    try:
        (gone,) = left_out(runs, page)
        shutil.copytree(tmp_path / "moved", photos)
        (photos / shown[0]).unlink()
        (removed,) = left_out(runs, page)
        shutil.copy(photos / shown[1], photos / shown[0])
        (changed,) = left_out(runs, page)
        assert {card["picture"] for card in cards_of(ReadPage(page))} == {None}
        shutil.copy(tmp_path / "moved" / shown[0], photos / shown[0])
        next(path for path in photos.rglob("*.png") if str(path.relative_to(photos)) not in shown).unlink()
        assert left_out(runs, page) == []  # each image that is shown is the one that was tested on
    finally:
        shutil.rmtree(photos, ignore_errors=True)
        (tmp_path / "moved").rename(photos)
    assert gone.startswith("No images of photos, only their ids: ")
    for said in (removed, changed):
        assert shows(said, "report.data_changed")
        assert shown[0] in said
    assert all(card["id"] for card in cards_of(ReadPage(page)))


def request_of(place: dict[str, Any], split: str, arrays: list[tuple[str, str]]) -> SplitRequest:
    """The tokens of a split that the probes were trained or tested on, by what lies beside their rows."""
    config = json.loads((place["at"] / f"alf-{place['rows']['alf']['key'][:8]}" / "probe.json").read_text())["config"]
    return SplitRequest(
        cache_root=place["folder"] / "caches",
        model=ModelSpec.from_dict(config["model_spec"]),
        tap=config["tap"],
        record=load_record(place["at"] / place["rows"]["alf"]["images"][split]),
        rule=None,
        arrays=tuple(arrays),
    )


def unit_tokens(place: dict[str, Any], split: str, levels: list[str], kinds: list[str]) -> np.ndarray:
    """[N, levels x kinds, D] straight from the store, each token at unit length; levels first, then kinds."""
    arrays = [(level, kind) for level in levels for kind in kinds]
    cache = request_of(place, split, arrays).open()
    stacked = [cache.tokens(*array).take(cache.positions).astype(np.float64) for array in arrays]
    tokens = np.stack(stacked, axis=1)
    return tokens / np.linalg.norm(tokens, axis=2, keepdims=True)


def naive_cka(one: np.ndarray, two: np.ndarray) -> float:
    """Of two Gram matrices [n, n], by the sums of Song et al. 2012, written out."""
    one, two = (gram - np.diag(gram.diagonal()) for gram in (one, two))

    def hsic(first: np.ndarray, second: np.ndarray) -> float:
        n, ones = len(first), np.ones(len(first))
        middle = ones @ first @ ones * (ones @ second @ ones) / (n - 1) / (n - 2)
        return float(np.trace(first @ second) + middle - 2 / (n - 2) * ones @ first @ second @ ones)

    return hsic(one, two) / np.sqrt(hsic(one, one) * hsic(two, two))


def test_similarity_of_levels_is_the_unbiased_estimate(place: dict[str, Any]) -> None:
    levels = [*(f"block.{block}" for block in range(12)), "final"]
    tokens = dict(zip(levels, unit_tokens(place, "test", levels, ["cls"]).transpose(1, 0, 2), strict=True))
    lines = place["page"].csvs["cka-0.csv"]
    assert [(line["level"], line["other"]) for line in lines] == [(one, two) for one in levels for two in levels]
    for line in lines:
        one, two = (tokens[line[name]] @ tokens[line[name]].T for name in ("level", "other"))
        assert float(line["cka"]) == pytest.approx(naive_cka(one, two), abs=1e-5)


def test_similarity_to_the_last_level_is_that_of_both_kernels_on_the_images_it_states(place: dict[str, Any]) -> None:
    """The Gaussian kernel's subset is drawn again from the number and the seed in the CSV."""
    lines = place["page"].csvs["cka-to-final-0.csv"]
    levels = [*(f"block.{block}" for block in range(12)), "final"]
    assert [(line["line"], line["level"]) for line in lines] == [
        (f"photos, {kernel}", level) for kernel in ("linear", "rbf") for level in levels
    ]
    tokens = dict(zip(levels, unit_tokens(place, "test", levels, ["cls"]).transpose(1, 0, 2), strict=True))
    assert {(line["kernel"], line["num_images"], line["seed"]) for line in lines} == {
        ("linear", "39", ""),
        ("rbf", str(SUBSET), "0"),
    }
    for line in lines:
        one, two = tokens[line["level"]], tokens["final"]
        if line["kernel"] == "rbf":
            drawn = np.random.default_rng(int(line["seed"])).choice(39, int(line["num_images"]), replace=False)
            one, two = (np.exp(-_squared_distances(side[drawn]) / (2 * 0.2**2)) for side in (one, two))
        else:
            one, two = one @ one.T, two @ two.T
        assert float(line["cka"]) == pytest.approx(naive_cka(one, two), abs=1e-5)
    (caption,) = re.findall(r"<figcaption>(Similarity of every level of .*?) <a", place["page"].source)
    assert f"rbf: sigma 0.2, at most {SUBSET} images, drawn with the seed in the CSV" in caption


def test_similarity_is_that_of_mean_patches_where_no_probe_reads_cls(place: dict[str, Any], tmp_path: Path) -> None:
    where = ("--data", f"folder:{place['photos']}", "--cache", place["folder"] / "caches", "--runs", tmp_path)
    trained = run("probe", *VIT, *where, "--probe", "ridge-ap@0,ridge-ap")
    assert trained.exit_code == 0, trained.output
    run("report", tmp_path, "--cache", place["folder"] / "caches", "--tokens", "--json")
    first, final = unit_tokens(place, "test", ["block.0", "final"], ["ap"]).transpose(1, 0, 2)
    page = ReadPage(tmp_path / "report" / "index.html")
    (found,) = [line for line in page.csvs["cka-0.csv"] if (line["level"], line["other"]) == ("block.0", "final")]
    assert float(found["cka"]) == pytest.approx(naive_cka(first @ first.T, final @ final.T), abs=1e-5)
    assert "(ap tokens)" in page.source


def _squared_distances(tokens: np.ndarray) -> np.ndarray:
    """[n, D] -> [n, n]."""
    return np.array([[((one - two) ** 2).sum() for two in tokens] for one in tokens])


def reading_copy(place: dict[str, Any], probe: str) -> torch.nn.Module:
    """The plain module with the saved weights."""
    return load_probe(place["at"] / f"{probe}-{place['rows'][probe]['key'][:8]}", any_tokens=True)[0]


@torch.no_grad()
def accuracies_with_few_tokens(
    place: dict[str, Any], alf: AttentiveProbe, counts: list[int]
) -> tuple[list[int], list[float]]:
    """The tokens by falling attention on the training images, and accuracies in percent with the first k; an image at a time."""
    row = place["rows"]["alf"]
    train, test = (
        torch.tensor(unit_tokens(place, split, row["levels"], row["kinds"]), dtype=torch.float32)
        for split in ("train", "test")
    )
    looked_at = [0.0] * 24
    for image in train:
        for heads in alf.attention(image[None])[0].tolist():
            looked_at = [so_far + share for so_far, share in zip(looked_at, heads, strict=True)]
    order = sorted(range(24), key=lambda token: -looked_at[token])
    labels = place["said"]["alf"]["labels"]
    found = []
    for count in counts:
        predicted = [int(alf(image[order[:count]][None]).argmax()) for image in test]
        found.append(100 * balanced_accuracy_score(labels, predicted))
    return order, found


def test_accuracy_with_few_tokens_is_that_of_a_plain_loop_over_the_images(place: dict[str, Any]) -> None:
    alf = reading_copy(place, "alf")
    assert isinstance(alf, AttentiveProbe)
    lines = place["page"].csvs["few-tokens.csv"]
    counts = [int(line["tokens_kept"]) for line in lines]
    assert counts == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    _, found = accuracies_with_few_tokens(place, alf, counts)
    for line, percent in zip(lines, found, strict=True):
        assert line["case"] == "photos"
        assert float(line["percent"]) == pytest.approx(percent, abs=1e-3)


def test_the_plain_loop_agrees_where_each_token_matters(place: dict[str, Any], tmp_path: Path) -> None:
    """The probe of the page is right with any token; one whose weights are disturbed is not, and looks at few."""
    trained = place["at"] / f"alf-{place['rows']['alf']['key'][:8]}"
    shutil.copytree(trained, tmp_path / "alf")
    weights = load_file(trained / "probe.safetensors")
    noise = torch.Generator().manual_seed(0)
    weights["query"] += torch.randn(weights["query"].shape, generator=noise)
    weights["to_q.weight"] *= 12
    weights["to_v.weight"] += 0.3 * torch.randn(weights["to_v.weight"].shape, generator=noise)
    save_file(weights, tmp_path / "alf" / "probe.safetensors")
    alf = load_probe(tmp_path / "alf", any_tokens=True)[0]
    assert isinstance(alf, AttentiveProbe)
    train, test = (request_of(place, split, []) for split in ("train", "test"))
    counts = list(range(1, 25))
    kept = prune_tokens(tmp_path / "alf", train, test, counts)
    order, found = accuracies_with_few_tokens(place, alf, counts)
    assert [list(one.tokens) for one in kept] == [order[:count] for count in counts]
    assert [100 * one.balanced_accuracy for one in kept] == pytest.approx(found)
    assert len(set(found)) > 2


@torch.no_grad()
def test_training_accuracy_is_that_of_a_plain_loop_over_the_training_images(place: dict[str, Any]) -> None:
    labels = load_record(place["at"] / place["rows"]["alf"]["images"]["train"]).labels
    lines = {line["probe"]: line for line in place["page"].csvs["train-test.csv"]}
    for name, line in lines.items():
        row, probe = place["rows"][name], reading_copy(place, name)
        tokens = torch.tensor(unit_tokens(place, "train", row["levels"], row["kinds"]), dtype=torch.float32)
        shown = tokens if row["head"] == "attentive" else tokens.flatten(1)
        predicted = [int(probe(image[None]).argmax()) for image in shown]
        assert line["case"] == "photos"
        assert float(line["train_percent"]) == pytest.approx(100 * balanced_accuracy_score(labels, predicted), abs=1e-3)


def test_training_accuracy_is_that_of_the_whole_way_from_the_image_file(place: dict[str, Any]) -> None:
    lines = {line["probe"]: line for line in place["page"].csvs["train-test.csv"]}
    assert set(lines) == {"linear-cls", "alf", "alf-cls", "alf-ap", "alf-h8"}
    folder = place["at"] / f"alf-{place['rows']['alf']['key'][:8]}"
    data = ("--data", f"folder:{place['photos']}", "--split", "train", "--workers", "0")
    shown = json.loads(run("predict", "--probe", folder, *data, "--json").stdout)
    predicted = shown["predictions"] if isinstance(shown, dict) else shown
    accuracy = balanced_accuracy_score([one["target"] for one in predicted], [one["label"] for one in predicted])
    assert float(lines["alf"]["train_percent"]) == pytest.approx(100 * accuracy, abs=1e-3)
    for probe, line in lines.items():
        labels, logits = place["said"][probe]["labels"], place["said"][probe]["logits"]
        test = 100 * balanced_accuracy_score(labels, logits.argmax(1))
        assert float(line["test_percent"]) == pytest.approx(test, abs=1e-3)


def test_figures_of_rows_hold_the_accuracies_of_their_rows(place: dict[str, Any]) -> None:
    page = place["page"]
    accuracy = {probe: 100 * row["test"]["balanced_accuracy"] for probe, row in place["rows"].items()}
    assert {line["probe"]: float(line["percent"]) for line in page.csvs["levels-0.csv"]} == {
        probe: pytest.approx(accuracy[probe], abs=1e-3) for probe in ("linear@0", "linear@6", "linear@final", "alf")
    }
    depths = {line["probe"]: (line["model"], line["dataset"], line["level"]) for line in page.csvs["levels-0.csv"]}
    where = (place["rows"]["alf"]["backbone"], "photos")
    assert depths == {
        "linear@0": (*where, "0"),
        "linear@6": (*where, "6"),
        "linear@final": (*where, "7"),
        "alf": (*where, ""),
    }
    for name in ("kinds-alf", "heads-0"):
        assert {line["case"] for line in page.csvs[f"{name}.csv"]} <= {"photos", f"photos ({where[0]})"}
    kinds = {line["tokens_of_alf"]: float(line["percent"]) for line in page.csvs["kinds-alf.csv"]}
    expected = {"cls": "alf-cls", "ap": "alf-ap", "cls+ap": "alf"}
    assert kinds == {kind: pytest.approx(accuracy[probe], abs=1e-3) for kind, probe in expected.items()}
    heads = {line["heads"]: float(line["percent"]) for line in page.csvs["heads-0.csv"]}
    assert heads == {
        str(place["rows"][probe]["num_heads"]): pytest.approx(accuracy[probe], abs=1e-3) for probe in ("alf-h8", "alf")
    }
    kept = {int(line["tokens_kept"]): float(line["percent"]) for line in page.csvs["few-tokens.csv"]}
    assert list(kept) == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert kept[24] == pytest.approx(accuracy["alf"], abs=1e-3)


def test_every_setting_is_that_of_its_row(place: dict[str, Any]) -> None:
    records = {one["probe"]: one for one in place["page"].tables["settings"].records()}
    assert set(records) == set(place["rows"])
    for probe, row in place["rows"].items():
        levels = row["levels"]
        assert list(records[probe].values())[1:] == [
            row["backbone"],
            "photos",
            "0",
            f"{row['chosen']['lr']:g}",
            f"{row['chosen']['weight_decay']:g}",
            f"{row['chosen']['dropout']:g}" if row["chosen"]["dropout"] is not None else "-",
            f"{100 * row['validation']:.1f}",
            str(len(row["settings"])),
            "0",
            str(row["num_heads"] or "-"),
            f"{levels[0]} to {levels[-1]}, {len(levels)}" if len(levels) > 1 else levels[0],
            ", ".join(row["kinds"]),
            row["compute"],
            row["train_fingerprint"][:8],
            row["test_fingerprint"][:8],
        ]


def test_the_sentences_for_figures_have_the_numbers_that_are_drawn(place: dict[str, Any]) -> None:
    page = place["page"]
    alts = " ".join(image["alt"] or "" for image in page.images if "alt" in image)
    first = next(line["cka"] for line in page.csvs["cka-0.csv"] if line["other"] == "final")
    assert f"First with last level: {float(first):.2f}." in alts
    of_kernel = {
        line["line"]: float(line["cka"]) for line in page.csvs["cka-to-final-0.csv"] if line["level"] == "block.0"
    }
    assert "; ".join(f"{name}: first level {value:.2f}" for name, value in of_kernel.items()) in alts
    gaps = {
        line["probe"]: float(line["train_percent"]) - float(line["test_percent"])
        for line in page.csvs["train-test.csv"]
    }
    assert ", ".join(f"{probe} {gap:.1f}" for probe, gap in gaps.items()) in alts
    kept = [(line["tokens_kept"], float(line["percent"])) for line in page.csvs["few-tokens.csv"]]
    assert f"photos: {kept[0][1]:.1f} % with 1, {kept[-1][1]:.1f} % with all 24." in alts
    for name, varied in (("kinds-alf", "tokens_of_alf"), ("heads-0", "heads")):
        said = ", ".join(f"{line[varied]}: {float(line['percent']):.1f} %" for line in page.csvs[f"{name}.csv"])
        assert f"over 1 cases, by {varied.replace('_', ' ')}: {said}." in alts
    single = {line["probe"]: float(line["percent"]) for line in page.csvs["levels-0.csv"] if "@" in line["probe"]}
    best = max(single, key=single.__getitem__)
    assert f"photos: best {best} with {single[best]:.1f} %." in alts


def test_no_table_and_no_figure_is_without_a_test_that_computes_it_again(place: dict[str, Any]) -> None:
    probes = [probe for probe in place["rows"] if "@" not in probe]
    met = require_computed_again(place["page"], probes)
    assert {r"cka-to-final-\d+.csv", "few-tokens.csv", "train-test.csv", "settings", "without-duplicates"} <= met


def test_what_nobody_has_made_is_said_with_the_command_that_makes_it(place: dict[str, Any]) -> None:
    texts = place["page"].texts
    *_, heading = (number for number, text in enumerate(texts) if text == "Not here yet")  # the contents have it too
    sizes, choices, seeds, *_ = texts[heading + 1 :]
    assert sizes.startswith("Gains by model size: ")
    assert choices.endswith("layerbank probe ... --probe linear@best,alf-smallest,alf-top3")
    assert seeds == "Spread over seeds: layerbank probe ... --seed 0,1,2"
