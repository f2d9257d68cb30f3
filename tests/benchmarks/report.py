"""`layerbank report` on a study of full size: 11 models x 20 data sets x 20 probes, predictions as `layerbank probe` leaves them.

    python tests/benchmarks/report.py                                  # 4,400 results, 10 GB of predictions under /tmp, minutes
    python tests/benchmarks/report.py --folder /data/runs              # made once, measured as often as one likes
    python tests/benchmarks/report.py --num-models 2 --num-datasets 4  # a quick look

Measured are whole commands, each in a process of its own: with intervals over test images, and without (the bootstrap is replaced
by one that answers at once), so their difference is what the intervals take. Peak memory is the largest resident set of the
process. With a Chromium on the path and playwright the page is opened three times: until the load event, until everything that is
folded is unfolded and laid out, until a table of all results is sorted, and how much memory its script engine holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine

from layerbank.data.catalogue import CATALOGUE, Entry
from layerbank.statistics.paper import MODELS

LINEAR = (
    "linear-cls",
    "linear-last",
    "linear-all",
    "linear-quarterly",
    "linear-all-cls",
    "linear-all-ap",
    "linear@best",
    "knn-cls",
)
ATTENTIVE = (
    "attn-last",
    "attn-quarterly",
    "alf",
    "alf-cls",
    "alf-ap",
    "alf-h8",
    "alf-grid2",
    "alf-smallest",
    "aat",
    "aat-quarterly",
)
OTHERS = ("alf-top5", "linear-all-top5")  # no attention
PROBES = (*LINEAR, *ATTENTIVE, *OTHERS)
NUM_IMAGES = {
    "STL-10": 8000,
    "Caltech-101": 6084,
    "PASCAL VOC 2007": 4952,
    "ImageNet-1k": 2000,
    "Pets": 3669,
    "Flowers": 6149,
}
NUM_IMAGES |= {
    "Stanford Cars": 8041,
    "FGVC Aircraft": 3333,
    "EuroSAT": 5400,
    "RESISC45": 6300,
    "DTD": 1880,
    "FER2013": 7178,
}
AT_MOST = 10_000  # test images of all others, and of ImageNet fewer: its 50,000 x 1,000 scores of 220 probes are 44 GB
MARK = "complete"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the runs are, or are made; a temporary one by default")
    parser.add_argument("--num-models", type=int, default=11)
    parser.add_argument("--num-datasets", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1, help="commands of each kind; the median counts")
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--command-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--without-intervals", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command_of:
        run_report(options.command_of, options.without_intervals)
        return
    with tempfile.TemporaryDirectory(prefix="report-") as temporary:
        runs = options.folder or Path(temporary, "runs")
        if not Path(runs, MARK).exists():
            make_runs(runs, options.num_models, options.num_datasets)
        compare(runs, options.repeats, browser=not options.no_browser)


def compare(runs: Path, repeats: int, *, browser: bool) -> None:
    print(describe_machine())
    rows = sum(len(path.read_text().splitlines()) for path in runs.rglob("results.jsonl"))
    size = sum(path.stat().st_size for path in runs.rglob("*.npz"))
    print(f"{rows:,} results, {size / 1e9:.1f} GB of predictions and attention")
    for name, flags in (("with intervals", ()), ("without intervals", ("--without-intervals",))):
        taken = [measure(runs, *flags) for _ in range(repeats)]
        seconds, of_cpu, peak, page = (median(column) for column in zip(*taken, strict=True))
        print(
            f"{name:18} {seconds:7.1f} s   CPU {of_cpu:6.1f} s   peak {peak / 1e6:6.0f} MB   page {page / 1e6:5.1f} MB"
        )
        if not flags:
            shutil.copy(runs / "report" / "index.html", runs / "page.html")
    if browser:
        open_page(runs / "page.html")


def measure(runs: Path, *flags: str) -> tuple[float, float, float, float]:
    """Seconds by the clock, seconds of the processor, bytes of the largest resident set, bytes of the page.

    On a machine that does other things too, the seconds of the processor are those to compare.
    """
    began_s = time.perf_counter()
    command = subprocess.Popen([sys.executable, __file__, "--command-of", runs, *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(command.pid, 0)
    seconds = time.perf_counter() - began_s
    assert status == 0, f"the report failed: {status}"
    return (
        seconds,
        usage.ru_utime + usage.ru_stime,
        1024 * usage.ru_maxrss,
        (runs / "report" / "index.html").stat().st_size,
    )


def run_report(runs: Path, without_intervals: bool) -> None:
    """What is measured, as the command line starts it."""
    from layerbank.cli import main as layerbank

    if without_intervals:
        from layerbank.statistics import tested

        nothing = tested.Interval(value=float("nan"), low=float("nan"), high=float("nan"))
        tested.intervals = lambda values, _: [nothing] * len(values)
    layerbank(["report", str(runs), "--json"])


def open_page(path: Path) -> None:
    """In a Chromium, if there is one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("no browser")
        return
    taken = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(3):
            page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            began_s = time.perf_counter()
            page.goto(path.resolve().as_uri(), timeout=120_000)
            loaded = time.perf_counter()
            page.evaluate(
                "for (const one of document.querySelectorAll('details')) one.open = true; document.body.offsetHeight"
            )
            unfolded = time.perf_counter()
            page.evaluate("document.querySelector('#t-results thead button').click(); document.body.offsetHeight")
            ended = time.perf_counter()
            nodes = page.evaluate("document.querySelectorAll('*').length")
            heap = page.evaluate("performance.memory.usedJSHeapSize")
            taken.append((loaded - began_s, unfolded - loaded, ended - unfolded, nodes, heap))
            page.close()
        browser.close()
    load, unfold, sort, nodes, heap = (median(column) for column in zip(*taken, strict=True))
    print(
        f"Chromium: load {load:.2f} s, unfold {unfold:.2f} s, sort {sort:.2f} s, {nodes:,} elements, heap {heap / 1e6:.0f} MB"
    )


def make_runs(runs: Path, num_models: int, num_datasets: int) -> None:
    """Rows, predictions and attention of every case; no probe's weights, which a report does not read."""
    generator = np.random.default_rng(0)
    models = [*(model.model for model in MODELS), "timm/vit_small_patch16_224.dino", "timm/vit_base_patch16_224.mae"]
    for model in models[:num_models]:
        for entry in CATALOGUE[:num_datasets]:
            make_case(runs, model, entry, generator)
    (runs / MARK).touch()


def make_case(runs: Path, model: str, entry: Entry, generator: np.random.Generator) -> None:
    store = runs / entry.folder / f"{model.replace('/', '-')}-{len(list(runs.glob('*/*'))):08x}"
    num_images = NUM_IMAGES.get(entry.title, AT_MOST)
    labels = np.sort(generator.integers(entry.num_classes, size=num_images))
    ids = np.array([f"{number:08}" for number in range(num_images)])
    difficulty = 1.5 + np.log(entry.num_classes) / 3 - 1.5 * generator.random()
    levels = [*(f"block.{block}" for block in range(1, 24 if "large" in model or "-L-" in model else 12)), "final"]
    lines = []
    for place, probe in enumerate(PROBES):
        strength = difficulty * (1 + 0.02 * place + 0.1 * generator.random())
        logits = generator.standard_normal((num_images, entry.num_classes), dtype=np.float32)
        logits[np.arange(num_images), labels] += np.float32(strength + 1)
        row = make_row(model, entry, probe, levels, labels, logits)
        folder = store / f"{probe}-{row['key'][:8]}"
        folder.mkdir(parents=True)
        np.savez(folder / "test.npz", sample_ids=ids, labels=labels, logits=logits)
        (folder / "probe.json").write_text(json.dumps({"format": 1, "config": make_config(entry)}))
        if probe in ATTENTIVE:
            write_attention(folder, row, ids if probe == "alf" else ids[:0], generator)
        lines.append(json.dumps(row) + "\n")
    (store / "results.jsonl").write_text("".join(lines), encoding="utf-8")


def make_row(
    model: str, entry: Entry, probe: str, levels: list[str], labels: np.ndarray, logits: np.ndarray
) -> dict[str, Any]:
    hits = logits.argmax(1) == labels
    shares = np.bincount(labels, hits)[np.unique(labels)] / np.bincount(labels)[np.unique(labels)]
    attentive = probe in ATTENTIVE
    settings = [
        {"lr": lr, "weight_decay": wd, "dropout": 0.0, "validation": 0.5} for lr in (0.1, 0.01, 1e-3) for wd in range(7)
    ]
    row = {
        "key": hashlib.md5(f"{model} {entry.name} {probe}".encode(), usedforsecurity=False).hexdigest(),
        "probe": probe,
        "backbone": model,
        "dataset": f"wds/{entry.name}",
        "setting_of_study": f"{model} {entry.name}",
        "test": {"balanced_accuracy": float(shares.mean())},
        "protocol": {"seed": 0, "lrs": [0.1, 0.01, 0.001], "epochs": 40},
        "head": "attentive" if attentive else "linear",
        "num_heads": 8 if probe == "alf-h8" else 24 if attentive else None,
        "num_parameters": 1_234_567,
        "levels": levels[-1:] if "last" in probe or not attentive else levels,
        "kinds": ["cls"] if probe.endswith("-cls") else ["ap"] if probe.endswith("-ap") else ["cls", "ap"],
        "chosen": settings[0],
        "validation": 0.5,
        "settings": settings,
        "seconds": {"select": 12.5, "refit": 3.25, "test": 0.25},
        "cost": {"trainings": 22, "probe_steps": 11_022, "tokens_read": 24},
        "compute": "float32",
        "train_fingerprint": "0" * 32,
        "test_fingerprint": "1" * 32,
    }
    if probe.endswith(("-smallest", "-top5")):
        row["derived"] = {"base": probe.rsplit("-", 1)[0], "rounds": [], "members": []}
    return row


def make_config(entry: Entry) -> dict[str, Any]:
    return {
        "class_names": [f"class {number} of {entry.title}" for number in range(entry.num_classes)],
        "versions": {"torch": "9.9", "timm": "1.0"},
        "data": "folder:/nowhere",
        "test_cache": {"split": "test", "manifest": "0" * 32},
    }


def write_attention(folder: Path, row: dict[str, Any], ids: np.ndarray, generator: np.random.Generator) -> None:
    """The map; and, where ids are given, the mass of each image."""
    levels, kinds = row["levels"], row["kinds"]
    shares = generator.dirichlet(np.full(len(levels) * len(kinds), 0.5)).reshape(len(levels), len(kinds))
    cells = [
        f"{level},{kind},{shares[i, k]:.6f},0.1\n" for i, level in enumerate(levels) for k, kind in enumerate(kinds)
    ]
    (folder / "attention.csv").write_text("level,kind,share,std\n" + "".join(cells))
    if len(ids):
        mass = np.broadcast_to(shares.astype(np.float32), (len(ids), *shares.shape))
        np.savez(folder / "attention.npz", sample_ids=ids, mass=mass)


if __name__ == "__main__":
    main()
