"""The figures that take the stores' tokens again: likeness of levels, training accuracy, accuracy with few tokens. Takes torch."""

from __future__ import annotations

from pathlib import Path

from layerbank.cache import CacheError, TokenCache
from layerbank.probes import ProbeError

from ..errors import PipelineError
from ..events import ReportStep
from ..statistics.duplicates import image_rows
from ..statistics.predictions import accuracies
from ..statistics.scores import Case
from ..statistics.similarity import (
    SIGMA,
    SUBSET,
    Similarity,
    levels_of,
    linear_similarity,
    rbf_similarity,
)
from .figures.ablations import draw_series, draw_train_test, pruning_series
from .figures.heatmaps import draw_similarity, draw_similarity_to_final
from .page.blocks import Picture
from .report_data import Material
from .saved import SavedHead, prune_tokens

FAILS = (PipelineError, CacheError, ProbeError)
KIND = "cls"
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # tokens kept, as far as there are so many


def token_pictures(material: Material, cases: list[Case]) -> list[Picture]:
    """All of them, of cases whose two stores are there; what cannot be made is a note of the material."""
    return [*_likeness(material, cases), *_train_test(material, cases), *_few_tokens(material, cases)]


def _likeness(material: Material, cases: list[Case]) -> list[Picture]:
    by_line: dict[str, dict[str, Similarity]] = {}
    pictures = []
    unseeded = list({(one.model, one.dataset): one for one in cases}.values())
    for number, case in enumerate(unseeded):
        _tell(material, f"likeness of levels, {case.dataset}", number, len(unseeded))
        try:
            cache = TokenCache.open(_store(material, case, "test"), num_views=0)
            levels = levels_of(cache, KIND, [level for level in cache.levels if (level, KIND) in cache.arrays])
            rows = image_rows(cache)
            linear, gaussian = linear_similarity(levels, rows), rbf_similarity(levels, rows, num_images=SUBSET)
        except FAILS as error:
            material.notes.append(f"No likeness of levels of {case.dataset}: {error}")
            continue
        lines = by_line.setdefault(case.model, {})
        lines |= {f"{case.dataset}, linear": linear, f"{case.dataset}, rbf": gaussian}
        pictures.append(_map(material, case, number, linear))
    return [
        _to_final(material, model, number, lines) for number, (model, lines) in enumerate(by_line.items())
    ] + pictures


def _map(material: Material, case: Case, number: int, linear: Similarity) -> Picture:
    return material.draw(
        f"cka-{number}",
        lambda stem: draw_similarity(linear, stem),
        alt=f"Heat map of unbiased linear CKA between all levels of {case.model} on {case.dataset}, {KIND} tokens. "
        f"First with last level: {linear.values[0, -1]:.2f}.",
        caption=f"Likeness of the levels of {case.model} on the test images of {case.dataset} ({KIND} tokens).",
    )


def _to_final(material: Material, model: str, number: int, lines: dict[str, Similarity]) -> Picture:
    said = "; ".join(f"{name}: first level {one.values[0, -1]:.2f}" for name, one in lines.items())
    return material.draw(
        f"cka-to-final-{number}",
        lambda stem: draw_similarity_to_final(lines, stem),
        alt=f"CKA of every level of {model} with its last, over depth. {said}.",
        caption=(
            f"Likeness of every level of {model} to the last one ({KIND} tokens of test images; rbf: sigma {SIGMA:g}, at most "
            f"{SUBSET:,} images, drawn with the seed in the CSV)."
        ),
    )


def _train_test(material: Material, cases: list[Case]) -> list[Picture]:
    points: dict[str, list[tuple[str, float, float]]] = {}
    for number, case in enumerate(cases):
        _tell(material, f"training accuracy, {case.dataset}", number, len(cases))
        for probe in [name for name in material.tested[case].hits if name in material.main.probes]:
            try:
                head = SavedHead(material.folder(case, probe), _store(material, case, "train"))
                train = accuracies(head.predict()).balanced
            except FAILS as error:
                material.notes.append(f"No training accuracy of {probe} on {case.dataset}: {error}")
                continue
            test = material.tested[case].accuracies[probe].balanced
            points.setdefault(probe, []).append((material.words(case), train, test))
    if not points:
        return []
    gaps = {probe: [100 * (train - test) for _, train, test in found] for probe, found in points.items()}
    said = ", ".join(f"{probe} {sum(of_probe) / len(of_probe):.1f}" for probe, of_probe in gaps.items())
    return [
        material.draw(
            "train-test",
            lambda stem: draw_train_test(points, stem),
            alt=f"Balanced accuracy on test images against that on training images. Mean gap in points: {said}.",
            caption="What lies far under the diagonal has learnt its training images by heart.",
        )
    ]


def _few_tokens(material: Material, cases: list[Case]) -> list[Picture]:
    kept: dict[str, list[tuple[int, float]]] = {}
    for number, case in enumerate(cases):
        if "alf" not in material.tested[case].hits:
            continue
        _tell(material, f"alf with few tokens, {case.dataset}", number, len(cases))
        row = material.row[case, "alf"]
        num_tokens = len(row["levels"]) * len(row["kinds"])
        counts = [*(count for count in COUNTS if count < num_tokens), num_tokens]
        train, test = (_store(material, case, split) for split in ("train", "test"))
        try:
            found = prune_tokens(material.folder(case, "alf"), train, test, counts)
        except FAILS as error:
            material.notes.append(f"No accuracy of alf with few tokens on {case.dataset}: {error}")
            continue
        kept[material.words(case)] = [(one.num_tokens, one.balanced_accuracy) for one in found]
    if not kept:
        return []
    series = pruning_series(kept)
    said = "; ".join(
        f"{name}: {100 * points[0][1]:.1f} % with {points[0][0]}, {100 * points[-1][1]:.1f} % with all {points[-1][0]}"
        for name, points in kept.items()
    )
    return [
        material.draw(
            "few-tokens",
            lambda stem: draw_series(series, stem),
            alt=f"Balanced accuracy of alf with only the tokens it attends to most. {said}.",
            caption="alf with only the k tokens that it attends to most on training images, not trained again.",
        )
    ]


def _store(material: Material, case: Case, split: str) -> Path:
    store = material.store(case, split)
    assert store is not None, "only cases with stores come here"
    return store


def _tell(material: Material, what: str, done: int, total: int) -> None:
    material.wishes.emit(ReportStep(what=what, done=done, total=total))
