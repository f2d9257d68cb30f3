"""Hits and misses image by image: the answer of each probe, its confidence, its attention, and a small copy of the image.

Copies are made from the data source that the probe was tested on, if it still exists. The content hash of each image must be that
of the tested one, so no image is shown under the id of another.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.pixels import recorded_rule
from ...data.saved_arrays import UnreadableArrays, load_arrays
from ...data.sources import BadImage, open_source
from ...errors import RequestError, WorkError
from ...probing.probe_spec import REFERENCE
from ...statistics.attention import AttentionMap
from ...statistics.scores import Case
from ...statistics.tested import CONFIDENT_MISSES, DISPUTED, PER_RULE, UNSURE_HITS, choose_examples
from ..page.blocks import Answer, AttentionStrip, Block, Card, Cards, Fold, Note, data_uri
from ..report_data import NUM_SHOWN, ReportData, ReportFigure

if TYPE_CHECKING:
    from ...data.splits.split_record import SplitRecord

SIDE = 96  # pixels at most
QUALITY = 80  # of JPEG: 1 to 4 KB an image
SEED = 0
RULES = (
    f"Of each case at most {3 * PER_RULE} test images, chosen by rule: the misses of which the probe was surest, the "
    f"hits of which it was least sure, and images on which exactly one of it and {REFERENCE} is right, drawn at "
    f"random (seed {SEED}). Copies are at most {SIDE} pixels wide. The strip under an image is the attention of the probe: "
    "a line for each kind, a cell for each level from shallow to deep, darkest at the largest share."
)


def _make(data: ReportData) -> list[Block]:
    """At most 24 images for each case, and at most 12 cases."""
    cases, more = data.shown_cases(NUM_SHOWN)
    folds = [Fold(title=data.label(case), blocks=_case(data, case)) for case in cases]
    return [Note(RULES), *folds, *more] if cases else []


def _case(data: ReportData, case: Case) -> list[Block]:
    tested = data.tested[case]
    names = [name for name in tested.hits if name in data.main.probes] or list(tested.hits)
    probe = "alf" if "alf" in names else max(names, key=lambda name: tested.accuracies[name].balanced)
    answers = {name: tested.answers[name] for name in names}
    reference = answers.get(REFERENCE) if probe != REFERENCE else None
    chosen = choose_examples(answers[probe], reference, seed=SEED)
    ids = tested.sample_ids
    rows = [row for of_rule in chosen.values() for row in of_rule]
    copies: dict[str, str] = {}
    if data.options.images:
        try:
            copies = thumbnails(
                data.config(case, probe), data.record(case, "test", probe), [str(ids[row]) for row in rows]
            )
        except (RequestError, WorkError) as error:
            data.notes.append(f"No images of {case.dataset}, only their ids: {error}")
    attention = _attention(data, case, probe, rows)
    classes = data.class_names(case, len(tested.accuracies[probe].of_class))
    titles = {
        CONFIDENT_MISSES: f"Misses of which {probe} was surest",
        UNSURE_HITS: f"Hits of which {probe} was least sure",
        DISPUTED: f"Exactly one of {probe} and {REFERENCE} is right",
    }

    def card(row: int) -> Card:
        of_row = [
            Answer(
                probe=name,
                answer=classes[int(one.predicted[row])],
                confidence=f"{100 * one.confidence[row]:.0f} %",
                hit=bool(one.hits[row]),
            )
            for name, one in answers.items()
        ]
        return Card(
            sample_id=str(ids[row]),
            image=copies.get(str(ids[row])),
            truth=classes[int(tested.labels[row])],
            answers=of_row,
            strip=_strip(attention[row]) if attention else None,
        )

    blocks: list[Block] = []
    if attention:
        kinds, levels = data.row[case, probe]["kinds"], data.row[case, probe]["levels"]
        lines = f"lines from above: {', '.join(kinds)}; cells: {levels[0]} to {levels[-1]}."
        blocks.append(Note(f"Strips: attention of {probe}; {lines}"))
    for rule, of_rule in chosen.items():
        if rule != DISPUTED or reference is not None:
            blocks.append(Cards(title=titles[rule], cards=[card(row) for row in of_rule]))
    return blocks


def thumbnails(config: dict[str, Any], test: SplitRecord | None, sample_ids: Iterable[str]) -> dict[str, str]:
    """Sample id -> data URI of a JPEG of at most 96 x 96; ids whose image cannot be decoded are left out.

    Args:
        config: of probe.json, with `data`.
        test: the test images that the probe was tested on.
        sample_ids: images to show.

    Raises:
        LayerbankError: the data do not exist any more, or one of these images is another one now.
    """
    if "data" not in config or test is None:
        raise WorkError("report.data_not_recorded")
    uri = config["data"]
    try:
        source = open_source(uri, test.split, pixels=recorded_rule(config))
    except (OSError, ValueError, TypeError) as error:  # a name that no file can have, a damaged rule
        raise WorkError("report.data_unreachable", uri=uri, reason=error) from error
    rows = {id: row for row, id in enumerate(source.ids)}
    hashes = dict(zip(test.ids, test.images.hashes.tolist(), strict=True))
    found = {}
    for id in sample_ids:
        if id not in rows:
            raise WorkError("report.data_changed", uri=uri, id=id)
        try:
            image, content_hash = source.load(rows[id])
        except BadImage:
            continue
        if content_hash != hashes.get(id):
            raise WorkError("report.data_changed", uri=uri, id=id)
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, format="JPEG", quality=QUALITY)
        found[id] = data_uri(content.getvalue(), "image/jpeg")
    return found


def _strip(one: AttentionMap) -> AttentionStrip:
    cell, share = one.largest
    return AttentionStrip(
        opacities=np.round(np.maximum(one.shares / one.shares.max(), 0.06), 2).tolist(),
        alt=f"Attention over {len(one.levels)} levels, most on {cell}: {100 * share:.0f} %",
    )


def _attention(data: ReportData, case: Case, probe: str, rows: list[int]) -> dict[int, AttentionMap]:
    """The attention maps of some images, by `attention.npz`; empty without that file, or if it is of other images."""
    sample_ids = data.tested[case].sample_ids
    path = Path(data.folder(case, probe), "attention.npz")
    if not path.is_file():
        return {}
    try:
        ids, mass = load_arrays(path, ("sample_ids", "mass"))  # [N], [N, L, K]
    except UnreadableArrays as error:
        data.notes.append(f"No attention to single images of {case.dataset}: {path} cannot be read: {error}")
        return {}
    levels, kinds = (tuple(data.row[case, probe].get(name, [])) for name in ("levels", "kinds"))
    of_images = ids.dtype.kind == "U" and np.array_equal(ids, sample_ids)
    if not of_images or mass.shape != (len(sample_ids), len(levels), len(kinds)):
        data.notes.append(f"No attention to single images of {case.dataset}: {path} is of other images.")
        return {}
    if mass.dtype.kind != "f" or not (np.isfinite(mass).all() and (mass >= 0).all() and mass.any((1, 2)).all()):
        data.notes.append(f"No attention to single images of {case.dataset}: {path} holds no shares of attention.")
        return {}
    return {row: AttentionMap(levels=levels, kinds=kinds, shares=mass[row].T.astype(np.float64)) for row in rows}


IMAGES = ReportFigure(section=("images", "Hits and misses"), make=_make)
