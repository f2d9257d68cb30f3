"""Every setting: the protocol, the setting chosen for each result, the stores it read, the versions it ran with."""

from __future__ import annotations

import json

from ...probing.rows.results import Row
from ...statistics.scores import Case, protocol_of_rows
from ..page.blocks import Block, Fold, Pairs, table_of_values
from ..page.numbers import percent
from ..report_data import ReportData, ReportFigure


def _make(data: ReportData) -> list[Block]:
    """The protocol, the chosen settings, models and versions, each folded."""
    protocol = [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False))
        for name, value in protocol_of_rows(data.rows).items()
    ]
    lines = [_line(case, row) for (case, _), row in data.row.items()]
    caption = "The setting that was chosen on validation, of how many; levels, kinds; fingerprints of the stores"
    table = table_of_values("settings", caption, dict.fromkeys(lines[0], str), [list(line.values()) for line in lines])
    configs = {case: data.config_of_case(case) for case in data.cases}
    versions = {f"{name} {version}" for one in configs.values() for name, version in one.get("versions", {}).items()}
    models = {case.model: configs[case].get("model", {}) for case in data.cases}
    pairs = [(name, json.dumps(about, ensure_ascii=False, allow_nan=False)) for name, about in models.items() if about]
    blocks: list[Block] = [
        Fold(title="The protocol", blocks=[Pairs(protocol)]),
        Fold(title="What was chosen", blocks=[table]),
    ]
    if versions or pairs:
        pairs.insert(0, ("versions of the trainings", ", ".join(sorted(versions))))
        blocks.append(Fold(title="Models and versions", blocks=[Pairs(pairs)]))
    return blocks


def _line(case: Case, row: Row) -> dict[str, str]:
    """Heading -> cell."""
    chosen, levels, settings = row.get("chosen") or {}, row.get("levels", []), row.get("settings", [])
    numbers = {name: chosen.get(name) for name in ("lr", "weight_decay", "dropout")}
    several = f"{levels[0]} to {levels[-1]}, {len(levels)}" if len(levels) > 2 else ", ".join(levels)
    return {
        "probe": row["probe"],
        "model": case.model,
        "data set": case.dataset,
        "seed": str(case.seed),
        **{name.replace("_", " "): "-" if value is None else f"{value:g}" for name, value in numbers.items()},
        "validation": percent(100 * row["validation"]) if row.get("validation") is not None else "-",
        "settings": str(len(settings)),
        "diverged": str(sum(one["validation"] is None for one in settings)),
        "heads": str(row.get("num_heads") or "-"),
        "levels": several or "-",
        "kinds": ", ".join(row.get("kinds", [])) or "-",
        "compute": row.get("compute") or "-",
        "train store": row.get("train_fingerprint", "-")[:8],
        "test store": row.get("test_fingerprint", "-")[:8],
    }


SETTINGS = ReportFigure(section=("settings", "Every setting"), make=_make)
