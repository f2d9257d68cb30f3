"""Test images that are training images, and the accuracies without them."""

from __future__ import annotations

from ...statistics.scores import Case
from ..page.blocks import Block, DataTable, Fold, Section, Words
from ..page.numbers import percent, points
from ..report_data import ReportData

COLUMNS = ("data set", "test images", "also in training", "share in %", "with another label")
WITHOUT = ("probe", "model", "data set", "seed", "accuracy", "without them", "difference")


def section(report_data: ReportData) -> Section | None:
    """What the content hashes of the stores say."""
    datasets = dict.fromkeys(case.dataset for case in report_data.cases)
    absent = [name for name in datasets if name not in report_data.repeated]
    if absent:
        report_data.notes.append(
            f"Test images that are also training images were not looked for in {', '.join(absent)}: no stores of these results "
            f"under {report_data.options.cache_root}. Give their folder with --cache."
        )
    if not report_data.repeated:
        return None
    lines = [
        (
            name,
            f"{one.duplicates.num_test:,}",
            f"{len(one.duplicates.pairs):,}",
            percent(100 * len(one.duplicates.pairs) / one.duplicates.num_test, 2),
            f"{one.duplicates.num_relabelled:,}",
        )
        for name, one in report_data.repeated.items()
    ]
    blocks: list[Block] = [
        DataTable(
            id="duplicates-of-splits",
            caption="Test images that are also training images, byte for byte, by the content hashes of the stores",
            columns=COLUMNS,
            lines=lines,
        ),
        Words(
            texts=[
                "The same picture saved twice with another compression is not found; a search for those needs the images."
            ],
            quiet=True,
        ),
    ]
    without = [
        (probe, *_of(case), *pair)
        for one in report_data.repeated.values()
        for (case, probe), pair in one.without.items()
    ]
    if without:
        blocks.append(
            DataTable(
                id="without-duplicates",
                caption="Balanced accuracy in percent with and without these images",
                columns=WITHOUT,
                lines=[
                    (*map(str, line[:4]), percent(line[4], 2), percent(line[5], 2), points(line[5] - line[4], 2))
                    for line in without
                ],
            )
        )
    for name, one in report_data.repeated.items():
        if pairs := one.duplicates.pairs:
            table = DataTable(
                id=f"pairs-of-{list(report_data.repeated).index(name)}",
                caption=f"Test images of {name}, and the first training image with the same bytes",
                columns=("test image", "training image"),
                lines=pairs,
            )
            blocks.append(Fold(title=f"Which images of {name}", blocks=[table]) if len(pairs) > 5 else table)
    return Section(anchor="duplicates", title="Images in both splits", blocks=blocks)


def _of(case: Case) -> tuple[str, str, int]:
    return case.model, case.dataset, case.seed
