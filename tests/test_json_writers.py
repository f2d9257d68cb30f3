"""No number that JSON does not have is written as JSON, and no result without a number is one."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from messages import raises

from layerbank.console import event_line, print_json
from layerbank.events import ProbeProgress
from layerbank.probes import ArraySource, DataError
from layerbank.probes.evaluate import check_test, measure
from layerbank.probes.tasks import as_task
from layerbank.probing.rows.results import canonical_json

ROOT = Path(__file__).parent.parent
CHECKSUM_OF_FORMAT_1 = "cache/format1.py"  # writes nothing: the bytes that an old version wrote are made again


def test_every_writer_of_json_refuses_nan_and_infinity() -> None:
    calls = [
        (path.relative_to(ROOT).as_posix(), node)
        for folder in ("cache", "probes", "pipeline")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump")
    ]
    assert len(calls) > 15
    lenient = {
        path
        for path, call in calls
        if not any(word.arg == "allow_nan" and ast.unparse(word.value) == "False" for word in call.keywords)
    }
    assert lenient == {CHECKSUM_OF_FORMAT_1}


def test_answers_and_events_have_null_for_what_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    nan, inf = float("nan"), float("inf")
    print_json({"a": [nan, 1.5, (inf,)], "b": {"c": -inf}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, [None]], "b": {"c": None}}
    event = ProbeProgress(
        probes=("alf",), phase="select", step=1, num_steps=2, num_probes=3, probe_steps_per_s=inf, best=nan
    )
    written = json.loads(event_line(event))
    assert (written["probe_steps_per_s"], written["best"]) == (None, None)
    for value in (nan, inf):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": [value]})


def test_scores_that_are_not_finite_and_tests_without_images_are_errors() -> None:
    logits = torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    with raises("probes.scores_not_finite", DataError, num_broken=2, num_images=3):
        measure(as_task(2), logits, torch.zeros(3, dtype=torch.int64))
    with raises("probes.no_test_images", DataError):
        check_test(*(ArraySource(torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64), 2) for n in (3, 0)))
