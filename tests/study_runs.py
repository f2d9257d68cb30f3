"""Folders of runs as `layerbank probe` leaves them, without training: rows, predictions and attention that follow from a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.probing.rows.results import key_of
from layerbank.probing.rows.results_file import RESULTS, append_row, read_results
from layerbank.probing.rows.row_files import digest_files, row_folder

SPLITS = ("train", "test")
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
LEVELS = ["block.1", "block.2", "final"]
KINDS = ["cls", "ap"]
REST: dict[str, Any] = {  # of format 2, what is not in every row of a test
    "images": {},
    "train_fingerprint": "0" * 32,
    "test_fingerprint": "1" * 32,
    "head": "linear",
    "levels": LEVELS,
    "kinds": KINDS,
    "num_heads": None,
    "normalize": "width",
    "chosen": {"lr": 0.1, "weight_decay": 0.0001, "dropout": 0.0},
    "num_parameters": 1234,
    "cost": {"trainings": 22, "probe_steps": 11_022, "tokens_read": 6},
    "seconds": {"select": 1.5, "test": 0.25},
}
STRENGTH = {"linear-cls": 1.0, "linear-all": 1.5, "attn-last": 1.2, "alf": 2.0, "aat": 1.6}


def balanced(labels: np.ndarray, logits: np.ndarray) -> float:
    """Balanced accuracy in [0, 1], in one line."""
    return float(np.mean([(logits.argmax(1)[labels == one] == one).mean() for one in np.unique(labels)]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file."""
    return list(read_results(path).rows)


def write_study(
    folder: Path,
    *,
    models: Sequence[str] = ("timm/vit_small_patch16_224",),
    datasets: Sequence[str] = ("pets",),
    seeds: Sequence[int] = (0,),
    probes: Sequence[str] = ("linear-cls", "linear-all", "alf"),
    classes: Sequence[str] = CLASSES,
    num_images: int = 90,
    ids: str = "image",
    strength: dict[str, float] | None = None,
) -> Path:
    """Every model on every data set with every seed; the classes are of different sizes."""
    generator = np.random.default_rng(0)
    for number, (model, dataset, seed) in enumerate(product(models, datasets, seeds)):
        store = folder / f"data{number:02}" / "store"
        labels = np.sort(generator.integers(len(classes), size=num_images)).astype(np.int64)
        lines = []
        for probe in probes:
            how = {**STRENGTH, **(strength or {})}.get(probe, 1.3)
            logits = generator.normal(size=(num_images, len(classes))) + how * np.eye(len(classes))[labels]
            lines.append(
                _write_row(store, number, model, dataset, seed, probe, labels, logits.astype(np.float32), classes, ids)
            )
        (store / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def write_format_2(folder: Path, *, train_rows: str = "a", **study: Any) -> Path:
    """The rows of `write_study` as rows of format 2, with their files and the records of their images."""
    for results in sorted(write_study(folder, **study).rglob(RESULTS)):
        rows = read_rows(results)
        results.unlink()
        for row in rows:
            place = results.parent / f"{row['probe']}-{row['key'][:8]}"
            data = {"train_rows": train_rows, "test_rows": row["dataset"]}
            common = {"model": row["backbone"], **data, "split.seed": row["protocol"]["seed"]}
            decisive = {**common, "probe.name": row["probe"]}
            row = REST | row
            row |= {"key": key_of(decisive), "key_fields": decisive, "setting_of_study": key_of(common), "stores": {}}
            row["images"] = {split: record_of(place, row["dataset"], split).save(place.parent) for split in SPLITS}
            row["files"] = digest_files(place, [path.name for path in place.iterdir()])
            place.rename(row_folder(results.parent, row))
            append_row(results, row)
    return folder


def record_of(place: Path, dataset: str, split: str) -> SplitRecord:
    """The images of a row; those of training have the ids of those of testing, and other content."""
    with np.load(place / "test.npz") as saved:
        ids, labels = saved["sample_ids"].tolist(), saved["labels"]
    hashes = np.arange(len(ids), dtype=np.uint64) + np.uint64(1 if split == "test" else 1_000_000)
    images = ImageSet(hashes=hashes, rule1_hashes=None, is_known=np.ones(len(ids), bool), keeps_order=True)
    return SplitRecord(dataset=dataset, split=split, ids=ids, labels=labels, class_names=CLASSES, images=images)


def _write_row(
    store: Path,
    number: int,
    model: str,
    dataset: str,
    seed: int,
    probe: str,
    labels: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    ids: str,
) -> dict[str, Any]:
    key = f"{number:03}{probe}".encode().hex().ljust(32, "0")
    folder = store / f"{probe}-{key[:8]}"
    folder.mkdir(parents=True)
    sample_ids = np.array([f"{ids}{one}" for one in range(len(labels))])
    np.savez(folder / "test.npz", sample_ids=sample_ids, labels=labels, logits=logits)
    config = {"class_names": list(classes), "versions": {"torch": "9.9"}, "data": "folder:/nowhere/at all"}
    test_cache = {"split": "test", "manifest": "00" * 16}
    (folder / "probe.json").write_text(json.dumps({"format": 1, "config": {**config, "test_cache": test_cache}}))
    row = {
        "key": key,
        "probe": probe,
        "backbone": model,
        "dataset": dataset,
        "setting_of_study": f"s{number}",
        "test": {"balanced_accuracy": balanced(labels, logits)},
        "protocol": {"seed": seed, "lrs": [0.1, 0.01]},
        "num_parameters": 1234,
        "levels": LEVELS,
        "kinds": KINDS,
        "chosen": {"lr": 0.1, "weight_decay": 0.0001, "dropout": 0.0},
        "validation": 0.5,
        "settings": [{"lr": 0.1, "validation": 0.5}, {"lr": 0.01, "validation": None}],
        "seconds": {"select": 1.5, "test": 0.25},
        "cost": {"trainings": 22, "probe_steps": 11_022, "tokens_read": 6},
    }
    if probe.endswith("-smallest"):
        row |= {"levels": LEVELS[1:], "derived": {"base": probe.removesuffix("-smallest"), "rounds": []}}
    if probe == "alf":
        mass = np.random.default_rng(number).dirichlet(np.ones(6), size=len(labels)).reshape(-1, 3, 2)
        np.savez(folder / "attention.npz", sample_ids=sample_ids, mass=mass.astype(np.float32))
        shares = [
            f"{level},{kind},{mass.mean(0)[i, k]:.6f},0.0\n"
            for i, level in enumerate(LEVELS)
            for k, kind in enumerate(KINDS)
        ]
        (folder / "attention.csv").write_text("level,kind,share,std\n" + "".join(shares))
    return row
