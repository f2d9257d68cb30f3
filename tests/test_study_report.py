"""`layerbank report`: a page whose numbers follow from results.jsonl and the saved predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run

NASTY = "<script>alert(1)</script>"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def balanced(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(np.mean([(logits.argmax(1)[labels == one] == one).mean() for one in np.unique(labels)]))


def write_runs(folder: Path, datasets: tuple[str, ...] = ("pets", NASTY)) -> Path:
    """Rows as `layerbank probe` writes them, with the columns a report reads, and the predictions they follow from."""
    generator = np.random.default_rng(0)
    for number, dataset in enumerate(datasets):
        store = folder / f"data{number}" / "store"
        rows = []
        for probe, strength in (("linear-cls", 1.0), ("linear-all", 3.0 if number else 1.5), ("alf", 2.0)):
            labels = np.arange(200) % 4
            logits = generator.normal(size=(200, 4)) + strength * np.eye(4)[labels]
            key = f"{probe}-{number}".encode().hex().ljust(32, "0")
            row_folder = store / f"{probe}-{key[:8]}"
            row_folder.mkdir(parents=True)
            ids = np.array([f"image{one}" for one in range(200)])
            np.savez(row_folder / "test.npz", sample_ids=ids, labels=labels, logits=logits.astype(np.float32))
            accuracy = balanced(labels, logits.astype(np.float32))
            rows.append(
                {
                    "key": key,
                    "probe": probe,
                    "backbone": "timm/vit",
                    "dataset": dataset,
                    "setting_of_study": f"s{number}",
                }
                | {"test": {"balanced_accuracy": accuracy}, "protocol": {"seed": 0, "lr": 0.1}, "num_parameters": 1234}
            )
        (store / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_every_number_follows_from_the_saved_predictions(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    assert run("report", runs, "--csv", tmp_path / "all.csv").exit_code == 0
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    accuracy: dict[tuple[str, str], float] = {}
    for line in lines:
        (path,) = runs.glob(f"data{int(line['data set'] == NASTY)}/store/{line['probe']}-*/test.npz")
        with np.load(path) as saved:
            accuracy[line["data set"], line["probe"]] = 100 * balanced(saved["labels"], saved["logits"])
        assert line["balanced accuracy"] == f"{accuracy[line['data set'], line['probe']]:.2f}"
    for line in lines:
        gain = accuracy[line["data set"], line["probe"]] - accuracy[line["data set"], "linear-cls"]
        assert line["gain"] == f"{gain:+.2f}"


def test_the_page_says_in_words_who_wins_and_where_alf_does_not(tmp_path: Path) -> None:
    answer = json.loads(run("report", write_runs(tmp_path), "--json").stdout)
    pets, nasty = answer["findings"]
    assert pets.startswith("timm/vit on pets, seed 0: alf is best with")
    assert "points over linear-cls (95 % over test images: +" in pets
    assert "linear-all is best" in nasty
    assert "alf does not win here" in nasty
    assert answer["num_rows"] == 6
    assert answer["left_out"] == []


def test_names_from_data_sets_are_text_and_never_markup(tmp_path: Path) -> None:
    run("report", write_runs(tmp_path))
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert NASTY not in page
    assert "&lt;script&gt;alert(1)" in page


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    results = runs / "data0" / "store" / "results.jsonl"
    with results.open("a", encoding="utf-8") as file:
        file.write('{"key": "old", "probe": "alf"}\n{not json\n{"key": "ha')
    next((runs / "data1" / "store").glob("linear-all-*/test.npz")).unlink()
    answer = json.loads(run("report", runs, "--json").stdout)
    assert answer["num_rows"] == 6
    version, broken, torn, missing = answer["left_out"]
    assert version.endswith(
        "line 4 is of another version (no backbone, dataset, test, protocol, setting_of_study) and is left out."
    )
    assert broken.endswith("line 5 is no JSON and is left out.")
    assert torn.endswith("the last line was cut short and is left out; run its command again.")
    assert missing.startswith(f"No interval for linear-all on {NASTY}")
    assert "95 %" not in answer["findings"][1]


def test_a_folder_without_results_is_refused_in_four_parts(tmp_path: Path) -> None:
    refused = run("report", tmp_path)
    assert refused.exit_code == 2
    for part in ("expected", "a folder with results.jsonl somewhere in it", "none", "its default is runs"):
        assert part in refused.stderr


def test_results_that_no_line_can_be_read_of_fail(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n", encoding="utf-8")
    failed = run("report", tmp_path)
    assert failed.exit_code == 1
    assert "Train the probes again with this version" in failed.stderr


def test_markdown_and_latex_have_the_same_means(tmp_path: Path) -> None:
    run("report", write_runs(tmp_path, ("pets",)), "--markdown", tmp_path / "a.md", "--latex", tmp_path / "a.tex")
    (best,) = (line for line in (tmp_path / "a.md").read_text().splitlines() if line.startswith("| pets"))
    number = best.split("**")[1]
    assert rf"\textbf{{{number}}}" in (tmp_path / "a.tex").read_text()


def test_results_the_paper_lacks_are_said_to_have_no_counterpart(tmp_path: Path) -> None:
    answer = json.loads(run("report", write_runs(tmp_path), "--compare", "paper", "--json").stdout)
    assert answer["left_out"] == ["Against the paper: it has none of these models, data sets and probes together."]


@pytest.fixture
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


def test_in_a_browser_it_asks_for_nothing_sorts_by_keyboard_and_filters(tmp_path: Path, browser: Any) -> None:
    run("report", write_runs(tmp_path))
    page = browser.new_page()
    troubles: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report" / "index.html").as_uri())
    assert troubles == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    head = page.get_by_role("columnheader", name="balanced accuracy")
    head.get_by_role("button").focus()
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        values = [float(text) for text in page.locator("tbody td:nth-child(6)").all_inner_texts()]
        assert values == sorted(values, reverse=order == "descending")
    page.get_by_role("searchbox").fill("ALF")
    assert page.locator("tbody tr:visible").count() == 2
    assert page.locator("output").inner_text() == "2 of 6 lines"
