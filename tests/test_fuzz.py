"""Whatever is in a file, the answer is one of our errors, within 5 s and 512 MB above what the process needs anyway."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_runs import with_array
from kills import run_program
from messages import raises
from parsed_files import JOBS, PARSED, claimed_array
from photos import TINY_MODEL
from token_stores import make_model

from layerbank.cache.writing.locking import LockOwner, read_owner
from layerbank.data.saved_arrays import UnreadableArrays, load_arrays
from layerbank.jobs.recipe import check_study, open_recipe
from layerbank.models.trust import read_trust_file
from layerbank.models.weights_file import read_state_dict
from layerbank.probes import LinearProbe, load_probe, save_probe
from layerbank.probing.attention import read_attention
from layerbank.probing.predict import SavedProbe
from layerbank.probing.protocols import open_protocol

PROGRAM = """
import json
from pathlib import Path
import torch
from fuzzing import read_changed
from parsed_files import PARSED
torch.set_num_threads(1)
_, name, folder, seed, count = sys.argv
print(json.dumps(read_changed(name, PARSED[name], Path(folder), int(seed), int(count))))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PARSED)
def test_a_file_with_anything_in_it_is_read_or_refused(name: str, tmp_path: Path) -> None:
    found = run_program(PROGRAM, name, tmp_path, 0, 100)
    assert found["failures"] == []
    assert found["refused"] + found["read"] >= 100


DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [f"a = {DEEP}", f"a = {'9' * 5000}", "a = \udcff"], ids=["deep", "digits", "bytes"])
def test_toml_that_python_refuses_in_other_ways_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with raises("jobs.recipe_not_toml"):
        open_recipe(str(file))
    with raises("probing.protocol_not_toml"):
        open_protocol(str(file), seed=0)
    with raises("models.bad_trust_file"):
        read_trust_file(file)


def test_json_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    for name in ("probe.json", "probe.safetensors", "attention.json"):
        (tmp_path / name).write_text(DEEP)
    with raises("probes.damaged_description"):
        load_probe(tmp_path)
    with raises("probing.unreadable_attention_map"):
        read_attention(tmp_path)


def test_numbers_that_no_field_can_hold_and_long_lists_are_refused_at_once() -> None:
    with raises("jobs.wrong_job_value"):
        replace(JOBS["probe"], view_scale=10**400)
    job = replace(JOBS["study"], probes=("linear-cls", "alf", "linear-cls"), seeds=range(20_000))
    with raises("jobs.recipe_invalid", num_problems=1):
        check_study(job)


def test_an_array_that_claims_more_than_there_is_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    content = (tmp_path / "a.npz").read_bytes()
    for shape in ((10**15,), (2**62, 2**62), (-1,)):
        (tmp_path / "a.npz").write_bytes(with_array(content, "a", claimed_array(shape)))
        with pytest.raises(UnreadableArrays):
            load_arrays(tmp_path / "a.npz", ["a"])


@pytest.mark.parametrize("content", [b"\x80\x02", b"\x80\x02h\xd8.", b"\x80\x02X\xff\xff\xff\x7f", b"PK\x03\x04" * 9])
def test_a_checkpoint_on_which_the_unpickler_fails_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with raises("models.unreadable_weights"):
        read_state_dict(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "changes",
    [{"probe": 3}, {"probe": {"levels": 1}}, {"task": True}, {"model_spec": 3}, {"class_names": None}],
    ids=str,
)
def test_a_description_of_a_probe_with_other_values_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    probe = {"name": "linear-cls", "head": "linear", "levels": ["final"], "kinds": ["cls"]}
    config = {"model": {"model": TINY_MODEL}, "probe": probe, "class_names": ["a", "b", "c"], "task": None}
    save_probe(tmp_path, LinearProbe(8, 3), config | {"model_spec": make_model().to_dict()} | changes)
    with raises("probing.damaged_description"):
        SavedProbe(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"pid": "x"}, {"pid": -1}, {"blocks": ["x"]}, {"since": 10**400}, {"host": 1}], ids=str
)
def test_a_lock_file_with_other_values_names_no_owner(changes: dict[str, Any], tmp_path: Path) -> None:
    owner = asdict(LockOwner.this_process())
    (tmp_path / "a.lock").write_text(json.dumps(owner | changes))
    assert read_owner(tmp_path / "a.lock") is None
    (tmp_path / "a.lock").write_text(DEEP)
    assert read_owner(tmp_path / "a.lock") is None
