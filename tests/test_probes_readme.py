"""probes/README.md describes the package as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from layerbank import probes
from layerbank.probes.protocol import PAPER, QUICK

PACKAGE = Path(probes.__file__).parent
README = (PACKAGE / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["config"] == {"classes": ["a", "b", "c"]}


def test_the_reading_order_names_every_file_of_the_package_and_no_other() -> None:
    order = README[README.index("## Files") : README.index("## Laws")]
    named = set(re.findall(r"\b(\w+\.py)\b", order))
    assert named == {path.name for path in PACKAGE.rglob("*.py")} - {"__init__.py"}


def test_the_quick_protocol_is_the_one_described() -> None:
    assert QUICK.lrs == (1e-1, 1e-2)
    assert QUICK.weight_decays == (1e-4, 1.0)
    assert QUICK.dropouts == (0.0,)
    assert QUICK.min_steps == 500
    unchanged = (
        "epochs",
        "batch_size",
        "validation_fraction",
        "jitter_std",
        "jitter_probability",
        "clip_norm",
    )
    assert all(getattr(QUICK, name) == getattr(PAPER, name) for name in unchanged)
