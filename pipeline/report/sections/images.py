"""Hits and misses image by image: what each probe said, how sure it was, and where it looked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError, WorkError
from ...probing.probe_spec import REFERENCE
from ...statistics.examples import DISPUTED, PER_RULE, SURE_MISSES, UNSURE_HITS, Answers, choose_examples
from ...statistics.scores import Case
from ..page.blocks import Block, Card, Cards, Fold, Said, Section, Strip, Words
from ..page.numbers import counted
from ..report_data import NUM_SHOWN, ReportData
from ..thumbnails import SIDE, thumbnails

SEED = 0


def section(report_data: ReportData) -> Section | None:
    """At most 24 images a case, of at most 12 cases."""
    cases = [case for case in report_data.cases if report_data.tested[case].hits]
    if not cases:
        return None
    shown = cases[:NUM_SHOWN]
    blocks: list[Block] = [
        Words(
            texts=[
                f"Of each case at most {3 * PER_RULE} test images, chosen by rule: the misses of which the probe was surest, the "
                f"hits of which it was least sure, and images on which exactly one of it and {REFERENCE} is right, drawn at "
                f"random (seed {SEED}). Copies are at most {SIDE} pixels wide. The strip under an image shows where the probe "
                "looked: a line a kind, a cell a level from shallow to deep, strongest where it looked most."
            ],
            quiet=True,
        )
    ]
    blocks += [Fold(title=report_data.words(case), blocks=_case(report_data, case)) for case in shown]
    if len(cases) > NUM_SHOWN:
        rest = counted(len(cases) - NUM_SHOWN, "case")
        blocks.append(Words(texts=[f"{rest} more: layerbank report RUNS/DATASET/STORE shows one store's."], quiet=True))
    return Section(anchor="images", title="Hits and misses", blocks=blocks)


def _case(report_data: ReportData, case: Case) -> list[Block]:
    tested = report_data.tested[case]
    names = [name for name in tested.hits if name in report_data.main.probes] or list(tested.hits)
    probe = "alf" if "alf" in names else max(names, key=lambda name: tested.accuracies[name].balanced)
    said = {name: tested.answers[name] for name in names}
    reference = said.get(REFERENCE) if probe != REFERENCE else None
    chosen = choose_examples(said[probe], reference, seed=SEED)
    ids = tested.sample_ids
    pictures = _pictures(report_data, case, probe, [str(ids[row]) for rows in chosen.values() for row in rows])
    attention = _attention(report_data, case, probe, ids)
    classes = report_data.class_names(case, len(tested.accuracies[probe].of_class))
    titles = {
        SURE_MISSES: f"Misses of which {probe} was surest",
        UNSURE_HITS: f"Hits of which {probe} was least sure",
        DISPUTED: f"Exactly one of {probe} and {REFERENCE} is right",
    }
    row = report_data.row[case, probe]
    legend = []
    if attention.known:
        kinds, levels = ", ".join(row["kinds"]), row["levels"]
        text = f"Strips: attention of {probe}; lines from above: {kinds}; cells: {levels[0]} to {levels[-1]}."
        legend = [Words(texts=[text], quiet=True)]
    return [
        *legend,
        *(
            Cards(
                title=titles[rule],
                cards=[_card(place, str(ids[place]), said, classes, pictures, attention.get(place)) for place in rows],
            )
            for rule, rows in chosen.items()
            if rule != DISPUTED or reference is not None
        ),
    ]


def _card(
    row: int,
    sample_id: str,
    said: Mapping[str, Answers],
    classes: list[str],
    pictures: Mapping[str, str],
    strip: Strip | None,
) -> Card:
    first = next(iter(said.values()))
    return Card(
        sample_id=sample_id,
        image=pictures.get(sample_id),
        truth=classes[int(first.labels[row])],
        said=[
            Said(
                probe=name,
                answer=classes[int(one.predicted[row])],
                confidence=f"{100 * one.confidence[row]:.0f} %",
                hit=bool(one.hits[row]),
            )
            for name, one in said.items()
        ],
        strip=strip,
    )


def _pictures(report_data: ReportData, case: Case, probe: str, sample_ids: list[str]) -> dict[str, str]:
    if not report_data.options.images:
        return {}
    try:
        return thumbnails(report_data.about(case, probe), sample_ids)
    except (RequestError, WorkError) as error:
        report_data.notes.append(f"No images of {case.dataset}, only their ids: {error}")
        return {}


class _Strips:
    """Row -> strip, from `attention.npz`; nothing where there is none or it is of other images."""

    def __init__(self, mass: NDArray[np.float32], levels: list[str], kinds: list[str]) -> None:
        self._mass, self._levels, self._kinds = mass, levels, kinds

    @property
    def known(self) -> bool:
        return len(self._mass) > 0

    def get(self, row: int) -> Strip | None:
        if not self.known:
            return None
        shares = self._mass[row].T.astype(np.float64)  # [K, L]
        kind, level = divmod(int(shares.argmax()), shares.shape[1])
        most = f"{self._levels[level]} {self._kinds[kind]}"
        return Strip(
            kinds=self._kinds,
            levels=self._levels,
            opacities=np.round(np.maximum(shares / shares.max(), 0.06), 2).tolist(),
            words=f"Attention over {len(self._levels)} levels, most on {most}: {100 * shares.max():.0f} %",
        )


def _attention(report_data: ReportData, case: Case, probe: str, sample_ids: NDArray[np.str_]) -> _Strips:
    row: dict[str, Any] = report_data.row[case, probe]
    path = Path(report_data.folder(case, probe), "attention.npz")
    nothing = _Strips(np.zeros((0, 0, 0), np.float32), [], [])
    if not path.exists():
        return nothing
    try:
        with np.load(path, allow_pickle=False) as saved:
            ids, mass = saved["sample_ids"], saved["mass"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        report_data.notes.append(f"No attention to single images of {case.dataset}: {path} cannot be read: {error}")
        return nothing
    levels, kinds = row.get("levels", []), row.get("kinds", [])
    if mass.shape != (len(sample_ids), len(levels), len(kinds)) or (ids != sample_ids).any():
        report_data.notes.append(f"No attention to single images of {case.dataset}: {path} is of other images.")
        return nothing
    return _Strips(mass, levels, kinds)
