"""The figures that take the stores' tokens again: likeness of levels, training accuracy, accuracy with few tokens. Takes torch."""

from __future__ import annotations

from pathlib import Path

from layerbank.cache import CacheError, TokenCache
from layerbank.probes import ProbeError

from ..errors import LayerbankError
from ..events import ReportStep
from ..statistics.duplicates import image_rows
from ..statistics.predictions import accuracies
from ..statistics.scores import Case
from ..statistics.similarity import SIGMA, SUBSET, Similarity, levels_of, linear_similarity, rbf_similarity
from .figures.ablations import draw_series, draw_train_test, pruning_series
from .figures.heatmaps import draw_similarity, draw_similarity_to_final
from .page.blocks import Picture
from .report_data import ReportData
from .saved import SavedHead, prune_tokens

FAILS = (LayerbankError, CacheError, ProbeError)
KIND = "cls"
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # tokens kept, as far as there are so many


def token_pictures(report_data: ReportData, cases: list[Case]) -> list[Picture]:
    """All of them, of cases whose two stores are there; what cannot be made is a note of the material."""
    return [*_likeness(report_data, cases), *_train_test(report_data, cases), *_few_tokens(report_data, cases)]


def _likeness(report_data: ReportData, cases: list[Case]) -> list[Picture]:
    by_line: dict[str, dict[str, Similarity]] = {}
    pictures = []
    unseeded = list({(one.model, one.dataset): one for one in cases}.values())
    for number, case in enumerate(unseeded):
        _tell(report_data, f"likeness of levels, {case.dataset}", number, len(unseeded))
        try:
            cache = TokenCache.open(_store(report_data, case, "test"), num_views=0)
            levels = levels_of(cache, KIND, [level for level in cache.levels if (level, KIND) in cache.arrays])
            rows = image_rows(cache)
            linear, gaussian = linear_similarity(levels, rows), rbf_similarity(levels, rows, num_images=SUBSET)
        except FAILS as error:
            report_data.notes.append(f"No likeness of levels of {case.dataset}: {error}")
            continue
        lines = by_line.setdefault(case.model, {})
        lines |= {f"{case.dataset}, linear": linear, f"{case.dataset}, rbf": gaussian}
        pictures.append(_map(report_data, case, number, linear))
    return [
        _to_final(report_data, model, number, lines) for number, (model, lines) in enumerate(by_line.items())
    ] + pictures


def _map(report_data: ReportData, case: Case, number: int, linear: Similarity) -> Picture:
    return report_data.draw(
        f"cka-{number}",
        lambda stem: draw_similarity(linear, stem),
        alt=f"Heat map of unbiased linear CKA between all levels of {case.model} on {case.dataset}, {KIND} tokens. "
        f"First with last level: {linear.values[0, -1]:.2f}.",
        caption=f"Likeness of the levels of {case.model} on the test images of {case.dataset} ({KIND} tokens).",
    )


def _to_final(report_data: ReportData, model: str, number: int, lines: dict[str, Similarity]) -> Picture:
    said = "; ".join(f"{name}: first level {one.values[0, -1]:.2f}" for name, one in lines.items())
    return report_data.draw(
        f"cka-to-final-{number}",
        lambda stem: draw_similarity_to_final(lines, stem),
        alt=f"CKA of every level of {model} with its last, over depth. {said}.",
        caption=(
            f"Likeness of every level of {model} to the last one ({KIND} tokens of test images; rbf: sigma {SIGMA:g}, at most "
            f"{SUBSET:,} images, drawn with the seed in the CSV)."
        ),
    )


def _train_test(report_data: ReportData, cases: list[Case]) -> list[Picture]:
    points: dict[str, list[tuple[str, float, float]]] = {}
    for number, case in enumerate(cases):
        _tell(report_data, f"training accuracy, {case.dataset}", number, len(cases))
        for probe in [name for name in report_data.tested[case].hits if name in report_data.main.probes]:
            try:
                head = SavedHead(report_data.folder(case, probe), _store(report_data, case, "train"))
                train = accuracies(head.predict()).balanced
            except FAILS as error:
                report_data.notes.append(f"No training accuracy of {probe} on {case.dataset}: {error}")
                continue
            test = report_data.tested[case].accuracies[probe].balanced
            points.setdefault(probe, []).append((report_data.words(case), train, test))
    if not points:
        return []
    gaps = {probe: [100 * (train - test) for _, train, test in found] for probe, found in points.items()}
    said = ", ".join(f"{probe} {sum(of_probe) / len(of_probe):.1f}" for probe, of_probe in gaps.items())
    return [
        report_data.draw(
            "train-test",
            lambda stem: draw_train_test(points, stem),
            alt=f"Balanced accuracy on test images against that on training images. Mean gap in points: {said}.",
            caption="What lies far under the diagonal has learnt its training images by heart.",
        )
    ]


def _few_tokens(report_data: ReportData, cases: list[Case]) -> list[Picture]:
    kept: dict[str, list[tuple[int, float]]] = {}
    for number, case in enumerate(cases):
        if "alf" not in report_data.tested[case].hits:
            continue
        _tell(report_data, f"alf with few tokens, {case.dataset}", number, len(cases))
        row = report_data.row[case, "alf"]
        num_tokens = len(row["levels"]) * len(row["kinds"])
        counts = [*(count for count in COUNTS if count < num_tokens), num_tokens]
        train, test = (_store(report_data, case, split) for split in ("train", "test"))
        try:
            found = prune_tokens(report_data.folder(case, "alf"), train, test, counts)
        except FAILS as error:
            report_data.notes.append(f"No accuracy of alf with few tokens on {case.dataset}: {error}")
            continue
        kept[report_data.words(case)] = [(one.num_tokens, one.balanced_accuracy) for one in found]
    if not kept:
        return []
    series = pruning_series(kept)
    said = "; ".join(
        f"{name}: {100 * points[0][1]:.1f} % with {points[0][0]}, {100 * points[-1][1]:.1f} % with all {points[-1][0]}"
        for name, points in kept.items()
    )
    return [
        report_data.draw(
            "few-tokens",
            lambda stem: draw_series(series, stem),
            alt=f"Balanced accuracy of alf with only the tokens it attends to most. {said}.",
            caption="alf with only the k tokens that it attends to most on training images, not trained again.",
        )
    ]


def _store(report_data: ReportData, case: Case, split: str) -> Path:
    store = report_data.store(case, split)
    assert store is not None, "only cases with stores come here"
    return store


def _tell(report_data: ReportData, what: str, done: int, total: int) -> None:
    report_data.options.on_event(ReportStep(what=what, done=done, total=total))
