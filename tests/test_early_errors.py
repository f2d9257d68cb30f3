"""What is wrong with a request is said before the first image is opened, and before a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import run
from messages import raises, refuses
from photos import TINY_MODEL, write_photos

import layerbank
import layerbank.jobs.cases as cases
import layerbank.jobs.extract as extract_job
import layerbank.jobs.probe as probe_job
from layerbank import ExtractJob, ProbeJob, StudyJob
from layerbank.errors import RequestError
from layerbank.outputs import check_folder
from layerbank.probing.protocols import open_protocol

WRONG = [
    (("--device", "cuda:99"), "models.unusable_device"),
    (("--device", "meta"), "models.unusable_device"),
    (("--device", "-1"), "models.unusable_device"),
    (("--cache", "a-file/caches"), "layerbank.output_folder_not_writable"),
    (("--runs", "a-file/below/runs"), "layerbank.output_folder_not_writable"),
    (("--probe", "linear-cls,alff"), "probing.unknown_probe"),
    (("--probe", "linear-cls-h4"), "probing.head_without_heads"),
    (("--probe", "alf-h" + "9" * 40), "probing.unknown_probe"),
    (("--protocol", "absurd.toml"), "probing.invalid_protocol"),
    (("--protocol", "long.toml"), "probing.protocol_not_toml"),
    (("--protocol", "latin.toml"), "probing.protocol_not_toml"),
    (("--seed", "9" * 40), "layerbank.not_whole_numbers"),
    (("--seed", "0,-1"), "layerbank.not_whole_numbers"),
    (("--num-heads", "²"), "layerbank.not_whole_numbers"),
    (("--memory", "9" * 400), "layerbank.not_a_size"),
    (("--storage-dtype", "float8"), "cache.invalid_storage_dtype"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    write_photos(folder / "photos", {"train": 2, "test": 1})
    (folder / "a-file").write_text("mine")
    (folder / "absurd.toml").write_text("min_steps = 1e23\nepochs = true\n")
    (folder / "long.toml").write_text(f"min_steps = {'9' * 5000}\n")
    (folder / "latin.toml").write_bytes(b"# caf\xe9\n")
    return folder


@pytest.mark.parametrize(("options", "key"), WRONG)
def test_an_error_is_found_before_data_and_models_are_opened(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], key: str
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.chdir(place)
    for module in (cases, extract_job):
        monkeypatch.setattr(module, "open_source", opened)
    for module in (probe_job, extract_job):
        monkeypatch.setattr(module, "open_model", opened)
    arguments = ("--model", TINY_MODEL, "--weights", "random", "--data", "folder:photos")
    refuses(run("probe", *arguments, *options), key)
    if options[0] in ("--device", "--cache", "--storage-dtype"):
        refuses(run("extract", *arguments, *options), key)
    assert not (place / "caches").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", True),
        ("batch_size", 16.0),
        ("batch_size", -1),
        ("batch_size", 10**40),
        ("workers", -1),
        ("weights_seed", -1),
        ("weights_seed", 10**40),
        ("views", True),
        ("seeds", [True]),
        ("seeds", [0.0]),
        ("seeds", [10**5000]),
        ("num_heads", [2.0]),
        ("view_flip", 1),
        ("parity_threshold", True),
        ("cache_root", ""),
        ("runs_root", " "),
        ("data", ""),
        ("model", "a\0b"),
        ("probes", [""]),
        ("train_split", ""),
    ],
)
def test_a_value_of_another_type_or_range_is_refused_by_a_job(key: str, value: object) -> None:
    good: dict[str, Any] = {"data": "folder:photos", "model": TINY_MODEL, "probes": ["alf"]}
    with raises("jobs.wrong_job_value", RequestError, key=key) as refused:
        ProbeJob(**(good | {key: value}))
    assert len(str(refused.error)) < 400


def test_numbers_of_numpy_and_large_seeds_are_accepted() -> None:
    job = ExtractJob(data="folder:photos", models=[(TINY_MODEL, None)], weights_seed=10**18 - 1)
    assert job.weights_seed == 10**18 - 1


def test_a_study_is_refused_for_its_folders_and_its_device_before_its_first_unit(place: Path) -> None:
    good: dict[str, Any] = {"data": [f"folder:{place / 'photos'}"], "models": [TINY_MODEL], "probes": ["linear-cls"]}
    with raises("models.unusable_device", RequestError):
        layerbank.run(StudyJob(**good, device="cuda:99", runs_root=place / "runs"))
    with raises("layerbank.output_not_a_folder", RequestError, where="--runs"):
        layerbank.run(StudyJob(**good, device="cpu", runs_root=place / "a-file"))


@pytest.mark.parametrize("folder", ["", " ", "a\0b", 5])
def test_python_refuses_a_folder_that_is_no_path(folder: Any) -> None:
    with raises("api.wrong_argument", where="Classifier, folder"):
        layerbank.Classifier(folder)


@pytest.mark.parametrize("seed", [True, 1.5, -1, 10**40])
def test_python_refuses_a_seed_that_is_no_whole_number(seed: Any) -> None:
    with raises("jobs.wrong_job_value", where="open_model", key="seed"):
        layerbank.open_model(TINY_MODEL, weights="random", seed=seed, device="cpu")


def test_a_number_of_workers_is_no_truth_value() -> None:
    with raises("executors.number_of_workers", got="True"):
        layerbank.LocalExecutor(True)


def test_a_folder_of_stores_that_exists_need_not_be_writable(tmp_path: Path) -> None:
    check_folder(tmp_path, "--cache", is_written=False)
    check_folder(tmp_path / "new" / "caches", "--cache", is_written=False)
    with raises("layerbank.name_too_long", RequestError):
        check_folder(tmp_path / ("x" * 5000), "--cache")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "protocol.toml").write_bytes(b"\xef\xbb\xbflrs = [0.5]\n")
    assert open_protocol(str(tmp_path / "protocol.toml"), seed=0).lrs == (0.5,)
