"""`layerbank report`: a page whose numbers follow from results.jsonl and the saved predictions."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run, start
from matplotlib.figure import Figure
from messages import refuses, shows
from plugins import install_plugin
from report_page import ReadPage, require_computed_again
from study_runs import balanced, read_rows, write_study

from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.report.figures import FIGURES
from layerbank.report.report import ReportOptions, make_report
from layerbank.statistics.paper import MODELS, published_scores

NASTY = "<script>alert(1)</script>"
NOT_LOOKED_FOR = "Test images that are also training images were not looked for in "


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


def test_the_page_says_in_words_who_wins_and_where_alf_does_not(tmp_path: Path) -> None:
    answer = json.loads(run("report", write_runs(tmp_path), "--json").stdout)
    pets, nasty = answer["findings"]
    assert pets.startswith("timm/vit on pets, seed 0: alf is best with")
    assert "points over linear-cls (95 % over test images: +" in pets
    assert "linear-all is best" in nasty
    assert answer["summary"][-1] == f"alf does not win on 1 of 2 data sets: {NASTY}."
    assert "alf does not win here" in nasty
    assert answer["num_rows"] == 6
    duplicates, *images = answer["left_out"]
    assert all(shows(one, "report.data_not_recorded") for one in images)
    assert duplicates.startswith(
        f"{NOT_LOOKED_FOR}pets, {NASTY}: these results do not name their images, as those of format 1,"
    )
    assert [one.partition(", only")[0] for one in images] == ["No images of pets", f"No images of {NASTY}"]


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
    version, broken, torn, missing, duplicates, *_ = answer["left_out"]
    assert all(shows(one, "probing.damaged_row") for one in (version, broken, torn))
    assert f"{results}, line 4:" in version
    assert "got a row without backbone, dataset, test, protocol, setting_of_study. The line is skipped" in version
    assert "line 5: expected a row as `layerbank probe` wrote it, got no JSON (" in broken
    assert "line 6: expected a row as `layerbank probe` wrote it, got a line that was cut short." in torn
    assert missing.startswith(f"No interval for linear-all on {NASTY} (timm/vit, seed 0): ")
    assert duplicates.startswith(NOT_LOOKED_FOR)
    assert "95 %" not in answer["findings"][1]


def test_models_that_were_given_other_images_under_one_name_are_named(tmp_path: Path) -> None:
    """By what each probe keeps of its stores; two on the same images, one whose probes are gone."""
    runs = write_study(
        tmp_path,
        models=("timm/a", "timm/b", "timm/c", "timm/d"),
        datasets=("pets", "birds"),
        probes=("linear-cls", "alf"),
    )
    for file in runs.rglob("probe.json"):
        saved = json.loads(file.read_text(encoding="utf-8"))
        (row,) = [
            one for one in read_rows(file.parent.parent / "results.jsonl") if file.parent.name.endswith(one["key"][:8])
        ]
        other = row["backbone"] == "timm/b" and row["dataset"] == "pets"
        saved["config"] |= {"cache": {"manifest": "other" if other else "same"}}
        file.write_text(json.dumps(saved), encoding="utf-8")
        if row["backbone"] == "timm/d":
            file.unlink()
    (note,) = [one for one in json.loads(run("report", runs, "--json").stdout)["left_out"] if "same images" in one]
    assert note == (
        "pets is not the same images for all models (the same for: timm/a, timm/c; timm/b): probes of one model compare, models do "
        "not. Extract it again for all of them from one copy of the images."
    )


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    refuses(run("report", tmp_path), "report.no_results", runs=tmp_path)
    refuses(run("report", tmp_path / "gone"), "report.runs_missing", runs=tmp_path / "gone")


def test_a_report_takes_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from layerbank.report.report import ReportOptions, make_report; "
        f"made = make_report(Path({str(write_study(tmp_path))!r}), ReportOptions()); assert len(made.records) == 3; "
        "loaded = set(sys.modules); assert not {'torch', 'timm'} & loaded; "
        "assert 'pyarrow' not in loaded or 'pandas' in loaded"  # which scikit-learn takes where it is installed
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, check=True)


def test_results_that_no_line_can_be_read_of_fail(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n", encoding="utf-8")
    refuses(run("report", tmp_path), "report.no_readable_results", exit_code=1, runs=tmp_path)


def test_markdown_and_latex_have_the_same_means(tmp_path: Path) -> None:
    run("report", write_runs(tmp_path, ("pets",)), "--markdown", tmp_path / "a.md", "--latex", tmp_path / "a.tex")
    (best,) = (line for line in (tmp_path / "a.md").read_text().splitlines() if line.startswith("| pets"))
    number = best.split("**")[1]
    assert rf"\textbf{{{number}}}" in (tmp_path / "a.tex").read_text()


def test_results_the_paper_lacks_are_said_to_have_no_counterpart(tmp_path: Path) -> None:
    answer = json.loads(run("report", write_runs(tmp_path), "--compare", "paper", "--json").stdout)
    assert any(note.startswith("Against the paper: it has none of these models,") for note in answer["left_out"])


def test_results_of_the_papers_models_stand_beside_its_numbers(tmp_path: Path) -> None:
    models, datasets = [MODELS[3].model, MODELS[7].model], ["wds/vtab/cifar10", "PCAM", "an unpublished set"]
    runs = write_study(tmp_path / "runs", models=models, datasets=datasets, probes=("linear-cls", "alf", "linear-all"))
    num_classes = {"wds/vtab/cifar10": 10, "PCAM": 2}
    for row in [row for path in runs.rglob("results.jsonl") for row in read_rows(path)]:
        (file,) = runs.glob(f"*/store/{row['probe']}-{row['key'][:8]}/probe.json")
        saved = json.loads(file.read_text(encoding="utf-8"))
        saved["config"] |= {
            "model": {"weights": None, "image_size": 224},
            "data": "wds:data",
            "class_names": num_classes.get(row["dataset"], 3) * ["a class"],
        }
        file.write_text(json.dumps(saved))
    run("report", runs, "--compare", "paper")
    page = ReadPage(runs / "report" / "index.html")
    ours = {(one["model"], one["data set"], one["probe"]): one for one in page.tables["results"].records()}
    published = {(one.model, one.dataset, one.probe): one.percent for one in published_scores()}
    titles = {"wds/vtab/cifar10": "CIFAR-10", "PCAM": "PCAM"}
    records = page.tables["paper"].records()
    expected = [place for place in ours if place[1] in titles and (place[0], titles[place[1]], place[2]) in published]
    assert [(one["model"], one["data set"], one["probe"]) for one in records] == expected
    assert len(records) == 12
    differences: dict[str, list[list[float]]] = {}
    for one in records:
        place = (one["model"], one["data set"], one["probe"])
        theirs, base = (
            published[one["model"], titles[one["data set"]], probe] for probe in (one["probe"], "linear-cls")
        )
        assert one["ours"] == ours[place]["balanced accuracy"]
        assert one["our gain"] == ours[place]["gain"]
        assert one["paper"] == f"{theirs:.2f}"
        assert one["paper's gain"] == f"{theirs - base:+.2f}"
        assert abs(float(one["difference"]) - (float(one["ours"]) - theirs)) < 0.011
        assert one["seed"] == "0"
        of_one = [float(one[name]) for name in ("difference", "our gain", "paper's gain")]
        differences.setdefault(one["probe"], []).append(of_one)
    for one in page.tables["paper-means"].records():
        assert one["results"] == "4"
        means = [float(one[name]) for name in ("mean difference", "mean of our gains", "mean of the paper's gains")]
        np.testing.assert_allclose(means, np.mean(differences[one["probe"]], axis=0), atol=0.011)
    assert {"paper", "paper-means"} <= require_computed_again(page, ("linear-cls", "alf", "linear-all"))


def test_two_protocols_are_two_groups_whose_ids_differ(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", datasets=("pets",))
    write_study(tmp_path / "more", datasets=("pets",))
    results = tmp_path / "more" / "data00" / "store" / "results.jsonl"
    changed = results.read_text().replace("[0.1, 0.01]", "[0.5]").replace('"key": "303030', '"key": "313131')
    results.write_text(changed)
    for folder in results.parent.iterdir():
        if folder.is_dir():
            folder.rename(folder.with_name(folder.name.replace("-303030", "-313131")))
    (tmp_path / "more" / "data00").rename(runs / "data90")
    run("report", runs, "--figures", tmp_path / "figures", "--csv", tmp_path / "all.csv")
    page = ReadPage(runs / "report" / "index.html")
    assert len(page.ids) == len(set(page.ids))
    assert {"p1-t-results", "p2-t-results"} <= set(page.ids)
    assert {"Protocol 1 of 2: lrs 0.1, 0.01", "Protocol 2 of 2: lrs 0.5"} <= set(page.texts)
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(page.ids)
    assert {"p1-gains.png", "p2-gains.png"} <= {path.name for path in (tmp_path / "figures").iterdir()}
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 6


def test_hostile_names_of_classes_images_models_and_probes_are_text(tmp_path: Path) -> None:
    hostile = [
        '"><img src=x onerror=alert(1)>',
        "</td></table><script>alert(2)</script>",
        "{{ 7 * 7 }} $\\frac$",
        "a\u202eb",
    ]
    runs = write_study(
        tmp_path / "runs",
        models=(f"timm/{NASTY}",),
        datasets=(hostile[0], hostile[2]),
        probes=("linear-cls", "alf", "x' onload='y"),
        classes=hostile,
        ids=f"{NASTY}/../",
    )
    assert run("report", runs, "--markdown", tmp_path / "a.md", "--latex", tmp_path / "a.tex").exit_code == 0
    page = ReadPage(runs / "report" / "index.html")
    assert [tag for tag, _ in page.tags].count("script") == 1
    handlers = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert handlers == []
    assert all((a["src"] or "").startswith("data:image/") for tag, a in page.tags if tag == "img")
    classes = [one["class"] for one in page.tables["classes-0"].records()]
    assert classes == hostile


def test_the_page_stays_short_where_a_study_is_large(tmp_path: Path) -> None:
    datasets = [f"set {number:02}" for number in range(30)]
    runs = write_study(tmp_path / "runs", datasets=datasets, probes=("linear-cls", "alf"), num_images=40)
    run("report", runs)
    page = ReadPage(runs / "report" / "index.html")
    texts = [text.strip() for text in page.texts]
    assert "18 cases more: layerbank report RUNS/DATASET/MODEL shows one model's." in texts
    assert "6 cases more: layerbank report RUNS/DATASET/MODEL shows one model's." in texts
    assert page.source.count('<li class="card">') <= 12 * 24
    assert len(page.source) < 4_000_000
    assert len(page.tables["results"].lines) == 60


def test_heat_maps_on_the_page_are_few_and_files_have_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbank.report.figures.attention.MAX_PICTURES", 2)
    models = [one.model for one in MODELS[:3]]
    runs = write_study(tmp_path / "runs", models=models, probes=("linear-cls", "alf"), num_images=30)
    more = "1 heat map more: layerbank report RUNS --figures FOLDER. The table has all."
    for arguments in ((), ("--figures", tmp_path / "figures")):
        run("report", runs, *arguments)
        page = ReadPage(runs / "report" / "index.html")
        alts = [image.get("alt") or "" for image in page.images]
        assert sum(alt.startswith("Heat map of the attention of alf") for alt in alts) == 2
        assert more in page.texts
        assert [one["model"] for one in page.tables["attention-spread"].records()] == models
    assert len(list((tmp_path / "figures").glob("attention-*.svg"))) == 3


def test_every_prediction_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = write_study(tmp_path / "runs", datasets=("pets", "cars"), probes=("linear-cls", "linear-all", "alf"))
    opened: list[Path] = []
    whole = Path.open

    def count(path: Path, *args: Any, **options: Any) -> Any:
        opened.append(path)
        return whole(path, *args, **options)

    monkeypatch.setattr(Path, "open", count)
    run("report", runs)
    predictions = [path for path in opened if path.name == "test.npz"]
    assert sorted(predictions) == sorted(runs.rglob("test.npz"))
    assert len(predictions) == 6


def test_png_is_drawn_only_where_figures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = write_study(tmp_path / "runs", probes=("linear-cls", "alf"))
    drawn: list[str] = []
    savefig = Figure.savefig

    def count(figure: Figure, *args: Any, **options: Any) -> None:
        drawn.append(options["format"])
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", count)
    run("report", runs)
    page = (runs / "report" / "index.html").read_bytes()
    assert set(drawn) == {"svg"}
    run("report", runs, "--figures", tmp_path / "figures")
    assert (runs / "report" / "index.html").read_bytes() == page
    assert drawn.count("png") == len(list((tmp_path / "figures").glob("*.png"))) > 0


def test_parquet_without_its_package_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses(run("report", write_study(tmp_path / "runs"), "--parquet", tmp_path / "a.parquet"), "report.no_pyarrow")
    assert not (tmp_path / "runs" / "report").exists()


def test_attention_that_is_damaged_or_of_other_images_is_said(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", datasets=("one", "two", "three"))
    first, second, third = sorted(runs.glob("*/store/alf-*"))
    (first / "attention.npz").write_bytes(b"no archive")
    (second / "attention.csv").write_text("level,kind\n")
    with np.load(third / "attention.npz") as saved:
        np.savez(third / "attention.npz", sample_ids=saved["sample_ids"][::-1], mass=saved["mass"])
    left_out = "\n".join(json.loads(run("report", runs, "--json").stdout)["left_out"])
    assert shows(left_out, "statistics.bad_attention_map")
    assert "No attention to single images of one: " in left_out
    assert "cannot be read" in left_out
    assert "No attention map of alf on two: " in left_out
    assert "No attention to single images of three: " in left_out
    assert "is of other images." in left_out


def test_seeds_that_chose_different_levels_have_the_attention_map_of_most(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", seeds=(0, 1, 2))
    first, other, last = sorted(runs.glob("*/store/alf-*/attention.csv"))
    other.write_text("level,kind,share,std\nfinal,cls,1.0,0.0\n")
    last.write_bytes(first.read_bytes())
    left_out = json.loads(run("report", runs, "--json").stdout)["left_out"]
    note = "The seeds of alf on pets chose different levels or kinds: its attention map is the mean over 2 of 3 seeds."
    assert note in left_out
    shares = [float(line["share"]) for line in csv.DictReader(first.read_text().splitlines())]
    (drawn,) = [
        lines for name, lines in ReadPage(runs / "report" / "index.html").csvs.items() if re.match("attention-0", name)
    ]
    assert sorted(float(line["share"]) for line in drawn) == pytest.approx(sorted(shares), abs=1e-5)


def test_a_case_with_probes_on_one_level_only_has_its_classes_beside_cases_with_others(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs")
    write_study(tmp_path / "more", datasets=("birds",), probes=("linear@1", "linear@final"))
    (tmp_path / "more" / "data00").rename(runs / "data01")
    assert run("report", runs).exit_code == 0
    tables = ReadPage(runs / "report" / "index.html").tables
    assert tables["classes-0"].columns == ["class", "test images", "linear-cls", "linear-all", "alf"]
    assert tables["classes-1"].columns == ["class", "test images", "linear@1", "linear@final"]


def test_results_that_diverged_everywhere_are_shown_as_such(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", probes=("linear-cls", "alf"))
    results = runs / "data00" / "store" / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rows[1] |= {"test": None, "validation": None, "chosen": None}
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("report", runs, "--csv", tmp_path / "a.csv").exit_code == 0
    page = ReadPage(runs / "report" / "index.html")
    assert "1 result diverged at every setting." in page.texts
    assert [one["balanced accuracy"] for one in page.tables["results"].records()][1] == "diverged"


def test_what_validation_chose_is_a_line_with_its_cost_beside_what_it_is_made_of(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", probes=("linear-cls", "alf", "alf-smallest", "linear-all-smallest"))
    run("report", runs)
    page = ReadPage(runs / "report" / "index.html")
    few, alone = page.tables["choices"].records()
    accuracies = {one["probe"]: float(one["balanced accuracy"]) for one in page.tables["results"].records()}
    assert (few["probe"], few["chosen"], few["made of"]) == ("alf-smallest", "levels 2, final", "alf")
    assert (few["tokens read"], few["trainings"], few["probe steps"]) == ("6", "22", "11,022")
    assert (few["data set"], few["model"], few["seed"]) == ("pets", "timm/vit_small_patch16_224", "0")
    assert few["seconds"] in ("1.8", "1.7")  # 1.75
    assert float(few["balanced accuracy"]) == accuracies["alf-smallest"]
    assert abs(float(few["difference to it"]) - (accuracies["alf-smallest"] - accuracies["alf"])) < 0.011
    assert (alone["made of"], alone["difference to it"]) == ("linear-all", "-")  # its base is in another folder of runs
    assert "choices" in require_computed_again(page, [*accuracies])
    assert [line["chosen"] for line in page.csvs["choices.csv"]] == ["levels 2, final"] * 2
    assert {line["found"] for line in page.csvs["results.csv"]} == {"", "levels 2, final"}


def test_the_best_level_of_a_case_stands_with_the_others_and_given_levels_have_a_figure(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", probes=("linear-cls", "alf", "linear@best", "linear@1", "linear@final"))
    run("report", runs)
    page = ReadPage(runs / "report" / "index.html")
    assert [one["probe"] for one in page.tables["probes"].records()] == ["linear-cls", "alf", "linear@best"]
    assert any("levels" in (image.get("alt") or image.get("aria-label") or "") for image in page.images)


def test_data_that_cannot_be_opened_are_named_with_the_reason_of_the_system(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs")
    results = runs / "data00" / "store" / "results.jsonl"
    images = ImageSet(
        hashes=np.arange(90, dtype=np.uint64), rule1_hashes=None, is_known=np.ones(90, bool), keeps_order=True
    )
    record = SplitRecord(
        dataset="pets",
        split="test",
        ids=[f"image{row}" for row in range(90)],
        labels=np.zeros(90, np.int64),
        class_names=["ant"],
        images=images,
    )
    named = {"images": {"test": record.save(results.parent)}}
    rows = [json.loads(line) | named for line in results.read_text(encoding="utf-8").splitlines()]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    uri = "folder:/" + 300 * "x"  # longer than a name may be
    for file in runs.rglob("probe.json"):
        file.write_text(file.read_text(encoding="utf-8").replace("folder:/nowhere/at all", uri))
    *_, note = json.loads(run("report", runs, "--json").stdout)["left_out"]
    assert note.startswith("No images of pets, only their ids: ")
    assert shows(note, "report.data_unreachable")
    assert "File name too long" in note


PLUGIN = """
from layerbank.report.page.blocks import Note
from layerbank.report.report_data import ReportFigure
from layerbank.report.style import drawing, save


def draw(stem):
    with drawing(2, 1) as figure:
        figure.add_subplot().plot([0, 1])
        return save(figure, stem, ("x",), [(0,), (1,)])


def make(data):
    picture = data.draw("rising", draw, alt="A rising line.", caption="A figure of zippy.")
    return [Note(f"zippy counts {len(data.rows)} rows"), picture]


ROWS = ReportFigure(section=("zippy", "From a plug-in"), make=make)
LACKING = ReportFigure(section=("zippy", "From a plug-in"), make=lambda data: None, title="Zips", needs="zip it")
FAILING = ReportFigure(section=("zippy", "From a plug-in"), make=lambda data: data.zips)
"""
POINTS = """
[layerbank.figures]
rows = zippy:ROWS
fails = zippy:FAILING
zips = zippy:LACKING
gone = zippy:GONE
summary = zippy:ROWS
"""


def test_a_plug_in_adds_a_figure_and_broken_or_failing_ones_are_named_while_everything_else_is_made(
    tmp_path: Path,
) -> None:
    install_plugin(tmp_path, POINTS, PLUGIN)
    runs = write_study(tmp_path / "runs", probes=("linear-cls", "alf"))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    process = start("report", runs, "--figures", tmp_path / "figures", PYTHONPATH=path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    page = ReadPage(runs / "report" / "index.html")
    assert {"zippy", "results", "settings"} <= set(page.ids)
    assert {"zippy counts 2 rows", "From a plug-in", "Zips: zip it"} <= set(page.texts)
    assert "A rising line." in [image.get("alt") for image in page.images]
    assert page.csvs["rising.csv"] == [{"x": "0"}, {"x": "1"}]
    assert {"rising.svg", "rising.png", "rising.csv", "gains.svg"} <= {
        one.name for one in (tmp_path / "figures").iterdir()
    }
    for name, reason in (("gone", "AttributeError"), ("summary", "the name summary is taken")):
        (note,) = [text for text in page.texts if text.startswith(f"The figure {name} of a plug-in: zippy (zippy:")]
        assert reason in note
        assert f"left out: {note}"[:60] in output
    (note,) = [text for text in page.texts if text.startswith("The figure fails of a plug-in failed: AttributeError: ")]
    assert "has no attribute 'zips'" in note
    assert f"left out: {note}" in output


def test_a_part_of_layerbank_that_fails_ends_the_report_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FIGURES._loaded, "winners", replace(FIGURES["winners"], make=lambda data: data.zips))
    with pytest.raises(AttributeError, match="zips"):
        make_report(write_study(tmp_path / "runs"), ReportOptions())
