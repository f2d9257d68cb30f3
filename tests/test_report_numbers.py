"""Every number of a report's page, and of the CSV beside each figure, computed again from the saved predictions in a few lines.

Nothing here imports the statistics of `layerbank.report`: numpy, scipy and scikit-learn do the arithmetic a second time.
"""

from __future__ import annotations

import csv
import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from commands import run
from report_page import ReadPage, require_computed_again
from scipy.stats import binomtest, false_discovery_control, rankdata, wilcoxon
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score, top_k_accuracy_score
from study_runs import write_study

MODELS = ("timm/vit_small_patch16_224", "timm/vit_base_patch16_224", "timm/vit_large_patch16_224")
DATASETS = ("apes", "bats", "cats", "dogs", "eels", "foxes")
SEEDS = (0, 1)
PROBES = ("linear-cls", "linear-all", "attn-last", "alf")
NUM_CLASSES = 6
MAX_CASES = 24  # of which a page shows classes
NUM_CASES = len(MODELS) * len(DATASETS) * len(SEEDS)
Place = tuple[str, str, int, str]  # model, data set, seed, probe


class Truth:
    """What was said, read from the files a second time."""

    def __init__(self, runs: Path) -> None:
        self.labels: dict[Place, np.ndarray] = {}
        self.logits: dict[Place, np.ndarray] = {}
        self.keys: dict[Place, str] = {}
        for path in sorted(runs.rglob("results.jsonl")):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                place = (row["backbone"], row["dataset"], row["protocol"]["seed"], row["probe"])
                self.keys[place] = row["key"]
                with np.load(path.parent / f"{row['probe']}-{row['key'][:8]}" / "test.npz") as saved:
                    self.labels[place], self.logits[place] = saved["labels"], saved["logits"]

    def accuracy(self, *place: object) -> float:
        return 100 * float(balanced_accuracy_score(self.labels[place], self.logits[place].argmax(1)))  # type: ignore[index]

    def gain(self, model: str, dataset: str, seed: int, probe: str) -> float:
        return self.accuracy(model, dataset, seed, probe) - self.accuracy(model, dataset, seed, "linear-cls")

    def hits(self, *place: object) -> np.ndarray:
        return self.logits[place].argmax(1) == self.labels[place]  # type: ignore[index]

    def grid(self, probe: str) -> np.ndarray:
        """[models, data sets, seeds] accuracies."""
        return np.array([[[self.accuracy(m, d, s, probe) for s in SEEDS] for d in DATASETS] for m in MODELS])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReadPage, Truth, Path]:
    folder = tmp_path_factory.mktemp("report")
    close_by = {"linear-all": 1.95}  # so that it ties with alf somewhere
    runs = write_study(folder / "runs", models=MODELS, datasets=DATASETS, seeds=SEEDS, probes=PROBES, strength=close_by)
    arguments = ("--figures", folder / "figures", "--csv", folder / "all.csv", "--parquet", folder / "all.parquet")
    result = run(
        "report",
        runs,
        *arguments,
        "--latex",
        folder / "all.tex",
        "--markdown",
        folder / "all.md",
        "--cache",
        folder / "none",
    )
    assert result.exit_code == 0, result.output
    return ReadPage(runs / "report" / "index.html"), Truth(runs), folder


def close(text: str, value: float) -> bool:
    """Whether a number on the page is this one, to the digits it shows."""
    digits = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5 * 10**-digits + 1e-9


def q_values(p_values: list[float]) -> list[float]:
    return [float(one) for one in false_discovery_control(p_values, method="bh")]


def same_chance(text: str, value: float) -> bool:
    return text == (f"{value:.3f}" if value >= 0.001 else f"{value:.0e}")


def test_every_result(made: tuple[ReadPage, Truth, Path]) -> None:
    page, truth, _ = made
    records = page.tables["results"].records()
    assert len(records) == len(MODELS) * len(DATASETS) * len(SEEDS) * len(PROBES)
    for one in records:
        place = (one["model"], one["data set"], int(one["seed"]), one["probe"])
        labels, logits = truth.labels[place], truth.logits[place]
        assert close(one["balanced accuracy"], truth.accuracy(*place))
        assert close(one["gain"], truth.gain(*place))
        assert close(one["top-1"], 100 * np.mean(logits.argmax(1) == labels))
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(NUM_CLASSES))
        assert close(one["top-5"], 100 * top5)
        assert close(one["macro F1"], 100 * f1_score(labels, logits.argmax(1), average="macro"))
        assert one["seconds"] in ("1.8", "1.7")  # 1.75
        assert one["parameters"] == "1,234"
        assert one["key"] == truth.keys[place][:8]


def test_intervals_agree_with_a_bootstrap_that_draws_images(made: tuple[ReadPage, Truth, Path]) -> None:
    """Ends of a percentile interval of 2,000 resamples vary by 0.06 standard deviations of the resamples (the density of a normal
    at its 2.5 % quantile), those of 3,000 by 0.05: 0.3 is four of both together. The page shows one digit."""
    page, truth, _ = made
    records = page.tables["results"].records()
    for number, one in enumerate(records[::17]):
        place = (one["model"], one["data set"], int(one["seed"]), one["probe"])
        labels, hits, base = truth.labels[place], truth.hits(*place), truth.hits(*place[:3], "linear-cls")
        generator = np.random.default_rng(number)
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        draws = [[generator.choice(rows, len(rows)) for rows in classes] for _ in range(3000)]
        accuracy = np.array([100 * np.mean([hits[rows].mean() for rows in draw]) for draw in draws])
        shown = [float(text) for text in one["95 %"].split(" to ")]
        assert np.abs(np.quantile(accuracy, [0.025, 0.975]) - shown).max() < 0.3 * accuracy.std() + 0.05
        if one["probe"] != "linear-cls":
            both = hits.astype(float) - base
            gain = np.array([100 * np.mean([both[rows].mean() for rows in draw]) for draw in draws])
            shown = [float(text) for text in one["95 % of gain"].split(" to ")]
            assert np.abs(np.quantile(gain, [0.025, 0.975]) - shown).max() < 0.3 * gain.std() + 0.05


def test_one_line_a_probe(made: tuple[ReadPage, Truth, Path]) -> None:
    page, truth, _ = made
    grids = {probe: truth.grid(probe) for probe in PROBES}
    by_dataset = np.stack([grids[probe].mean((0, 2)) for probe in PROBES])
    ranks = rankdata(-by_dataset, axis=0).mean(1)
    best = np.stack([grids[probe].mean(2) for probe in PROBES]).argmax(0)
    gains = {probe: grids[probe] - grids["linear-cls"] for probe in PROBES}
    p_values = [wilcoxon(gains[probe].mean((0, 2)), alternative="greater").pvalue for probe in PROBES[1:]]
    chances = dict(zip(PROBES[1:], zip(p_values, q_values(p_values), strict=True), strict=True))
    for place, one in enumerate(page.tables["probes"].records()):
        probe = one["probe"]
        assert probe == PROBES[place]
        assert one["cases"] == f"{NUM_CASES} of {NUM_CASES}"
        assert close(one["mean accuracy"], grids[probe].mean())
        assert close(one["mean rank"], ranks[place])
        assert int(one["best on"]) == (best == place).sum()
        if probe == "linear-cls":
            assert {one[name] for name in ("mean gain", "median", "min", "max", "p", "q")} == {"-"}
            continue
        over = gains[probe].ravel()
        found = (over.mean(), np.median(over), over.min(), over.max())
        assert all(
            close(one[name], value) for name, value in zip(("mean gain", "median", "min", "max"), found, strict=True)
        )
        assert same_chance(one["p"], chances[probe][0])
        assert same_chance(one["q"], chances[probe][1])


def test_the_sentences(made: tuple[ReadPage, Truth, Path]) -> None:
    page, truth, _ = made
    means = {probe: truth.grid(probe).mean() for probe in PROBES}
    best = max(PROBES, key=means.__getitem__)
    gain = means[best] - means["linear-cls"]
    over = f"over {NUM_CASES} cases, {gain:+.1f} points over linear-cls."
    headline = f"{best} has the highest mean accuracy: {means[best]:.1f} % {over}"
    assert headline in page.texts
    intervals = {
        (one["model"], one["data set"], int(one["seed"]), one["probe"]): one["95 % of gain"]
        for one in page.tables["results"].records()
    }
    p_values, expected = [], []
    for model, dataset, seed in [(m, d, s) for m in MODELS for d in DATASETS for s in SEEDS]:
        accuracy = {probe: truth.accuracy(model, dataset, seed, probe) for probe in PROBES}
        winner = max(PROBES, key=accuracy.__getitem__)
        assert winner != "linear-cls"
        one, two = (truth.hits(model, dataset, seed, probe) for probe in (winner, "linear-cls"))
        b, c = int((one & ~two).sum()), int((two & ~one).sum())
        p_values.append(binomtest(b, b + c).pvalue if b + c else 1.0)
        start = f"{model} on {dataset}, seed {seed}: {winner} is best with {accuracy[winner]:.1f} %"
        expected.append((start, winner, accuracy, intervals[model, dataset, seed, winner]))
    said = [text for text in page.texts if ": " in text and " is best with " in text]
    assert len(said) == NUM_CASES
    for text, (start, winner, accuracy, interval), q_value in zip(said, expected, q_values(p_values), strict=True):
        assert text.startswith(start)
        gain = accuracy[winner] - accuracy["linear-cls"]
        certain = f"(95 % over test images: {interval}; McNemar q = {q_value:.2g})"
        assert f", {gain:+.1f} points over linear-cls {certain}" in text
        lost = f"alf does not win here: {accuracy['alf']:.1f} %."
        assert text.endswith(lost if winner != "alf" else ").")


def test_the_headlines_and_what_the_page_counts(made: tuple[ReadPage, Truth, Path]) -> None:
    page, truth, _ = made
    results = NUM_CASES * len(PROBES)
    counts = (
        f"{results} results: {len(MODELS)} models, {len(DATASETS)} data sets, {len(PROBES)} probes, {len(SEEDS)} seeds."
    )
    assert f"{counts} Accuracy is balanced test accuracy." in page.texts
    grids = {probe: truth.grid(probe) for probe in PROBES}
    p_values = [
        wilcoxon((grids[probe] - grids["linear-cls"]).mean((0, 2)), alternative="greater").pvalue
        for probe in PROBES[1:]
    ]
    certain = [
        f"{probe} (q = {q:.3f})" for probe, q in zip(PROBES[1:], q_values(p_values), strict=True) if 0.001 <= q < 0.05
    ]
    text = f"Significant gains over linear-cls over {len(DATASETS)} data sets (Wilcoxon, one-sided, FDR 5 %): "
    assert f"{text}{', '.join(certain)}." in page.texts
    means = {probe: grid.mean((0, 2)) for probe, grid in grids.items()}
    lost = [name for place, name in enumerate(DATASETS) if max(means[p][place] for p in PROBES) > means["alf"][place]]
    said = [text for text in page.texts if text.startswith("alf does not win on ")]
    over = f"{len(lost)} of {len(DATASETS)} data sets, by the mean over models: {', '.join(lost)}."
    assert said == ([f"alf does not win on {over}"] if lost else [])


def test_the_table_by_data_set_and_its_marks(made: tuple[ReadPage, Truth, Path]) -> None:
    page, truth, folder = made
    table = page.tables["by-dataset"]
    grids = np.stack([truth.grid(probe) for probe in PROBES])  # [P, models, data sets, seeds]
    *lines, means, ranks = table.lines
    for number, line in enumerate(lines):
        assert line[0] == DATASETS[number]
        cases = grids[:, :, number].reshape(len(PROBES), -1)
        best = int(cases.mean(1).argmax())
        others = [place for place in range(len(PROBES)) if place != best]
        p_values = [_below(cases[other] - cases[best]) for other in others]
        tied = {place for place, q in zip(others, q_values(p_values), strict=True) if q >= 0.05}
        for place, text in enumerate(line[1:]):
            mean, _, std = text.partition(" ± ")
            assert close(mean, cases[place].mean())
            assert close(std, cases[place].std(ddof=1))
            mark = table.marks[number][place + 1]
            assert mark == ("b" if place == best else "u" if place in tied else "")
            assert (rf"\textbf{{{mean}" in (folder / "all.tex").read_text()) or place != best
    assert {"b", "u", ""} == {mark for marks in table.marks for mark in marks}
    by_dataset = grids.mean((1, 3))
    assert all(close(text, value) for text, value in zip(means[1:], by_dataset.mean(1), strict=True))
    assert all(close(text, value) for text, value in zip(ranks[1:], rankdata(-by_dataset, axis=0).mean(1), strict=True))


def _below(differences: np.ndarray) -> float:
    moved = differences[differences != 0]
    return float(wilcoxon(moved, alternative="less").pvalue) if len(moved) else 1.0


def test_every_two_probes(made: tuple[ReadPage, Truth, Path]) -> None:
    page, truth, _ = made
    records = page.tables["pairs"].records()
    assert len(records) == NUM_CASES * len(list(combinations(PROBES, 2)))
    p_values = []
    for one in records:
        case = (one["model"], one["data set"], int(one["seed"]))
        first, second = truth.hits(*case, one["probe"]), truth.hits(*case, one["other"])
        b, c = int((first & ~second).sum()), int((second & ~first).sum())
        assert (one["only probe right"], one["only other right"]) == (str(b), str(c))
        p_values.append(binomtest(b, b + c).pvalue if b + c else 1.0)
        assert same_chance(one["p"], p_values[-1])
    assert all(same_chance(one["q"], q) for one, q in zip(records, q_values(p_values), strict=True))
    alf = truth.grid("alf").mean((0, 2))
    others = [truth.grid(probe).mean((0, 2)) for probe in PROBES[:3]]
    p_values = [wilcoxon(alf - other, alternative="greater").pvalue for other in others]
    for one, other, p, q in zip(page.tables["alf"].records(), others, p_values, q_values(p_values), strict=True):
        assert one["data sets"] == str(len(DATASETS))
        assert close(one["median gain of alf"], np.median(alf - other))
        assert same_chance(one["p"], p)
        assert same_chance(one["q"], q)


def test_every_class(made: tuple[ReadPage, Truth, Path]) -> None:
    page, truth, _ = made
    cases = [(m, d, s) for m in MODELS for d in DATASETS for s in SEEDS]
    assert f"classes-{MAX_CASES}" not in page.tables
    for number, case in enumerate(cases[:MAX_CASES]):
        table = page.tables[f"classes-{number}"]
        labels = truth.labels[(*case, "alf")]
        shares = {
            probe: recall_score(labels, truth.logits[(*case, probe)].argmax(1), average=None, labels=range(NUM_CLASSES))
            for probe in PROBES
        }
        for label, one in enumerate(table.records()):
            assert one["class"] == ("ant", "bee", "cat", "dog", "eel", "fox")[label]
            assert one["test images"] == str((labels == label).sum())
            assert all(close(one[probe], 100 * shares[probe][label]) for probe in PROBES)


def test_seeds(made: tuple[ReadPage, Truth, Path]) -> None:
    """Of two seeds there are three resamples: the interval's ends are the two values, whatever was drawn."""
    page, truth, _ = made
    for one in page.tables["over-seeds"].records():
        values = np.array([truth.accuracy(one["model"], one["data set"], seed, one["probe"]) for seed in SEEDS])
        assert one["seeds"] == "2"
        assert close(one["mean"], values.mean())
        assert close(one["std"], values.std(ddof=1))
        low, high = one["95 % of the mean"].split(" to ")
        assert close(low, values.min())
        assert close(high, values.max())


def test_attention(made: tuple[ReadPage, Truth, Path]) -> None:
    page, _, folder = made
    masses: dict[tuple[str, str], list[np.ndarray]] = {}
    for path in sorted((folder / "runs").rglob("attention.npz")):
        rows = (json.loads(line) for line in (path.parent.parent / "results.jsonl").read_text().splitlines())
        row = next(row for row in rows if row["probe"] == "alf")
        with np.load(path) as saved:
            masses.setdefault((row["backbone"], row["dataset"]), []).append(saved["mass"].mean(0))
    for one in page.tables["attention-spread"].records():
        shares = np.mean(masses[one["model"], one["data set"]], axis=0)  # [L, K]
        assert close(one["entropy"], -(shares * np.log(shares)).sum())
        falling = np.sort(shares.ravel())[::-1].cumsum()
        assert int(one["80 % in"]) == int((falling < 0.8).sum()) + 1
        assert close(one["late third in %"], 100 * shares[2].sum())
        level, kind = np.unravel_index(shares.argmax(), shares.shape)
        assert one["most on"] == f"{['block.1', 'block.2', 'final'][level]} {['cls', 'ap'][kind]}"
        assert close(one["its share in %"], 100 * shares.max())
    names = [name for name in page.csvs if name.startswith("attention-") and name != "attention-spread.csv"]
    drawn = [line for name in names for line in page.csvs[name]]
    assert len(drawn) == len(MODELS) * len(DATASETS) * 6
    of_model = len(DATASETS) * 6
    for number, line in enumerate(drawn):
        shares = np.mean(masses[MODELS[number // of_model], line["line"]], axis=0)
        place = ["block.1", "block.2", "final"].index(line["level"]), ["cls", "ap"].index(line["kind"])
        assert float(line["share"]) == pytest.approx(shares[place], abs=2e-6)
        assert float(line["entropy"]) == pytest.approx(-(shares * np.log(shares)).sum(), abs=2e-5)
        assert int(line["mass80"]) == int((np.sort(shares.ravel())[::-1].cumsum() < 0.8).sum()) + 1


def test_every_setting(made: tuple[ReadPage, Truth, Path]) -> None:
    """Rows of `study_runs` have one setting; `test_report_stores.py` looks at those of a real training."""
    page, truth, _ = made
    records = page.tables["settings"].records()
    places = [(one["model"], one["data set"], int(one["seed"]), one["probe"]) for one in records]
    assert places == list(truth.keys)
    chosen = {"lr": "0.1", "weight decay": "0.0001", "dropout": "0", "validation": "50.0", "settings": "2"}
    tokens = {"levels": "block.1 to final, 3", "kinds": "cls, ap"}
    nothing = dict.fromkeys(("heads", "compute", "train store", "test store"), "-")
    for one in records:
        assert {name: one[name] for name in (*chosen, "diverged", *tokens, *nothing)} == {
            **chosen,
            "diverged": "1",
            **tokens,
            **nothing,
        }


def test_the_csv_beside_each_figure(made: tuple[ReadPage, Truth, Path]) -> None:
    page, truth, folder = made
    gains = page.csvs["gains.csv"]
    assert len(gains) == NUM_CASES * 3
    over = {probe: (truth.grid(probe) - truth.grid("linear-cls")).mean((0, 2)) for probe in PROBES[1:]}
    p_values = [wilcoxon(over[probe], alternative="greater").pvalue for probe in PROBES[1:]]
    chances = dict(zip(PROBES[1:], zip(p_values, q_values(p_values), strict=True), strict=True))
    for line in gains:
        assert (float(line["p"]), float(line["q"])) == pytest.approx(chances[line["probe"]], rel=1e-5)
        assert float(line["gain"]) == pytest.approx(
            truth.gain(line["model"], line["dataset"], int(line["seed"]), line["probe"]), abs=1e-4
        )
    for line in page.csvs["seeds.csv"]:
        values = [truth.accuracy(line["model"], line["dataset"], seed, line["probe"]) for seed in SEEDS]
        assert float(line["percent"]) == pytest.approx(values[int(line["seed"])], abs=1e-4)
        assert float(line["deviation"]) == pytest.approx(values[int(line["seed"])] - np.mean(values), abs=1e-4)
    for line in page.csvs["gains-by-size.csv"]:
        model = MODELS["SBL".index(line["size"])]
        of_size = np.array([[truth.gain(model, d, s, line["probe"]) for s in SEEDS] for d in DATASETS]).mean(1)
        assert float(line["mean_gain"]) == pytest.approx(of_size.mean(), abs=1e-4)
        error = of_size.std(ddof=1) / np.sqrt(len(of_size))
        assert float(line["standard_error"]) == pytest.approx(error, abs=1e-4)
        assert (line["family"], line["num_cases"]) == ("vit_patch16_224", str(len(DATASETS)))
    with (folder / "figures" / "by-dataset.csv").open(encoding="utf-8", newline="") as file:
        drawn = list(csv.DictReader(file))
    table = page.tables["by-dataset"]
    for number, line in enumerate(drawn):
        row, column = divmod(number, len(PROBES))
        cases = truth.grid(line["probe"])[:, DATASETS.index(line["dataset"])]
        assert table.lines[row][0] == line["dataset"]
        assert float(line["mean"]) == pytest.approx(cases.mean(), abs=1e-3)
        assert float(line["std"]) == pytest.approx(cases.std(ddof=1), abs=1e-3)
        assert table.marks[row][column + 1] == "b" * int(line["best"]) + "u" * int(line["tied"])
    written = {path.name for path in (folder / "figures").iterdir()}
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert written == {f"{name}.{suffix}" for name in names for suffix in ("svg", "png", "csv")}
    assert {
        "gains",
        "gains-by-size",
        "by-dataset",
        "seeds",
        "attention-0-alf",
        "attention-1-alf",
        "attention-2-alf",
    } == names


def test_csv_and_parquet_hold_every_result_with_all_digits(made: tuple[ReadPage, Truth, Path]) -> None:
    from pyarrow import parquet

    page, truth, folder = made
    with (folder / "all.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    records = parquet.read_table(folder / "all.parquet").to_pylist()
    assert len(lines) == len(records) == NUM_CASES * len(PROBES)
    assert lines == page.csvs["results.csv"]
    for line, record in zip(lines, records, strict=True):
        place = (record["model"], record["dataset"], record["seed"], record["probe"])
        assert place == (line["model"], line["dataset"], int(line["seed"]), line["probe"])
        assert record["balanced_accuracy"] == pytest.approx(truth.accuracy(*place), abs=1e-9)
        assert record["gain"] == pytest.approx(truth.gain(*place), abs=1e-9)
        assert record["balanced_accuracy_low"] <= record["balanced_accuracy"] <= record["balanced_accuracy_high"]
        for name, value in record.items():
            assert line[name] == ("" if value is None else str(value))


def test_a_table_shows_the_numbers_of_its_csv(made: tuple[ReadPage, Truth, Path]) -> None:
    """The other tests compute what is shown; here the files that are downloaded say the same, with more digits."""
    page, _, _ = made
    several = {"95 %": "balanced_accuracy", "95 % of gain": "gain", "95 % of the mean": ""}  # two columns of the file
    named = {
        "top-1": "top1",
        "top-5": "top5",
        "macro F1": "macro_f1",
        "data set": "dataset",
        "parameters": "num_parameters",
    }
    for name, table in page.tables.items():
        lines = page.csvs[f"{name}.csv"]
        body = [line for line in table.records() if line[table.columns[0]] not in ("mean", "mean rank")]
        assert len(body) == len(lines) > 0, name
        for shown, line in zip(body, lines, strict=True):
            for column, text in shown.items():
                if column in several:
                    ends = [line[f"{several[column]}_{end}".lstrip("_")] for end in ("low", "high")]
                    texts = ["-"] * 2 if text == "-" else text.split(" to ")
                else:
                    known = [one for one in (column, column.replace(" ", "_"), named.get(column)) if one in line]
                    ends, texts = [line[known[0]]], [text]
                assert all(map(same, texts, ends)), (name, column, text, ends)


def same(text: str, saved: str) -> bool:
    """Whether a cell shows what its file has: equal, or a number to the digits shown, or a beginning (of a key)."""
    if text in ("-", "diverged"):
        return saved in ("", "-")
    shown = text.split(" ± ")[0].split(" of ")[0].replace(",", "")
    try:
        value = float(saved)
    except ValueError:
        return saved == text or (len(saved) == 32 and saved.startswith(text))
    return same_chance(text, value) or close(shown, value)


def test_the_sentence_that_stands_for_a_figure_has_the_numbers_that_are_drawn(
    made: tuple[ReadPage, Truth, Path],
) -> None:
    page, truth, _ = made
    alts = [image["alt"] or "" for image in page.images if "alt" in image]
    grids = {probe: truth.grid(probe) for probe in PROBES}
    gains = ", ".join(f"{probe} {(grids[probe] - grids['linear-cls']).mean():+.2f}" for probe in PROBES[1:])
    assert f"Box plot. Mean gain in points over linear-cls: {gains}." in alts
    pooled = {probe: np.sqrt(grid.var(axis=2, ddof=1).mean()) for probe, grid in grids.items()}
    stds = ", ".join(f"{probe} std {pooled[probe]:.2f}" for probe in PROBES)
    assert f"How far each seed lies from the mean of its model and data set, one line per probe: {stds}." in alts
    of_map = {(one["model"], one["data set"]): one for one in page.tables["attention-spread"].records()}
    for model in MODELS:
        start = f"Heat map of the attention of alf ({model}) over levels and kinds. "
        (alt,) = (alt for alt in alts if alt.startswith(start))
        said = re.findall(r"(\w+): most on (\S+ \w+) \((\d+) %\)", alt)
        assert [dataset for dataset, _, _ in said] == list(DATASETS)
        for dataset, most, share in said:
            assert most == of_map[model, dataset]["most on"]
            assert abs(float(share) - float(of_map[model, dataset]["its share in %"])) <= 0.55  # rounded twice


def test_markdown_and_latex_have_every_number_of_the_table_by_data_set(made: tuple[ReadPage, Truth, Path]) -> None:
    page, _, folder = made
    plain = [[cell.replace(" ±", "±") for cell in line] for line in page.tables["by-dataset"].lines]
    texts = []
    for line in (folder / "all.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith(("| data set", "| ---")):
            cells = [
                re.sub(r"\*\*|</?u>", "", cell).replace(" ±", "±").strip() for cell in line.strip("| ").split(" | ")
            ]
            texts.append(cells)
    assert texts == [[cell.replace("± ", "±") for cell in line] for line in plain]
    latex = (folder / "all.tex").read_text().split(r"\midrule", 1)[1]
    rows = [line.removesuffix(r" \\").split(" & ") for line in latex.splitlines() if line.endswith(r"\\")]
    bare = [
        [re.sub(r" \{\\scriptsize\$\\pm\$|\\(textbf|underline)\{|\}", "±", cell).strip("±") for cell in line]
        for line in rows
    ]
    assert [[re.sub("±+", "±", cell) for cell in line] for line in bare] == texts


def test_no_table_and_no_figure_is_without_a_test_that_computes_it_again(made: tuple[ReadPage, Truth, Path]) -> None:
    """`test_report_stores.py` and `test_study_report.py` ask the same of their pages, which have the rest."""
    assert len(require_computed_again(made[0], PROBES)) == 13
