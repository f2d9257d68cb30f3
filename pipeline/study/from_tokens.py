"""The figures that take the stores' tokens again: likeness of levels, training accuracy, accuracy with few tokens. Takes torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cache import CacheError, TokenCache
from pipeline.errors import PipelineError
from pipeline.events import ReportStep
from probes import ProbeError

from .duplicates import image_rows
from .figures.ablations import draw_series, draw_train_test, pruning_series
from .figures.heatmaps import draw_similarity, draw_similarity_to_final
from .material import Material
from .page.blocks import Picture
from .predictions import accuracies
from .saved import SavedHead, prune_tokens
from .scores import Case
from .similarity import Similarity, levels_of, linear_similarity, rbf_similarity

FAILS = (PipelineError, CacheError, ProbeError)
KIND = "cls"
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # tokens kept, as far as there are so many
Result = TypeVar("Result")


def token_pictures(material: Material, cases: list[Case]) -> list[Picture]:
    """All of them, of cases whose two stores are there; what cannot be made is a note of the material."""
    return [*_likeness(material, cases), *_train_test(material, cases), *_few_tokens(material, cases)]


def _likeness(material: Material, cases: list[Case]) -> list[Picture]:
    by_line: dict[str, dict[str, Similarity]] = {}
    pictures = []
    for number, case in enumerate({(one.model, one.dataset): one for one in cases}.values()):
        store = material.store(case, "test")
        assert store is not None, "only cases with stores come here"
        _tell(material, f"likeness of levels, {case.dataset}", number, len(cases))
        try:
            cache = TokenCache.open(store, num_views=0)
            levels = levels_of(cache, KIND, [level for level in cache.levels if (level, KIND) in cache.arrays])
            rows = image_rows(cache)
            linear, gaussian = linear_similarity(levels, rows), rbf_similarity(levels, rows)
        except FAILS as error:
            material.notes.append(f"No likeness of levels of {case.dataset}: {error}")
            continue
        lines = by_line.setdefault(case.model, {})
        lines |= {f"{case.dataset}, linear": linear, f"{case.dataset}, rbf": gaussian}
        pictures.append(_map(material, case, number, linear))
    return [_to_final(material, model, number, lines) for number, (model, lines) in enumerate(by_line.items())] + pictures


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
        caption=f"Likeness of every level of {model} to the last one ({KIND} tokens, test images; rbf: sigma 0.2, a seeded subset).",
    )


def _train_test(material: Material, cases: list[Case]) -> list[Picture]:
    points: dict[str, list[tuple[str, float, float]]] = {}
    for number, case in enumerate(cases):
        store = material.store(case, "train")
        assert store is not None, "only cases with stores come here"
        for probe in [name for name in material.tested[case].hits if name in material.main.probes]:
            _tell(material, f"training accuracy, {case.dataset}, {probe}", number, len(cases))
            found = _tried(
                material,
                f"training accuracy of {probe} on {case.dataset}",
                lambda place=material.folder(case, probe), store=store: accuracies(SavedHead(place, store).predict()).balanced,
            )
            if found is not None:
                test = material.tested[case].accuracies[probe].balanced
                points.setdefault(probe, []).append((f"{case.dataset} ({case.model}, seed {case.seed})", found, test))
    if not points:
        return []
    said = ", ".join(
        f"{probe} {100 * sum(train - test for _, train, test in of_probe) / len(of_probe):.1f}"
        for probe, of_probe in points.items()
    )
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
        row = material.row.get((case, "alf"))
        if row is None or row["test"] is None:
            continue
        _tell(material, f"alf with few tokens, {case.dataset}", number, len(cases))
        num_tokens = len(row["levels"]) * len(row["kinds"])
        counts = [count for count in COUNTS if count < num_tokens] + [num_tokens]
        train, test = material.store(case, "train"), material.store(case, "test")
        assert train is not None, "only cases with stores come here"
        assert test is not None, "only cases with stores come here"

        def prune(place: Path = material.folder(case, "alf"), train: Path = train, test: Path = test, counts: list[int] = counts) -> list[tuple[int, float]]:
            return [(one.num_tokens, one.balanced_accuracy) for one in prune_tokens(place, train, test, counts)]

        found = _tried(material, f"alf with few tokens on {case.dataset}", prune)
        if found is not None:
            kept[f"{case.dataset} ({case.model}, seed {case.seed})"] = found
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


def _tried(material: Material, what: str, compute: Callable[[], Result]) -> Result | None:
    """What was computed, or None and a note."""
    try:
        return compute()
    except FAILS as error:
        material.notes.append(f"No {what}: {error}")
        return None


def _tell(material: Material, what: str, done: int, total: int) -> None:
    material.wishes.emit(ReportStep(what=what, done=done, total=total))
