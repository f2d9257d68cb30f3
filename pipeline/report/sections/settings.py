"""Every setting: the protocol, what was chosen for each result, which stores it read, what ran it."""

from __future__ import annotations

import json

from ..page.blocks import DataTable, Fold, Pairs, Section
from ..page.numbers import percent
from ..report_data import ReportData

COLUMNS = (
    "probe",
    "model",
    "data set",
    "seed",
    "lr",
    "weight decay",
    "dropout",
    "validation",
    "settings",
    "diverged",
    "heads",
    "levels",
    "kinds",
    "compute",
    "train store",
    "test store",
)


def section(report_data: ReportData) -> Section:
    """The protocol in the open, the rest folded."""
    protocol = {name: value for name, value in report_data.rows[0]["protocol"].items() if name != "seed"}
    shown = [(name, json.dumps(value, ensure_ascii=False).strip('"')) for name, value in protocol.items()]
    table = DataTable(
        id="settings",
        caption="The setting that was chosen on validation, of how many; levels, kinds; fingerprints of the stores",
        columns=COLUMNS,
        lines=_lines(report_data),
    )
    made_by = sorted(
        {
            f"{name} {version}"
            for case in report_data.cases
            for name, version in report_data.about_case(case).get("versions", {}).items()
        }
    )
    models = [
        (case.model, json.dumps(about, ensure_ascii=False))
        for case in {case.model: case for case in report_data.cases}.values()
        if (about := report_data.about_case(case).get("model"))
    ]
    blocks = [Fold(title="The protocol", blocks=[Pairs(pairs=shown)]), Fold(title="What was chosen", blocks=[table])]
    if made_by or models:
        pairs = [("versions of the trainings", ", ".join(made_by)), *models]
        blocks.append(Fold(title="Models and versions", blocks=[Pairs(pairs=pairs)]))
    return Section(anchor="settings", title="Every setting", blocks=blocks)


def _lines(report_data: ReportData) -> list[list[str]]:
    lines = []
    for (case, probe), row in report_data.row.items():
        chosen, levels = row.get("chosen") or {}, row.get("levels", [])
        several = f"{levels[0]} to {levels[-1]}, {len(levels)}" if len(levels) > 2 else ", ".join(levels)
        lines.append(
            [
                probe,
                case.model,
                case.dataset,
                str(case.seed),
                *(
                    f"{chosen[name]:g}" if chosen.get(name) is not None else "-"
                    for name in ("lr", "weight_decay", "dropout")
                ),
                percent(100 * row["validation"]) if row.get("validation") is not None else "-",
                str(len(row.get("settings", []))),
                str(sum(one["validation"] is None for one in row.get("settings", []))),
                str(row.get("num_heads") or "-"),
                several or "-",
                ", ".join(row.get("kinds", [])) or "-",
                row.get("compute") or "-",
                row.get("train_fingerprint", "-")[:8],
                row.get("test_fingerprint", "-")[:8],
            ]
        )
    return lines
