"""What a report reads beside results: images of the data, content hashes and tokens of the stores. One real, tiny run."""

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
from commands import MODEL, run
from photos import write_photos
from PIL import Image
from report_page import ReadPage
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score

from cache import TokenCache

FAST = "epochs = 2\nmin_steps = 20\nlrs = [0.01]\nweight_decays = [1e-4]\ndropouts = [0.0]\n"
CLASSES = ("blue", "<i>green", "red")
PROBES = "linear-cls,alf,alf-cls,alf-ap,alf-h8,linear@0,linear@6,linear@final"


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
    trained = run("probe", *MODEL, *where, "--protocol", folder / "fast.toml", "--probe", PROBES)
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


def test_without_the_stores_it_says_so_and_goes_on(place: dict[str, Any], tmp_path: Path) -> None:
    where = ("--cache", tmp_path / "gone", "--html", tmp_path / "a.html")
    left_out = json.loads(run("report", place["folder"] / "runs", *where, "--tokens", "--json").stdout)["left_out"]
    assert left_out == [
        f"Test images that are also training images were not looked for in photos: no stores of these results under "
        f"{tmp_path / 'gone'}. Give their folder with --cache.",
        f"Nothing of --tokens: no stores of these results under {tmp_path / 'gone'}. Give their folder with --cache.",
    ]
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
    runs, page = place["folder"] / "runs", tmp_path / "a.html"
    where = ("--cache", place["folder"] / "caches", "--html", page, "--json")
    assert json.loads(run("report", runs, "--no-images", *where).stdout)["left_out"] == []
    assert {card["picture"] for card in cards_of(ReadPage(page))} == {None}
    photos = place["photos"]
    photos.rename(tmp_path / "moved")
    try:
        (gone,) = json.loads(run("report", runs, *where).stdout)["left_out"]
        shutil.copytree(tmp_path / "moved", photos)
        (photos / "test" / "red" / "000.png").unlink()
        (changed,) = json.loads(run("report", runs, *where).stdout)["left_out"]
    finally:
        shutil.rmtree(photos, ignore_errors=True)
        (tmp_path / "moved").rename(photos)
    assert gone.startswith("No images of photos, only their ids: ")
    assert changed.endswith("expected the images that were tested on, got other ids, labels or sizes. "
                            "Bring the data back as they were to see them here.")  # fmt: skip
    assert {card["picture"] for card in cards_of(ReadPage(page))} == {None}
    assert all(card["id"] for card in cards_of(ReadPage(page)))


def test_likeness_of_levels_is_the_unbiased_estimate(place: dict[str, Any]) -> None:
    (store,) = (place["folder"] / "caches" / "photos" / "test").glob("*.zarr")
    cache = TokenCache.open(store)
    grams = {}
    for level in cache.levels:
        tokens = np.array(cache.tokens(level, "cls").take(np.arange(cache.num_rows)), dtype=np.float64)
        tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
        grams[level] = tokens @ tokens.T - np.diag((tokens**2).sum(1))

    def hsic(one: np.ndarray, two: np.ndarray) -> float:
        n, ones = len(one), np.ones(len(one))
        middle = ones @ one @ ones * (ones @ two @ ones) / (n - 1) / (n - 2)
        return float(np.trace(one @ two) + middle - 2 / (n - 2) * ones @ one @ two @ ones)

    lines = place["page"].csvs["cka-0.csv"]
    assert len(lines) == len(grams) ** 2
    for line in lines:
        one, two = grams[line["level"]], grams[line["other"]]
        assert float(line["cka"]) == pytest.approx(hsic(one, two) / np.sqrt(hsic(one, one) * hsic(two, two)), abs=1e-5)
    to_final = {
        line["level"]: line["cka"] for line in place["page"].csvs["cka-to-final-0.csv"] if line["kernel"] == "linear"
    }
    assert to_final == {line["level"]: line["cka"] for line in lines if line["other"] == "final"}


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


def test_what_nobody_has_made_is_said_with_the_command_that_makes_it(place: dict[str, Any]) -> None:
    texts = place["page"].texts
    *_, heading = (number for number, text in enumerate(texts) if text == "Not here yet")  # the contents have it too
    sizes, choices, seeds, *_ = texts[heading + 1 :]
    assert sizes.startswith("Gains by model size: ")
    assert choices.endswith("layerbank probe ... --probe linear@best,alf-smallest,alf-top3")
    assert seeds == "Spread over seeds: layerbank probe ... --seed 0,1,2"
