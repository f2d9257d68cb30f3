"""Results as a table for the terminal: what `results.jsonl` holds, in the order asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from probes import HEAD_KINDS

from .results import Row, gains

COLUMNS = ("probe", "chosen setting", "validation", "test", "gain", "parameters", "seconds", "key")
SHORT = {"lr": "lr", "weight_decay": "wd", "dropout": "dropout", "penalty": "penalty", "num_neighbors": "k"}


def results_table(rows: Sequence[Row]) -> list[list[str]]:
    """One line a row: accuracies in percent of balanced accuracy, gain in points over `linear-cls`, seconds of all phases.

    A probe all of whose settings diverged has dashes in place of numbers.
    """
    gain_of = gains(rows)
    table = []
    for row in rows:
        seconds = f"{sum(row['seconds'].values()):.1f}"
        parameters = f"{row['num_parameters']:,}"
        if row["test"] is None:
            table.append([row["probe"], "every setting diverged", "-", "-", "-", parameters, seconds, row["key"][:8]])
            continue
        chosen = row["chosen"]
        setting = ", ".join(f"{SHORT[name]} {value:g}" for name, value in chosen.items() if _matters(name, row))
        gain = f"{gain_of[row['key']]:+.1f}" if row["key"] in gain_of else "-"
        validation, test = (100 * row["validation"], 100 * row["test"]["balanced_accuracy"])
        table.append(
            [row["probe"], setting, f"{validation:.1f}", f"{test:.1f}", gain, parameters, seconds, row["key"][:8]]
        )
    return table


def _matters(name: str, row: Row) -> bool:
    return name != "dropout" or HEAD_KINDS[row["head"]].dropout


def results_title(rows: Sequence[Row], folder: Path) -> str:
    """Which backbone and data set, and where everything lies."""
    return f"{rows[0]['backbone']} on {rows[0]['dataset']}: balanced accuracy in percent; {folder}"
