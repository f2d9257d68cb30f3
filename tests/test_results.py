"""Rows of results: gains over the reference."""

from __future__ import annotations

from typing import Any

from layerbank.probing.rows.results import gains, key_of


def test_any_change_of_a_setting_changes_its_key() -> None:
    setting: dict[str, Any] = {"probe": {"name": "alf"}, "protocol": {"lrs": [0.1], "seed": 0}}
    assert key_of(setting) != key_of({**setting, "protocol": {"lrs": [0.1], "seed": 1}})


def _row(key: str, probe: str, study: str, accuracy: float | None) -> dict[str, Any]:
    test = None if accuracy is None else {"balanced_accuracy": accuracy}
    return {"key": key, "probe": probe, "setting_of_study": study, "test": test}


def test_gains_compare_with_linear_cls_of_the_same_stores_and_protocol_only() -> None:
    rows = [
        _row("a", "linear-cls", "one", 0.5),
        _row("b", "alf", "one", 0.75),
        _row("c", "alf", "two", 0.9),
        _row("d", "attn-last", "one", None),
    ]
    assert gains(rows) == {"a": 0.0, "b": 25.0}
