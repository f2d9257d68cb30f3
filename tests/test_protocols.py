"""Training protocols by name or from a TOML file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from messages import raises

from layerbank.errors import RequestError
from layerbank.probes import PAPER, QUICK
from layerbank.probing.protocols import open_protocol


def test_a_file_changes_fields_of_the_paper_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("lrs = [0.01, 0.001]\nmin_steps = 5\n")
    assert open_protocol(str(tmp_path / "mine.toml"), seed=3) == replace(PAPER, lrs=(0.01, 0.001), min_steps=5, seed=3)
    assert (open_protocol("paper", seed=1), open_protocol("quick", seed=1)) == (
        replace(PAPER, seed=1),
        replace(QUICK, seed=1),
    )


def test_a_protocol_that_does_not_exist_is_refused() -> None:
    with raises("probing.unknown_protocol", RequestError, name="papper"):
        open_protocol("papper", seed=0)


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("lrs = [", "probing.protocol_not_toml", {}),
        ("min_step = 1", "probing.unknown_protocol_key", {"key": "min_step", "advice": "Did you mean 'min_steps'?"}),
        ("seed = 3", "probing.protocol_with_seed", {}),
        ("lrs = [-1.0]", "probing.invalid_protocol", {}),
        ("lrs = 'many'", "probing.protocol_types", {}),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path: Path, text: str, key: str, values: dict[str, object]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with raises(key, RequestError, path=path, **values):
        open_protocol(str(path), seed=0)
