"""The command line: what it answers, how it refuses, and how fast."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from commands import MODEL, run, run_as_typed
from messages import refuses
from photos import TINY_MODEL

from layerbank.errors import LayerbankError
from layerbank.models.request import choose_precision, choose_workers
from layerbank.probing.probe_spec import DEMO_PROBES

FAST = "epochs = 2\nmin_steps = 10\nlrs = [0.01]\nweight_decays = [1e-4]\ndropouts = [0.0]\n"


@pytest.fixture(scope="module")
def place(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of `layerbank probe` from nothing: its folders, its arguments, its output."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "fast.toml").write_text(FAST)
    arguments = [
        *MODEL,
        *("--data", f"folder:{photos}", "--cache", str(folder / "caches"), "--runs", str(folder / "runs")),
        *("--protocol", str(folder / "fast.toml"), "--probe", "linear-cls,alf"),
    ]
    return {"folder": folder, "arguments": arguments, "result": run("probe", *arguments)}


def test_help_answers_within_03_seconds() -> None:
    command = [str(Path(sys.executable).with_name("layerbank")), "--help"]
    times = []
    for _ in range(5):
        start = sum(os.times()[2:4])  # of children, so that other work on this machine does not count
        subprocess.run(command, check=True, capture_output=True)
        times.append(sum(os.times()[2:4]) - start)
    assert min(times) < 0.3, times


@pytest.mark.parametrize("command", [[], ["extract"], ["probe"], ["predict"], ["cache"], ["cache", "verify"]])
def test_help_of_every_command_has_a_worked_example(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "layerbank " + " ".join(command) in result.output


def test_probe_goes_from_images_to_a_table(place: dict[str, Any]) -> None:
    result: Result = place["result"]
    assert result.exit_code == 0, result.output
    for word in ("probe", "chosen setting", "validation", "test", "gain", "parameters", "seconds"):
        assert word in result.stdout
    assert "linear-cls" in result.stdout
    assert "lr 0.01, wd 0.0001, dropout 0" in result.stdout
    assert "+0.0" in result.stdout
    assert list(place["folder"].glob("runs/*/*/results.jsonl"))
    assert list(place["folder"].glob("runs/*/*/alf-*/attention.png"))


def test_a_second_probe_extracts_nothing_and_trains_nothing(place: dict[str, Any]) -> None:
    result = run("probe", *place["arguments"])
    assert result.exit_code == 0
    assert result.stderr.count("in the cache, 0 to compute") == 2
    assert result.stderr.count("not trained again") == 2
    assert result.stdout == place["result"].stdout


def test_json_is_one_document_without_progress(place: dict[str, Any]) -> None:
    result = run("probe", *place["arguments"], "--json")
    rows = json.loads(result.stdout)["rows"]
    assert [row["probe"] for row in rows] == ["linear-cls", "alf"]
    assert result.stderr == ""


def test_a_halving_sweep_is_an_option(place: dict[str, Any], tmp_path: Path) -> None:
    more = ("--probe", "linear-cls", "--sweep", "halving", "--runs", str(tmp_path), "--json")
    result = run("probe", *place["arguments"], *more)
    (row,) = json.loads(result.stdout)["rows"]
    assert row["protocol"]["sweep"] == "halving"
    assert len(row["rungs"]) == 3


def test_the_compute_precision_is_an_option(place: dict[str, Any], tmp_path: Path) -> None:
    more = ("--probe", "linear-cls", "--compute", "bfloat16", "--runs", str(tmp_path), "--json")
    (row,) = json.loads(run("probe", *place["arguments"], *more).stdout)["rows"]
    assert row["compute"] == "bfloat16"
    shown = refusal("probe", *place["arguments"], "--device", "cpu", "--compute", "tf32")
    assert "compute on cpu" in shown
    assert "auto, float32, bfloat16" in shown


def test_several_seeds_and_numbers_of_heads_are_rows_of_their_own_and_one_line_a_probe(
    place: dict[str, Any], tmp_path: Path
) -> None:
    more = ("--probe", "linear-cls,attn-last", "--seed", "0,3", "--num-heads", "2,3", "--runs", str(tmp_path))
    result = run("probe", *place["arguments"], *more)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("±") == 1 + 3 * 3  # the title; validation, test and gain of three probes
    answer = json.loads(run("probe", *place["arguments"], *more, "--json").stdout)
    assert [(row["probe"], row["protocol"]["seed"], row["num_heads"]) for row in answer["rows"]] == [
        *(("linear-cls", 0, None), ("attn-last-h2", 0, 2), ("attn-last-h3", 0, 3)),
        *(("linear-cls", 3, None), ("attn-last-h2", 3, 2), ("attn-last-h3", 3, 3)),
    ]
    folders = {f"{row['probe']}-{row['key'][:8]}" for row in answer["rows"]}
    assert {path.parent.name for path in tmp_path.rglob("probe.json")} == folders
    assert len(folders) == 6
    assert [one["seeds"] for one in answer["summary"]] == [[0, 3]] * 3
    assert answer["summary"][0]["gain"] == {"mean": 0.0, "std": 0.0}


def test_the_reference_s_quirks_are_another_result_and_the_title_says_so(place: dict[str, Any], tmp_path: Path) -> None:
    more = ("--probe", "linear-cls", "--reference-quirks", "--runs", str(tmp_path))
    result = run("probe", *place["arguments"], *more)
    assert "with the reference's quirks" in result.stdout
    (quirky,) = json.loads(run("probe", *place["arguments"], *more, "--json").stdout)["rows"]
    (plain,) = json.loads(run("probe", *place["arguments"], "--probe", "linear-cls", "--json").stdout)["rows"]
    assert quirky["key"] != plain["key"]
    changed = {name for name in plain["protocol"] if plain["protocol"][name] != quirky["protocol"][name]}
    assert changed == {"jitter_validation"}


def test_underscores_and_dashes_are_the_same_in_option_names(place: dict[str, Any]) -> None:
    arguments = [argument.replace("--image-size", "--image_size") for argument in place["arguments"]]
    assert run("probe", *arguments, "--train_split", "train").exit_code == 0


def test_predict_writes_one_csv_line_an_image(place: dict[str, Any], photos: Path) -> None:
    (probe,) = place["folder"].glob("runs/*/*/alf-*")
    result = run("predict", "--probe", str(probe), "--data", f"images:{photos / 'test' / 'red'}", "--workers", "0")
    assert result.exit_code == 0, result.output
    lines = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(lines) == 20
    assert {line["predicted"] for line in lines} <= {"blue", "green", "red"}
    assert all(line["target"] == "" and 0 < float(line["probability"]) <= 1 for line in lines)
    labelled = run("predict", "--probe", str(probe), "--data", f"folder:{photos}", "--workers", "0", "--json")
    assert {line["target"] for line in json.loads(labelled.stdout)} == {"blue", "green", "red"}


def refusal(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "key", "values"),
    [
        (("--data", "nothing"), "data.no_scheme", {"uri": "nothing", "nearest": "folder:nothing"}),
        (("--data", "folder:/no/such/place"), "data.no_such_folder", {"data": "folder:/no/such/place"}),
        (("--train-split", "training"), "data.no_such_split", {"split": "training", "splits": "test, train"}),
        (("--num-heads", "8,x"), "layerbank.not_whole_numbers", {"option": "--num-heads", "least": 1, "text": "8,x"}),
        (("--num-heads", ""), "layerbank.empty_value", {"where": "--num-heads"}),
        (("--seed", "-1"), "layerbank.not_whole_numbers", {"option": "--seed", "least": 0, "text": "-1"}),
        (("--num-heads", "500"), "probing.head_does_not_fit", {"name": "alf-h500"}),
        (("--probe", "linear-all-h4"), "probing.head_without_heads", {"name": "linear-all-h4", "stem": "linear-all"}),
        (("--probe", "alff"), "probing.unknown_probe", {"name": "alff", "advice": "Did you mean 'alf'?"}),
        (("--probe", "alf-grid9-last"), "models.grid_too_fine", {"kind": "grid9"}),
        (("--probe", ""), "layerbank.empty_value", {"where": "--probe"}),
        (("--probe", " , "), "probing.no_probe_named", {"probes": " , "}),
        (("--model", "timm/resnet18"), "layerbank.one_value", {"option": "--model", "command": "probe"}),
        (("--weights", "a.pt"), "layerbank.one_value", {"option": "--weights", "values": "random, a.pt"}),
        (("--protocol", "papier"), "probing.unknown_protocol", {"name": "papier"}),
        (("--device", "abacus"), "models.unusable_device", {"device": "abacus"}),
        (("--image-size", "3"), "models.image_size_of_no_patches", {"size": 3}),
    ],
)
def test_a_wrong_request_says_where_what_was_expected_what_came_and_what_to_do(
    place: dict[str, Any], arguments: tuple[str, ...], key: str, values: dict[str, object]
) -> None:
    result = run("probe", *place["arguments"], *arguments)
    refuses(result, key, **values)
    for word in ("layerbank: ", "  expected  ", "  got       ", "  do        "):
        assert word in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("model", "weights", "key", "values"),
    [
        ("timm/vit_smal_patch16_224", "random", "models.unknown_model", {"name": "vit_smal_patch16_224"}),
        ("timm/resnet18", "random", "models.image_size_is_fixed", {"model": "timm/resnet18"}),
        (TINY_MODEL, "/no/such/file.bin", "models.no_weights_file", {"path": "/no/such/file.bin"}),
    ],
)
def test_a_wrong_model_is_refused_by_name(
    photos: Path, tmp_path: Path, model: str, weights: str, key: str, values: dict[str, object]
) -> None:
    options = ("--model", model, "--weights", weights, "--image-size", "32", "--cache", tmp_path / "caches")
    refuses(run("probe", *options, "--data", f"folder:{photos}"), key, **values)


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("learning_rates = [1]", "probing.unknown_protocol_key", {"key": "learning_rates"}),
        ("seed = 3", "probing.protocol_with_seed", {}),
        ("lrs = [-1.0]", "probing.invalid_protocol", {"expected": "lrs at least one, all > 0"}),
        ("lrs = 'many'", "probing.protocol_types", {}),
        ("lrs = [", "probing.protocol_not_toml", {}),
    ],
)
def test_a_wrong_protocol_file_is_refused_by_key(
    place: dict[str, Any], tmp_path: Path, text: str, key: str, values: dict[str, object]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    error = refuses_to_probe(place, "--protocol", str(path), key=key)
    assert error.values["path"] == str(path)
    assert {name: error.values[name] for name in values} == values


def refuses_to_probe(place: dict[str, Any], *arguments: str, key: str) -> LayerbankError:
    return refuses(run("probe", *place["arguments"], *arguments), key)


def test_without_extraction_missing_rows_are_refused_with_the_command_to_run(
    place: dict[str, Any], tmp_path: Path
) -> None:
    error = refuses_to_probe(place, "--cache", str(tmp_path), "--no-extract", key="cache.rows_missing")
    assert "layerbank extract" in error.todo


def test_predict_refuses_a_folder_without_a_probe(tmp_path: Path) -> None:
    result = run("predict", "--probe", str(tmp_path), "--data", "images:.")
    refuses(result, "probes.no_saved_probe", folder=tmp_path)


def test_images_without_labels_are_no_data_to_probe(place: dict[str, Any], photos: Path) -> None:
    error = refuses_to_probe(place, "--data", f"images:{photos}", key="data.unlabelled_images")
    assert error.values["data"] == f"{photos.name}/train"


def test_wrong_data_are_refused_before_the_model_is_looked_for() -> None:
    result = run("extract", "--model", "timm/vit_tiny_patch16_224", "--data", "folder:/no/such/place")
    assert result.exit_code == 2
    assert "folder:/no/such/place" in result.stderr


def test_what_the_system_refuses_is_shown_without_a_traceback(place: dict[str, Any]) -> None:
    result = run("probe", *place["arguments"], "--runs", "/proc/no/such")
    assert result.exit_code == 1
    assert "layerbank: /proc/no" in result.stderr
    assert "No such file or directory" in result.stderr
    assert "Traceback" not in result.output


def test_a_failure_of_the_work_ends_with_1(photos: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    (copy / "train" / "red" / "000.png").write_bytes(b"torn")
    result = run("extract", *MODEL, "--data", f"folder:{copy}", "--cache", str(tmp_path / "caches"))
    assert result.exit_code == 1
    assert "red/000.png" in result.stderr
    assert "--on-bad-image skip" in result.stderr
    skipping = run(
        "extract",
        *MODEL,
        "--data",
        f"folder:{copy}",
        "--cache",
        str(tmp_path / "caches"),
        "--on-bad-image",
        "skip",
    )
    assert skipping.exit_code == 0
    assert "skipped image 'train/red/000.png'" in skipping.stderr


def test_workers_default_to_one_for_16_cores_on_a_cpu_and_to_the_cores_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("layerbank.models.request.num_cores", lambda: 8)
    assert (choose_workers(None, "cpu"), choose_workers(None, "cuda"), choose_workers(0, "cuda:1")) == (0, 7, 0)
    monkeypatch.setattr("layerbank.models.request.num_cores", lambda: 64)
    assert (choose_workers(None, "cpu"), choose_workers(None, "cuda")) == (4, 16)


def test_auto_is_half_precision_on_a_gpu_only() -> None:
    assert [choose_precision("auto", device) for device in ("cpu", "cuda", "cuda:1")] == [
        "float32",
        "float16",
        "float16",
    ]
    assert choose_precision("bfloat16", "cpu") == "bfloat16"


def test_a_memory_budget_is_shown_and_changes_no_result(place: dict[str, Any], tmp_path: Path) -> None:
    result = run("probe", *place["arguments"], "--runs", str(tmp_path), "--memory", "3GB")
    assert result.exit_code == 0, result.output
    assert "of tokens in memory; at most" in result.stderr
    first, second = (
        json.loads(run("probe", *place["arguments"], "--runs", runs, "--json").stdout)["rows"]
        for runs in (str(tmp_path), str(place["folder"] / "runs"))
    )
    assert [row["test"] for row in first] == [row["test"] for row in second]


@pytest.mark.parametrize(
    ("memory", "key"), [("lots", "layerbank.not_a_size"), ("1kB", "layerbank.memory_in_use_already")]
)
def test_a_memory_budget_that_is_no_size_or_too_small_is_refused(place: dict[str, Any], memory: str, key: str) -> None:
    refuses_to_probe(place, "--retrain", "--memory", memory, key=key)


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("group", [(), ("cache",), ("runs",)])
def test_help_does_not_cut_what_a_command_is_for(
    monkeypatch: pytest.MonkeyPatch, group: tuple[str, ...], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = run(*group, "--help").stdout
    assert "..." not in shown.replace("[ARGS]...", "")
    assert all(len(line) <= int(columns) for line in shown.splitlines() if not line.startswith("  layerbank "))


def test_the_help_names_the_probes_that_are_trained_by_default() -> None:
    shown = "".join(run("probe", "--help").stdout.split())
    assert f"[default:{','.join(DEMO_PROBES)}]" in shown


@pytest.mark.parametrize(
    ("arguments", "option", "values"),
    [
        (("cache", "ls", "--cache", "a", "--cache", "b"), "--cache", "a, b"),
        (("probe", "--model", "a", "--data", "folder:a", "--data=folder:b"), "--data", "folder:a, folder:b"),
        (("probe", "--model", "a", "--data", "folder:a", "--seed", "0", "--seed", "0"), "--seed", "0, 0"),
        (("probe", "--model", "a", "--num_heads", "2", "--num-heads", "4"), "--num-heads", "2, 4"),
        (("extract", "--model", "a", "--view-flip", "--no-view-flip"), "--view-flip", "--view-flip, --no-view-flip"),
        (("runs", "verify", "runs", "--json", "--json"), "", ""),
        (("extract", "--model", "a", "--model", "b", "--data", "folder:gone"), "", ""),
    ],
)
def test_an_option_of_one_value_is_not_taken_twice(arguments: tuple[str, ...], option: str, values: str) -> None:
    result = run_as_typed(*arguments)
    assert result.exit_code == 2
    if option:
        refuses(result, "layerbank.one_value", option=option, values=values)
    else:
        assert "one value" not in result.stderr
