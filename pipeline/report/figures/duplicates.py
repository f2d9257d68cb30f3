"""Test images that are training images, and the accuracies without them."""

from __future__ import annotations

from ..page.blocks import Block, Fold, Note, table_of_values
from ..page.numbers import percent2, points2
from ..report_data import ReportData, ReportFigure

COLUMNS = dict.fromkeys(("data set", "test images", "also in training", "share in %", "with another label"), str)
WITHOUT = dict.fromkeys(("probe", "model", "data set", "seed", "accuracy", "without them", "difference"), str)
PAIRS = dict.fromkeys(("test image", "training image"), str)


def _make(data: ReportData) -> list[Block]:
    """A table by data set, the accuracies without duplicates, and the pairs of images."""
    found = data.duplicates
    absent = [name for name in dict.fromkeys(case.dataset for case in data.cases) if name not in found]
    if absent:
        data.notes.append(
            f"Test images that are also training images were not looked for in {', '.join(absent)}: these results do not "
            "name their images, as those of format 1, or the files beside results.jsonl that name them are gone."
        )
    if not found:
        return []
    lines, without = [], []
    for name, (one, accuracies) in found.items():
        counts = [f"{count:,}" for count in (one.num_test, len(one.pairs), one.num_relabelled)]
        lines.append((name, *counts[:2], percent2(100 * len(one.pairs) / one.num_test), counts[2]))
        for (case, probe), (whole, rest) in accuracies.items():
            without.append((probe, *map(str, case), percent2(whole), percent2(rest), points2(rest - whole)))
    caption = "Test images that are also training images, byte for byte, by their content hashes"
    note = "The same picture saved twice with another compression is not found; a search for those needs the images."
    blocks: list[Block] = [table_of_values("duplicates-of-splits", caption, COLUMNS, lines), Note(note)]
    if without:
        caption = "Balanced accuracy in percent with and without these images"
        blocks.append(table_of_values("without-duplicates", caption, WITHOUT, without))
    for number, (name, (one, _)) in enumerate(found.items()):
        if one.pairs:
            caption = f"Test images of {name}, and the first training image with the same bytes"
            table = table_of_values(f"pairs-of-{number}", caption, PAIRS, one.pairs)
            blocks.append(Fold(title=f"Which images of {name}", blocks=[table]) if len(one.pairs) > 5 else table)
    return blocks


DUPLICATES = ReportFigure(section=("duplicates", "Images in both splits"), make=_make)
