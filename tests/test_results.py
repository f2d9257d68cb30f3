"""results.jsonl: whole lines, keyed by everything that could change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerbank.probing.results import append_row, gains, key_of, read_rows


def test_rows_come_back_in_the_order_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "results.jsonl"
    assert read_rows(path) == []
    rows = [{"key": "a", "probe": "häuser"}, {"key": "b", "probe": "alf"}]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows


def test_a_line_torn_by_a_crash_is_left_out_and_cut_off_before_the_next_row(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, {"key": "a"})
    with path.open("ab") as file:
        file.write(b'{"key": "b", "pro')
    assert read_rows(path) == [{"key": "a"}]
    append_row(path, {"key": "c"})
    assert path.read_text() == '{"key": "a"}\n{"key": "c"}\n'


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
