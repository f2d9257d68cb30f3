"""Where attentive probes look: a line a data set, a cell a level, a panel a kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import RequestError, WorkError
from ...statistics.attention import AttentionMap, mean_map, read_attention, spread_of
from ..figures.heatmaps import draw_attention
from ..page.blocks import Block, DataTable, Fold, Gallery, Picture, Section, Words, csv_text
from ..page.numbers import counted, percent
from ..report_data import ReportData

COLUMNS = ("probe", "model", "data set", "entropy", "80 % in", "late third in %", "most on", "its share in %")
FIRST = 4  # heat maps that are shown at once
MAX_PICTURES = 24  # heat maps on a page; of 11 models with 10 attentive probes all would be 14 MB


def section(report_data: ReportData) -> Section | None:
    """A heat map a probe and model, and the numbers of every map."""
    maps = _maps(report_data)
    if not maps:
        report_data.lack("Attention by level and kind", "train an attentive probe: layerbank probe ... --probe alf")
        return None
    drawable = [
        (number, probe, model, of_dataset)
        for number, ((probe, model), of_dataset) in enumerate(maps.items())
        if len(next(iter(of_dataset.values())).levels) > 1
    ]
    # --figures writes those too that are not placed
    drawn = drawable if report_data.options.png else drawable[:MAX_PICTURES]
    pictures = [_picture(report_data, *one) for one in drawn][:MAX_PICTURES]
    blocks: list[Block] = []
    if pictures:
        blocks.append(Gallery(pictures=pictures[:FIRST]))
    if pictures[FIRST:]:
        blocks.append(Fold(title=f"{len(pictures) - FIRST} more", blocks=[Gallery(pictures=pictures[FIRST:])]))
    if drawable[MAX_PICTURES:]:
        rest = counted(len(drawable) - MAX_PICTURES, "heat map")
        blocks.append(
            Words(texts=[f"{rest} more: layerbank report RUNS --figures FOLDER. The table has all."], quiet=True)
        )
    blocks += [
        _table(maps),
        Words(
            texts=[
                "Head by head: layerbank attention FOLDER --heads, with the folder of such a row; ensembles have no attention."
            ],
            quiet=True,
        ),
    ]
    return Section(anchor="attention", title="Where probes look", blocks=blocks)


def _maps(report_data: ReportData) -> dict[tuple[str, str], dict[str, AttentionMap]]:
    """(probe, model) -> data set -> the map, seeds averaged; alf first."""
    found: dict[tuple[str, str], dict[str, list[AttentionMap]]] = {}
    for (case, probe), row in report_data.row.items():
        folder = report_data.folder(case, probe)
        if row["test"] is None or not Path(folder, "attention.csv").exists():
            continue
        try:
            one = read_attention(folder)
        except (RequestError, WorkError) as error:
            report_data.notes.append(f"No attention map of {probe} on {case.dataset}: {error}")
            continue
        found.setdefault((probe, case.model), {}).setdefault(case.dataset, []).append(one)
    order = sorted(found, key=lambda pair: (pair[0] != "alf", "@" in pair[0]))
    return {pair: {name: mean_map(several) for name, several in found[pair].items()} for pair in order}


def _picture(
    report_data: ReportData, number: int, probe: str, model: str, of_dataset: Mapping[str, AttentionMap]
) -> Picture:
    first = next(iter(of_dataset.values()))
    fitting = {n: m for n, m in of_dataset.items() if (m.levels, m.kinds) == (first.levels, first.kinds)}
    for name in of_dataset.keys() - fitting.keys():
        report_data.notes.append(
            f"The map of {probe} on {name} has other levels or kinds, and is not drawn with the others."
        )
    said = "; ".join(f"{name}: most on {_most(one)[0]} ({100 * _most(one)[1]:.0f} %)" for name, one in fitting.items())
    return report_data.draw(
        f"attention-{number}-{_word(probe)}",
        lambda stem: draw_attention(fitting, stem),
        alt=f"Heat map of the attention of {probe} ({model}) over levels and kinds. {said}.",
        caption=(
            f"Attention of {probe} ({model}), mean over test images and heads; entropy in nats, and the fewest cells with 80 % "
            "of it. final is the last level."
        ),
    )


def _table(maps: Mapping[tuple[str, str], Mapping[str, AttentionMap]]) -> DataTable:
    numbers: list[tuple[object, ...]] = []
    lines = []
    for (probe, model), of_dataset in maps.items():
        for dataset, one in of_dataset.items():
            spread, (place, share) = spread_of(one), _most(one)
            line = (spread.entropy, spread.mass80, 100 * spread.late_third, place, 100 * share)
            numbers.append((probe, model, dataset, *line))
            shown = (percent(line[0], 2), str(line[1]), percent(line[2]), place, percent(line[4]))
            lines.append((probe, model, dataset, *shown))
    return DataTable(
        id="attention-spread",
        caption="How widely attention is spread over levels and kinds: entropy in nats, fewest cells with 80 % of it",
        columns=COLUMNS,
        lines=lines,
        csv=csv_text(COLUMNS, numbers),
    )


def _most(one: AttentionMap) -> tuple[str, float]:
    """The cell that is looked at most, and its share."""
    kind, level = divmod(int(one.shares.argmax()), len(one.levels))
    return f"{one.levels[level]} {one.kinds[kind]}", float(one.shares.max())


def _word(probe: str) -> str:
    """A probe's name as part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "-@" else "-" for letter in probe)
