"""Figures that read the tokens of the stores again, on request: similarity of levels, training accuracy, few tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import LayerbankError
from ...events import ReportStep
from ...statistics.predictions import accuracies
from ...statistics.scores import Case, summarize
from ..page.blocks import Picture
from ..report_data import ReportData, ReportFigure
from ..style import COLUMN, CYCLE, GREY, LINES, MARKERS, drawing, drawn_name, grid, no_frame, save, short_level
from .ablations import draw_series, pruning_series

if TYPE_CHECKING:  # they take torch, which a report without tokens does without
    from ...probing.tokens.split_tokens import SplitRequest
    from ...statistics.similarity import Similarity

Splits = dict[Case, tuple["SplitRequest", "SplitRequest"]]  # of the training and of the test images
KINDS = ("cls", "ap")  # similarity is that of the first of these that a store has
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # numbers of tokens to keep, up to all


def draw_similarity(similarity: Similarity, stem: Path) -> None:
    """Draw CKA between all levels of a backbone; cells without a value stay grey."""
    names = [short_level(level) for level in similarity.levels]
    count = len(names)
    with drawing(COLUMN, COLUMN * 0.88) as figure:
        axes = figure.add_subplot()
        axes.set_facecolor("#EEEEEE")
        lowest = float(np.nanmin(similarity.values, initial=0.0))  # an unbiased estimate may lie a little below 0
        image = axes.imshow(similarity.values, cmap="cividis", vmin=lowest, vmax=1)
        ticks = range(count) if count <= 14 else range(0, count, 3)
        axes.set_xticks(ticks, [names[tick] for tick in ticks], rotation=90 if count > 8 else 0)
        axes.set_yticks(ticks, [names[tick] for tick in ticks])
        no_frame(axes)
        subset = "" if similarity.seed is None else f" (a subset, seed {similarity.seed})"
        axes.set(xlabel="level", title=f"{similarity.kernel} CKA over {similarity.num_images:,} images{subset}")
        figure.colorbar(image, ax=axes, label=f"{similarity.kernel} CKA", shrink=0.85)
        lines = [
            (similarity.levels[i], similarity.levels[j], float(similarity.values[i, j]))
            for i in range(count)
            for j in range(count)
        ]
        save(figure, stem, ("level", "other", "cka"), lines)


def draw_similarity_to_final(similarities: Mapping[str, Similarity], stem: Path) -> None:
    """Draw CKA of every level with the last one over depth, a line for each name (data sets, kernels)."""
    lines = []
    levels = sorted({level for one in similarities.values() for level in one.levels}, key=_depth)
    with drawing(COLUMN, 2.1) as figure:
        axes = figure.add_subplot()
        for number, (name, one) in enumerate(similarities.items()):
            values = one.values[-1]
            axes.plot(
                [levels.index(level) for level in one.levels],
                values,
                color=CYCLE[number % len(CYCLE)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=LINES[number % len(LINES)],
                label=drawn_name(name),
            )
            lines += [
                (name, one.kernel, one.num_images, "" if one.seed is None else one.seed, level, float(value))
                for level, value in zip(one.levels, values, strict=True)
            ]
        step = 1 if len(levels) <= 14 else 3
        axes.set_xticks(range(0, len(levels), step), [short_level(level) for level in levels][::step])
        axes.set(xlabel="level (block; final = after the last norm)", ylabel=f"CKA with {levels[-1]}")
        grid(axes)
        if len(similarities) > 1:
            figure.legend(loc="outside lower center", ncols=3)
        save(figure, stem, ("line", "kernel", "num_images", "seed", "level", "cka"), lines)


def _depth(level: str) -> float:
    number = short_level(level)
    return int(number) if number.isdigit() else np.inf


def draw_train_test(points: Mapping[str, Sequence[tuple[str, float, float]]], stem: Path) -> None:
    """Draw test against training accuracy: a probe far under the diagonal has overfitted.

    Args:
        points: probe -> (case, balanced accuracy on the training images, on the test images), in [0, 1].
        stem: path of the files to write, without a suffix.
    """
    values = [value for cases in points.values() for _, *pair in cases for value in pair if np.isfinite(value)]
    low = 100 * min(values, default=0.0) - 2
    lines = []
    with drawing(COLUMN, 2.5) as figure:
        axes = figure.add_subplot()
        axes.plot([low, 101], [low, 101], color=GREY, linewidth=0.7)
        for number, (name, cases) in enumerate(points.items()):
            train, test = (np.array([100 * case[at] for case in cases]) for at in (1, 2))
            gap = summarize(train - test).mean
            axes.plot(
                train, test, linestyle="", marker=MARKERS[number % len(MARKERS)], color=CYCLE[number % len(CYCLE)],
                markersize=4, markerfacecolor="none", markeredgewidth=0.9, label=f"{name} (gap {gap:.1f})",
            )  # fmt: skip
            lines += [(name, case, 100 * one, 100 * two) for case, one, two in cases]
        axes.set(xlim=(low, 101), ylim=(low, 101))
        axes.set(xlabel="balanced accuracy on training images (%)", ylabel="on test images (%)")
        grid(axes, "both")
        figure.legend(loc="outside lower center", ncols=2)
        save(figure, stem, ("probe", "case", "train_percent", "test_percent"), lines)


def _make(data: ReportData) -> list[Picture] | None:
    """The three figures, for the cases whose stores exist."""
    if not data.options.tokens:
        return None
    from layerbank.cache import MissingRowsError

    splits: Splits = {}
    unknown, missing = [], []
    for case in data.cases:
        train, test = data.split(case, "train"), data.split(case, "test")
        if train is None or test is None:
            unknown.append(data.label(case))
            continue
        try:
            train.open(), test.open()
            splits[case] = train, test
        except MissingRowsError:
            missing.append(data.label(case))
        except LayerbankError as error:
            data.notes.append(f"Nothing of --tokens for {data.label(case)}: {error}")
    if unknown:
        data.notes.append(
            f"Nothing of --tokens for {_few(unknown)}: these results do not name their images, as those of format 1, or the files "
            "beside results.jsonl that name them are gone."
        )
    if missing:
        data.notes.append(
            f"Nothing of --tokens for {_few(missing)}: {data.options.cache_root} lacks tokens of these images. Give the folder of "
            "their stores with --cache, or run layerbank extract again."
        )
    return [*_similarity(data, splits), *_train_test(data, splits), *_few_tokens(data, splits)]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _similarity(data: ReportData, splits: Splits) -> list[Picture]:
    from ...statistics.similarity import SUBSET, levels_of, linear_similarity, rbf_similarity

    by_model: dict[tuple[str, str], dict[str, Similarity]] = {}  # model, kind -> lines
    pictures = []
    unseeded = list({(one.model, one.dataset): one for one in splits}.values())
    for number, case in enumerate(unseeded):
        _progress(data, f"similarity of levels, {case.dataset}", number, len(unseeded))
        try:
            tokens = splits[case][1].open()
            kind = next((kind for kind in KINDS if any(kind == one for _, one in tokens.arrays)), None)
            if kind is None:
                data.notes.append(f"No similarity of levels of {case.dataset}: no probe reads cls or ap tokens.")
                continue
            levels = levels_of(tokens, kind, [level for level, one in tokens.arrays if one == kind])
            linear = linear_similarity(levels, tokens.reading_order)
            gaussian = rbf_similarity(levels, np.arange(len(tokens.targets)), num_images=SUBSET)
        except LayerbankError as error:
            data.notes.append(f"No similarity of levels of {case.dataset}: {error}")
            continue
        lines = by_model.setdefault((case.model, kind), {})
        lines |= {f"{case.dataset}, linear": linear, f"{case.dataset}, rbf": gaussian}
        pictures.append(_draw_similarity(data, case, kind, number, linear))
    to_final = [_draw_to_final(data, *of, lines, number) for number, (of, lines) in enumerate(by_model.items())]
    return to_final + pictures


def _draw_similarity(data: ReportData, case: Case, kind: str, number: int, linear: Similarity) -> Picture:
    return data.draw(
        f"cka-{number}",
        lambda stem: draw_similarity(linear, stem),
        alt=f"Heat map of unbiased linear CKA between all levels of {case.model} on {case.dataset}, {kind} tokens. "
        f"First with last level: {linear.values[0, -1]:.2f}.",
        caption=f"Similarity of the levels of {case.model} on the test images of {case.dataset} ({kind} tokens).",
    )


def _draw_to_final(data: ReportData, model: str, kind: str, lines: dict[str, Similarity], number: int) -> Picture:
    from ...statistics.similarity import SIGMA, SUBSET

    first = "; ".join(f"{name}: first level {one.values[0, -1]:.2f}" for name, one in lines.items())
    return data.draw(
        f"cka-to-final-{number}",
        lambda stem: draw_similarity_to_final(lines, stem),
        alt=f"CKA of every level of {model} with its last, over depth. {first}.",
        caption=(
            f"Similarity of every level of {model} to the last one ({kind} tokens of test images; rbf: sigma {SIGMA:g}, at most "
            f"{SUBSET:,} images, drawn with the seed in the CSV)."
        ),
    )


def _train_test(data: ReportData, splits: Splits) -> list[Picture]:
    from ..saved import SavedHead

    points: dict[str, list[tuple[str, float, float]]] = {}
    for number, (case, (train_split, _)) in enumerate(splits.items()):
        _progress(data, f"training accuracy, {case.dataset}", number, len(splits))
        for probe in [name for name in data.tested[case].hits if name in data.main.probes]:
            try:
                train = accuracies(SavedHead(data.folder(case, probe), train_split).predict()).balanced
            except LayerbankError as error:
                data.notes.append(f"No training accuracy of {probe} on {case.dataset}: {error}")
                continue
            test = data.tested[case].accuracies[probe].balanced
            points.setdefault(probe, []).append((data.label(case), train, test))
    if not points:
        return []
    gaps = {probe: [100 * (train - test) for _, train, test in found] for probe, found in points.items()}
    means = ", ".join(f"{probe} {sum(of_probe) / len(of_probe):.1f}" for probe, of_probe in gaps.items())
    return [
        data.draw(
            "train-test",
            lambda stem: draw_train_test(points, stem),
            alt=f"Balanced accuracy on test images against that on training images. Mean gap in points: {means}.",
            caption="A probe far under the diagonal has overfitted its training images.",
        )
    ]


def _few_tokens(data: ReportData, splits: Splits) -> list[Picture]:
    from ..saved import prune_tokens

    kept: dict[str, list[tuple[int, float]]] = {}
    for number, case in enumerate(splits):
        if "alf" not in data.tested[case].hits:
            continue
        _progress(data, f"alf with few tokens, {case.dataset}", number, len(splits))
        row = data.row[case, "alf"]
        num_tokens = len(row["levels"]) * len(row["kinds"])
        counts = [*(count for count in COUNTS if count < num_tokens), num_tokens]
        try:
            found = prune_tokens(data.folder(case, "alf"), *splits[case], counts)
        except LayerbankError as error:
            data.notes.append(f"No accuracy of alf with few tokens on {case.dataset}: {error}")
            continue
        kept[data.label(case)] = [(len(one.tokens), one.balanced_accuracy) for one in found]
    if not kept:
        return []
    series = pruning_series(kept)
    ends = "; ".join(
        f"{name}: {100 * points[0][1]:.1f} % with {points[0][0]}, {100 * points[-1][1]:.1f} % with all {points[-1][0]}"
        for name, points in kept.items()
    )
    return [
        data.draw(
            "few-tokens",
            lambda stem: draw_series(series, stem),
            alt=f"Balanced accuracy of alf with only the tokens it attends to most. {ends}.",
            caption="alf with only the k tokens that it attends to most on training images, not trained again.",
        )
    ]


def _progress(data: ReportData, what: str, done: int, total: int) -> None:
    data.options.on_event(ReportStep(what=what, done=done, total=total))


TOKENS = ReportFigure(
    section=("tokens", "From the tokens"),
    make=_make,
    title="Similarity of levels (CKA), training against test accuracy, accuracy with few tokens",
    needs="layerbank report RUNS --tokens, with the stores under --cache; it reads all tokens again and takes minutes",
)
