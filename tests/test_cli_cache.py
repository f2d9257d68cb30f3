"""`layerbank cache`: stores listed, verified, mended, exported; and what a killed extraction leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import MODEL, run, start
from messages import refuses, shows
from photos import TINY_MODEL, write_photos
from stores import tree

from layerbank.cache import TokenStore
from layerbank.cache.header import read_header, write_header


def extract(photos: Path, root: Path, *more: str) -> list[str]:
    return ["extract", *MODEL, "--data", f"folder:{photos}", "--split", "train", "--cache", str(root), *more]


@pytest.fixture(scope="module")
def sound(many_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("caches")
    result = run(*extract(many_photos, root))
    assert result.exit_code == 0, result.output
    (store,) = root.rglob("*.zarr")
    return store


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    copy = tmp_path / sound.relative_to(sound.parents[1])
    shutil.copytree(sound, copy)
    return copy


def test_ls_shows_each_store_with_its_state_rows_kinds_and_size(store: Path) -> None:
    result = run("cache", "ls", "--cache", store.parents[1])
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()[1:]
    for word in (store.name, "complete", "600", "7", "cls", "ap", "float16", "MB"):
        assert word in line
    assert json.loads(run("cache", "ls", "--cache", store.parents[1], "--json").stdout)[0]["state"] == "complete"


def test_ls_of_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert run("cache", "ls", "--cache", tmp_path).stdout == f"no stores under {tmp_path}\n"


def test_info_says_what_a_store_holds_and_where_it_comes_from(store: Path, many_photos: Path) -> None:
    text = run("cache", "info", store).stdout
    for word in (
        f"spec.model.name: {TINY_MODEL}",
        "spec.model.compute_dtype: float32",
        f"attributes.request.data: folder:{many_photos}",
        "levels: block.0, block.1",
        "versions.zarr: ",
        "fingerprint: ",
    ):
        assert word in text, text
    assert json.loads(run("cache", "info", store, "--json").stdout)["spec"]["num_rows"] == 600


def test_a_missing_store_is_a_wrong_request(tmp_path: Path) -> None:
    for command in ("info", "verify", "repair"):
        result = run("cache", command, tmp_path / "no.zarr")
        assert result.exit_code == 2, result.output
        assert "no.zarr" in result.stderr
        assert "Traceback" not in result.output


def test_verify_goes_on_after_a_store_that_cannot_be_read(store: Path, tmp_path: Path) -> None:
    (text := tmp_path / "text.zarr").mkdir()
    (text / "zarr.json").write_text("{}")
    missing = tmp_path / "missing.zarr"
    result = run("cache", "verify", missing, text, store)
    assert result.exit_code == 1
    assert (shows(result.output, "cache.store_missing"), shows(result.output, "cache.other_group")) == (True, True)
    assert f"{store}: sound" in result.output
    result = run("cache", "verify", missing, store, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [one["file"] for one in report[str(missing)]] == ["."]
    assert report[str(store)] == []
    refuses(run("cache", "verify", missing), "cache.store_missing")


def test_names_that_are_not_utf_8_are_shown_with_their_bytes(store: Path) -> None:
    """Python's own rule for standard output depends on the system; some refuse such names."""
    name = os.fsdecode(b"caf\xe9.png")
    (store / name).write_text("")
    for environment in ({"PYTHONIOENCODING": "utf-8:strict"}, {"PYTHONIOENCODING": "ascii:strict"}):
        for more in ([], ["--json"]):
            process = start("cache", "verify", store, *more, **environment)
            shown, errors = process.communicate()
            assert (process.returncode, errors) == (1, "")
            assert r"caf\udce9.png" in shown


def test_verify_of_a_sound_store_ends_with_0(store: Path) -> None:
    result = run("cache", "verify", store)
    assert (result.exit_code, result.stdout) == (0, f"{store}: sound\n")


def damage_chunk(store: Path, array: str) -> Path:
    chunk = store / array / "c.0.0"
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 1
    chunk.write_bytes(content)
    return chunk


def test_one_flipped_bit_is_named_refused_and_mended_by_computing_its_rows_again(store: Path, sound: Path) -> None:
    damage_chunk(store, "tokens/norm2/block.5/ap")
    verified = run("cache", "verify", store)
    assert verified.exit_code == 1
    assert "tokens/norm2/block.5/ap/c.0.0 (rows 0 to " in verified.stdout
    assert f"layerbank cache repair {store}" in verified.stdout
    (one,) = json.loads(run("cache", "verify", "--json", store).stdout)[str(store)]
    assert (one["level"], one["kind"], one["problem"]) == ("block.5", "ap", "altered")
    repaired = run("cache", "repair", store, "--workers", 0)
    assert repaired.exit_code == 0, repaired.output
    rows = one["rows"][1] - one["rows"][0]
    assert f"extract: {rows} of 600 images" in repaired.stderr
    assert "1 arrays" in repaired.stderr
    assert tree(store) == tree(sound)


def test_probing_a_damaged_store_is_refused_with_the_command_that_mends_it(many_photos: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(many_photos, tmp_path / "photos")
    write_photos(tmp_path / "more", {"train": 201})
    shutil.move(tmp_path / "more" / "train", photos / "test")
    arguments = [*extract(photos, tmp_path / "caches")[1:], "--split", "test"]
    assert run("extract", *arguments).exit_code == 0
    (store,) = (tmp_path / "caches").rglob("photos-train-*.zarr")
    damage_chunk(store, "tokens/final/cls")
    options = [argument for argument in arguments if argument not in ("--split", "train", "test")]
    result = run("probe", *options, "--runs", tmp_path / "runs", "--probe", "linear-cls", "--protocol", "quick")
    assert result.exit_code == 1
    assert "tokens/final/cls" in result.stderr
    assert f"layerbank cache repair {store}" in result.stderr


def test_repair_refuses_data_without_the_images_of_damaged_rows(many_photos: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(many_photos, tmp_path / "photos")
    assert run(*extract(photos, tmp_path / "caches")).exit_code == 0
    (store,) = (tmp_path / "caches").rglob("*.zarr")
    shutil.copy(photos / "train" / "red" / "000.png", photos / "train" / "red" / "zz.png")
    assert run("cache", "repair", store, "--workers", 0).exit_code == 0  # an image more makes no difference
    for file in (photos / "train" / "red").iterdir():
        file.unlink()
    damage_chunk(store, "tokens/norm2/block.5/ap")
    error = refuses(run("cache", "repair", store, "--workers", 0), "extraction.images_gone", store=store, split="train")
    assert 0 < int(error.values["count"]) <= 200
    assert "Nothing was dropped" in error.todo


def test_repair_refuses_a_model_that_is_no_longer_the_same(store: Path) -> None:
    header = read_header(store)
    request: Any = header.attributes["request"]
    other = {**request, "model": {**request["model"], "seed": 7}}  # as if a checkpoint had been replaced
    write_header(store, replace(header, attributes={**header.attributes, "request": other}))
    error = refuses(run("cache", "repair", store), "cache.other_identity_to_repair", store=store)
    assert "weights" in error.values["differences"]
    assert "nothing was dropped" in error.todo


def test_export_and_import_give_the_same_store_back(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "store.h5"
    assert run("cache", "export", store, file).exit_code == 0
    again = run("cache", "import", file, "--cache", tmp_path / "elsewhere")
    assert again.exit_code == 0, again.output
    assert tree(Path(again.stdout.strip())) == tree(store)
    refuses(run("cache", "export", store, file), "cache.path_taken", path=file)


def layerbank(*arguments: str) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("layerbank")), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def journal_lines(root: Path) -> int:
    try:
        return sum(path.read_text().count("\n") for path in root.rglob("*.jsonl"))
    except FileNotFoundError:  # the store was just given its name
        return 0


def test_a_killed_extraction_goes_on_where_it_was_and_leaves_the_same_bytes(
    many_photos: Path, sound: Path, tmp_path: Path
) -> None:
    process = layerbank(*extract(many_photos, tmp_path))
    deadline = time.monotonic() + 120
    while journal_lines(tmp_path) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (store,) = tmp_path.rglob("*.zarr")
    assert "writing" in run("cache", "ls", "--cache", tmp_path).stdout
    listed = run("cache", "gc", "--delete", "--cache", tmp_path).stdout
    assert f"kept: {store}" in listed
    assert "unfinished" in listed
    again = run(*extract(many_photos, tmp_path))
    assert again.exit_code == 0, again.output
    started = re.search(r"extract: (\d+) of ", again.stderr)
    assert started is not None
    assert 0 < int(started[1]) < 600
    assert tree(store) == tree(sound)
    assert "nothing to delete" in run("cache", "gc", "--cache", tmp_path).stdout


def test_a_store_whose_next_shard_is_still_in_the_queue_is_kept_and_what_gc_names_finishes_it(
    many_photos: Path, sound: Path, tmp_path: Path
) -> None:
    assert run(*extract(many_photos, tmp_path), "--shard", "1/2").exit_code == 0
    (store,) = tmp_path.rglob("*.zarr")
    told = json.loads(run("cache", "gc", "--cache", tmp_path, "--delete", "--json").stdout)
    assert told["garbage"] == []
    assert [(one["path"], one["num_blocks"], one["num_blocks_done"]) for one in told["kept"]] == [(str(store), 2, 1)]
    said = run("cache", "gc", "--cache", tmp_path, "--unfinished", "1h", "--delete").stdout
    assert said.splitlines() == [
        "0 B freed",
        f"kept: {store} ({said.split('(')[1].split(')')[0]}): unfinished, 1 of 2 blocks are done, last written 0 min ago",
        f"  to finish it: the same `layerbank extract` again, or: layerbank cache repair {store}",
        "delete those too with --unfinished AGE, such as 7d",
    ]
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert run("cache", "repair", store, "--workers", "0").exit_code == 0
    assert tree(store) == tree(sound)
    gone = run("cache", "gc", "--cache", tmp_path / "copy", "--unfinished", "0d", "--delete").stdout
    assert "never finished (1 of 2 row blocks)" in gone
    assert list((tmp_path / "copy").rglob("*.zarr")) == []


@pytest.mark.parametrize("age", ["7", "a week", "-1d"])
def test_an_age_that_is_none_is_refused(age: str, tmp_path: Path) -> None:
    refused = run("cache", "gc", "--cache", tmp_path, f"--unfinished={age}")
    assert refused.exit_code == 2
    assert "days, hours or minutes, such as 7d, 12h or 30min" in refused.stderr


def test_a_store_begun_with_another_batch_size_keeps_it(many_photos: Path, sound: Path, tmp_path: Path) -> None:
    run(*extract(many_photos, tmp_path, "--kinds", "cls"))
    again = run(*extract(many_photos, tmp_path, "--batch-size", "50"))
    assert "batches of 16" in again.stderr
    (store,) = tmp_path.rglob("*.zarr")
    assert tree(store) == tree(sound)
    assert TokenStore.open(store).batch_size == 16
